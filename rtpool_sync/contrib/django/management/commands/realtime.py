"""``manage.py realtime status | check | config``."""

from __future__ import annotations

import json
import time
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Sequence
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urljoin
from urllib.request import urlopen

from django.core.management.base import BaseCommand, CommandError

from rtpool_sync.config import SETTINGS
from rtpool_sync.errors import ConfigError, RtpoolError
from rtpool_sync.pool import RealtimePool

from ... import conf
from ...checks import TAG

__all__ = ["Command"]


class Command(BaseCommand):
    help = "The Realtime pools of this project: status, check, config."
    #: What is wrong with the settings is what this command tells, in its own words.
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="{status,check,config}")
        status = actions.add_parser("status", help="the pools; with --url, what they do in a running server")
        status.add_argument("--url", help="where a running server includes the monitoring pages")
        check = actions.add_parser("check", help="check the settings, then open one connection for each pool")
        check.add_argument("pool", nargs="*", help="names of pools (all)")
        check.add_argument("--settings-only", action="store_true", help="open nothing")
        check.add_argument("--timeout", type=_seconds, default=30.0, help="seconds for each pool (30)")
        config = actions.add_parser("config", help="the settings in force and where each comes from")
        config.add_argument("pool", nargs="*", help="names of pools (all)")
        config.add_argument("--json", action="store_true", help="for programs")

    def handle(self, *args: Any, action: str, **options: Any) -> None:
        try:
            getattr(self, f"_{action}")(**options)
        except ConfigError as error:
            raise CommandError(str(error)) from None

    # -- status

    def _status(self, url: str | None, **options: Any) -> None:
        if url is not None:
            self._ask(url if url.endswith("/") else url + "/")
            return
        rows = [("pool", "connects to", "at most", "in reserve")]
        for name in conf.names():
            config, _ = conf.read(name)
            rows.append((name, config.redacted_url, str(config.max_connections), str(config.min_idle)))
        self._table(rows)
        self.stdout.write(
            "\nEvery process has connections of its own; --url asks a running server for its numbers."
        )

    def _ask(self, url: str) -> None:
        health, stats = (self._fetch(urljoin(url, page)) for page in ("health", "stats"))
        self.stdout.write(f"{health.get('status')}: {health.get('message')}")
        rows: list[tuple[str, ...]] = [
            ("pool", "in use", "idle", "connecting", "resetting", "waiting", "at most", "sessions")
        ]
        keys = ("active_sessions", "idle", "connecting", "resetting", "waiting", "max_connections")
        for pool in stats.get("pools") or [{"name": "default", **stats}]:
            numbers = (*keys, "total_sessions_handled")
            rows.append((str(pool.get("name")), *(str(pool.get(key, "")) for key in numbers)))
        self._table(rows)
        if health.get("status") == "unhealthy":
            raise CommandError("unhealthy")

    def _fetch(self, url: str) -> dict[str, Any]:
        if not url.startswith(("http://", "https://")):
            raise CommandError("--url must be an http:// or https:// URL")
        try:
            try:
                with urlopen(url, timeout=10.0) as answer:
                    document = json.load(answer)
            except HTTPError as error:
                if error.code != 503:  # unhealthy, which is an answer
                    raise
                with error:
                    document = json.load(error)
        except (URLError, TimeoutError, ValueError) as error:
            raise CommandError(f"{url}: {error}") from None
        if not isinstance(document, dict):
            raise CommandError(f"{url}: not the monitoring pages")
        return document

    # -- check

    def _check(self, pool: list[str], settings_only: bool, timeout: float, **options: Any) -> None:
        self.check(tags=[TAG], display_num_errors=True)
        failed = False
        for name in [] if settings_only else pool or conf.names():
            config, _ = conf.read(name)
            self.stdout.write(f"{name}: {config.redacted_url}")
            one = RealtimePool(
                config.replace(max_connections=1, min_idle=0),
                name=name,
                protocol=conf.protocol(name),
                registry=False,
            )
            try:
                begun = time.monotonic()
                with one.connection(timeout) as conn:
                    ready = time.monotonic() - begun
                    round_trip = conn.ping()
                    self.stdout.write(
                        self.style.SUCCESS(f"  ready in {ready * 1e3:.0f} ms, ping {round_trip * 1e3:.1f} ms")
                    )
            except RtpoolError as error:
                failed = True
                cause = str(error.__cause__ or "")
                also = f" ({cause})" if cause not in str(error) else ""
                self.stdout.write(self.style.ERROR(f"  {error}{also}"))
            finally:
                one.close()
        if failed:
            raise CommandError("not every pool can connect")

    # -- config

    def _config(self, pool: list[str], json: bool, **options: Any) -> None:
        documents = {}
        for name in pool or conf.names():
            config, sources = conf.read(name)
            shown = config.describe()
            rows = [
                (field, shown[field], sources.get(field, "default"), setting.env or "")
                for field, setting in SETTINGS.items()
            ]
            head = ("setting", "value", "from", "variable")
            documents[name] = [dict(zip(head, row, strict=True)) for row in rows]
            if not json:
                self.stdout.write(f"Settings of pool {name!r}, which connects to {config.redacted_url}\n")
                self._table([head, *rows])
                self.stdout.write()
        if json:
            self.stdout.write(_dumps(documents))

    def _table(self, rows: Sequence[Sequence[str]]) -> None:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            self.stdout.write(("  " + "  ".join(cells)).rstrip())


def _dumps(document: object) -> str:
    return json.dumps(document, indent=2)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86400:
        raise ArgumentTypeError(f"{text!r} is not a number of seconds above 0, at most 86400")
    return seconds
