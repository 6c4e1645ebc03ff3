"""Small checks of JSON values; each raises the :class:`Problem` the service would answer with.

A checker is called with the value and the name the error shall give it, and
returns the value to keep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from .problems import Problem, unknown_parameter

__all__ = [
    "Checker",
    "boolean",
    "fields",
    "identifier",
    "list_of",
    "mapping",
    "mapping_of",
    "maybe",
    "number",
    "one_of",
    "required",
    "string",
    "whole",
]

Checker = Callable[[Any, str], Any]


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "an object"


def _wrong(value: object, param: str, wanted: str) -> Problem:
    message = f"Invalid type for '{param}': expected {wanted}, but got {_kind(value)}."
    return Problem("invalid_value", message, param)


def string(value: Any, param: str) -> str:
    if not isinstance(value, str):
        raise _wrong(value, param, "a string")
    return value


def identifier(value: Any, param: str) -> str:
    value = string(value, param)
    if not value:
        raise Problem("invalid_value", f"Invalid '{param}': it must not be empty.", param)
    if len(value) > 32:
        raise Problem(
            "string_above_max_length",
            f"Invalid '{param}': string too long. Expected a string with maximum length 32, "
            f"but got a string with length {len(value)} instead.",
            param,
        )
    return str(value)


def boolean(value: Any, param: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(value, param, "a boolean")
    return value


def mapping(value: Any, param: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(value, param, "an object")
    return value


def mapping_of(check: Checker) -> Checker:
    """Check an object with any keys."""

    def check_values(value: Any, param: str) -> dict[str, Any]:
        return {key: check(element, f"{param}.{key}") for key, element in mapping(value, param).items()}

    return check_values


def whole(low: int, high: int) -> Checker:
    def check(value: Any, param: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong(value, param, "an integer")
        if not low <= value <= high:
            raise Problem(
                "invalid_value", f"Invalid '{param}': {value} is not between {low} and {high}.", param
            )
        return value

    return check


def number(low: float, high: float) -> Checker:
    def check(value: Any, param: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise _wrong(value, param, "a number")
        if not low <= value <= high:
            raise Problem(
                "invalid_value", f"Invalid '{param}': {value} is not between {low} and {high}.", param
            )
        return value

    return check


def one_of(*allowed: str) -> Checker:
    def check(value: Any, param: str) -> str:
        if not isinstance(value, str):
            raise _wrong(value, param, "a string")
        if value not in allowed:
            names = ", ".join(f"'{name}'" for name in allowed)
            raise Problem("invalid_value", f"Invalid value: '{value}'. Supported values are: {names}.", param)
        return value

    return check


def maybe(check: Checker) -> Checker:
    """Allow null too."""
    return lambda value, param: None if value is None else check(value, param)


def list_of(check: Checker, longest: int | None = None) -> Checker:
    def check_list(value: Any, param: str) -> list[Any]:
        if not isinstance(value, list):
            raise _wrong(value, param, "an array")
        if longest is not None and len(value) > longest:
            raise Problem("invalid_value", f"Invalid '{param}': more than {longest} elements.", param)
        return [check(element, f"{param}[{index}]") for index, element in enumerate(value)]

    return check_list


def fields(spec: Mapping[str, Checker], *needed: str) -> Checker:
    """Check an object: known keys only, each by its checker, and all that are needed."""

    def check(value: Any, param: str) -> dict[str, Any]:
        value = mapping(value, param)
        kept: dict[str, Any] = {}
        for key, element in value.items():
            name = f"{param}.{key}" if param else key
            if key not in spec:
                raise unknown_parameter(name)
            kept[key] = spec[key](element, name)
        required(value, needed, param)
        return kept

    return check


def required(value: Mapping[str, Any], keys: Collection[str], param: str = "") -> None:
    for key in keys:
        if key not in value:
            name = f"{param}.{key}" if param else key
            raise Problem("missing_required_parameter", f"Missing required parameter: '{name}'.", name)
