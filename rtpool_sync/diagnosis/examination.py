"""The examination: the settings, then the way to the service, then the service itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from urllib.parse import parse_qsl, unquote, urlsplit

from ..config import SETTINGS, PoolConfig
from ..errors import ConfigError, redact
from ..settings import load_with_sources, pool_names
from ..transport.dial import make_context
from . import route, service
from .findings import Finding

__all__ = ["diagnose"]


def diagnose(name: str = "default", *, turn: bool = True, timeout: float = 30.0) -> Iterator[Finding]:
    """Go through all phases for one pool's settings, and yield what each finds as soon as it is known.

    Ends with the first phase that failed.

    Args:
        name: The pool, as in the settings.
        turn: Whether to have the model answer, which costs a fraction of a cent.
        timeout: Seconds for the answer, and for the reset. Connecting has the setting ``connect_timeout``.
    """
    log = logging.getLogger("rtpool_sync")
    notes = _Notes()
    log.addHandler(notes)
    mask: Callable[[str], str] = redact
    try:
        began = time.monotonic()
        try:
            config, sources = load_with_sources(name)
            config.require_key()
            mask = _mask(config)
            secure = urlsplit(config.connect_url).scheme == "wss"
            context = make_context(config.ca_file) if secure else None
        except ConfigError as error:
            advice = "Correct it where it says it is set; docs/settings.md has all settings and their values."
            yield Finding("settings", "failed", str(error), advice, time.monotonic() - began)
            return
        yield _settings(name, config, sources, notes.texts, time.monotonic() - began)
        for finding in route.explore(config, context, sources, mask):
            yield _masked(finding, mask)
            if finding.status == "failed":
                return
        for finding in service.try_out(config, turn=turn, timeout=timeout):
            yield _masked(finding, mask)
            if finding.status == "failed":
                return
    finally:
        log.removeHandler(notes)


class _Notes(logging.Handler):
    """What the package would write to the log: here it belongs to the findings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def _settings(
    pool: str, config: PoolConfig, sources: dict[str, str], notes: list[str], seconds: float
) -> Finding:
    shown = config.describe()
    lines = [config.redacted_url]
    lines += [
        f"{name} = {shown[name]}, from {sources[name]}" for name in SETTINGS if sources[name] != "default"
    ]
    if sources["model"] == "default" and config.url is None:
        lines.append(f"model = {shown['model']}, the default")
    if pool not in pool_names():
        lines.append(f"there is no table realtime_pools.{pool}: these are the general settings")
    status = "warning" if notes else "ok"
    return Finding("settings", status, "\n".join(lines), "\n".join(notes), seconds)


def _mask(config: PoolConfig) -> Callable[[str], str]:
    """What takes everything out of a text that must not be shown: a server may quote what it was sent."""
    parts = urlsplit(config.connect_url)
    secrets = [value.removeprefix("Bearer ") for name, value in config.upgrade_headers(True)]
    secrets += [value for name, value in parse_qsl(parts.query) if name not in ("model", "intent")]
    secrets += [unquote(parts.password or "")]
    plain = [secret for secret in secrets if len(secret) > 5]

    def mask(text: str) -> str:
        return redact(text, *plain)

    return mask


def _masked(finding: Finding, mask: Callable[[str], str]) -> Finding:
    return replace(finding, detail=mask(finding.detail), advice=mask(finding.advice))
