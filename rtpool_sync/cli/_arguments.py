"""Numbers on the command line: what is refused says what is allowed."""

from __future__ import annotations

import argparse
from collections.abc import Callable

__all__ = ["real", "whole"]


def real(low: float, high: float, what: str = "a number") -> Callable[[str], float]:
    """Return a converter of arguments that takes numbers from ``low`` to ``high``."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what} from {low:g} to {high:g}")
        return value

    return convert


def whole(low: int, high: int) -> Callable[[str], int]:
    """Return a converter of arguments that takes whole numbers from ``low`` to ``high``."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return value

    return convert
