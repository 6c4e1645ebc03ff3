"""``flask realtime status | check | config``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urljoin
from urllib.request import urlopen

import click
from flask import current_app
from flask.cli import AppGroup

from ...config import SETTINGS
from ...errors import ConfigError, RtpoolError

__all__ = ["group"]


def _above_0(context: click.Context, option: click.Parameter, seconds: float) -> float:
    """Check a time to wait; click's own ranges let NaN through."""
    if not 0 < seconds <= 86400:
        raise click.BadParameter(f"{seconds:g} is not a number of seconds above 0, at most 86400")
    return seconds


#: For an application's ``cli``. Each command runs in an application context.
group = AppGroup("realtime", help="The Realtime pools of this application.")


@group.command()
@click.option("--url", help="Where a running server has its monitoring pages.")
def status(url: str | None) -> None:
    """The pools; with --url, what they do in a running server."""
    if url is not None:
        _ask(url if url.endswith("/") else url + "/")
        return
    rows = [("pool", "connects to", "at most", "in reserve")]
    for name, (settings, _) in _read():
        rows.append((name, settings.redacted_url, str(settings.max_connections), str(settings.min_idle)))
    _table(rows)
    click.echo("\nEvery process has connections of its own; --url asks a running server for its numbers.")


@group.command()
@click.option(
    "--timeout", type=float, callback=_above_0, default=30.0, show_default=True, help="Seconds for each pool."
)
def check(timeout: float) -> None:
    """Check the settings, then open one connection for each pool."""
    pools = current_app.extensions["realtime"]
    failed = False
    for name, (settings, _) in _read():
        click.echo(f"{name}: {settings.redacted_url}")
        try:
            pool = pools.for_check(name)
        except ConfigError as error:
            raise click.ClickException(str(error)) from None
        try:
            begun = time.monotonic()
            with pool.connection(timeout) as conn:
                ready = time.monotonic() - begun
                click.echo(f"  ready in {ready * 1e3:.0f} ms, ping {conn.ping() * 1e3:.1f} ms")
        except (RtpoolError, TimeoutError) as error:
            failed = True
            cause = str(error.__cause__ or "")
            click.echo(f"  {error}" + (f" ({cause})" if cause not in str(error) else ""))
        finally:
            pool.close()
    if failed:
        raise click.ClickException("not every pool can connect")


@group.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def config(as_json: bool) -> None:
    """The settings in force and where each comes from; secrets are masked."""
    head = ("setting", "value", "from", "variable")
    documents = {}
    for name, (settings, sources) in _read():
        shown = settings.describe()
        rows = [(key, shown[key], sources.get(key, "default"), SETTINGS[key].env or "") for key in SETTINGS]
        documents[name] = [dict(zip(head, row, strict=True)) for row in rows]
        if not as_json:
            click.echo(f"Settings of pool {name!r}, which connects to {settings.redacted_url}")
            _table([head, *rows])
    if as_json:
        click.echo(json.dumps(documents, indent=2))


def _read() -> Iterable[tuple[str, Any]]:
    pools = current_app.extensions["realtime"]
    try:
        return [(name, pools.read(name)) for name in pools]
    except ConfigError as error:
        raise click.ClickException(str(error)) from None


def _ask(url: str) -> None:
    health, stats = (_fetch(urljoin(url, page)) for page in ("health", "stats"))
    click.echo(f"{health.get('status')}: {health.get('message')}")
    keys = ("active_sessions", "idle", "connecting", "resetting", "waiting", "max_connections")
    rows: list[tuple[str, ...]] = [
        ("pool", "in use", "idle", "connecting", "resetting", "waiting", "at most", "sessions")
    ]
    for pool in stats.get("pools") or [stats]:
        rows.append(
            (
                str(pool.get("name", "")),
                *(str(pool.get(key, "")) for key in (*keys, "total_sessions_handled")),
            )
        )
    _table(rows)
    if health.get("status") == "unhealthy":
        raise click.ClickException("unhealthy")


def _fetch(url: str) -> dict[str, Any]:
    if not url.startswith(("http://", "https://")):
        raise click.ClickException("--url must be an http:// or https:// URL")
    try:
        try:
            with urlopen(url, timeout=10.0) as answer:
                document = json.load(answer)
        except HTTPError as error:
            with error:
                if error.code != 503:  # unhealthy, which is an answer
                    raise click.ClickException(f"{url}: {error}") from None
                document = json.load(error)
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{url}: {error}") from None
    if not isinstance(document, dict):
        raise click.ClickException(f"{url}: not the monitoring pages")
    return document


def _table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(("  " + "  ".join(cells)).rstrip())
