"""``rtpool watch``: the pools of a running application, live in a terminal or as lines."""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ._arguments import real
from ._remote import Address, Application, printable
from ._report import table
from ._sight import STATES, Sight, failed, labels, number, span

__all__ = ["add_arguments", "run"]

FIGURES = ("at most", "waiting", "oldest wait", "sessions", "failed", "connect errors", "leaks")
SECONDS = real(0.05, 86400, "a number of seconds")
#: Lines between two headings, where there is no terminal to draw on.
HEADING = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "url", type=_address, metavar="URL", help="of the status page, as http://127.0.0.1:8000/realtime/"
    )
    parser.add_argument("--once", action="store_true", help="print the figures and end")
    parser.add_argument("--json", action="store_true", help="for programs: a document a line")
    parser.add_argument("--interval", type=SECONDS, default=1.0, metavar="S", help="between two looks (1)")
    parser.add_argument("--timeout", type=SECONDS, default=5.0, metavar="S", help="for an answer (5)")
    parser.add_argument(
        "--header",
        type=_headers,
        action="append",
        default=[],
        metavar="H",
        help="NAME: VALUE to send with each request, or @FILE with such lines",
    )


def run(options: argparse.Namespace) -> int:
    """Look and show. 0: ended by the user, or with ``--once`` all is well or degraded; 1: it is not."""
    headers = [header for several in options.header for header in several]
    application = Application(options.url, headers, options.timeout)
    if options.once:
        return _once(application, as_json=options.json)
    try:
        with _ended_by_sigterm():
            _go_on(application, options.interval, as_json=options.json)
    except KeyboardInterrupt:
        return 0  # it is how one ends this
    return 0


def _once(application: Application, *, as_json: bool) -> int:
    sight = Sight(application, 1.0)
    sight.look()
    if as_json:
        print(json.dumps(sight.as_dict(), indent=2))
    elif sight.trouble is not None:
        raise sight.trouble
    else:
        status, message = sight.state
        print(f"{application.address.shown} is {status}: {message}")
        rows = [
            (
                name,
                sight.state_of(name)[0],
                *(f"{number(pool, state):,.0f}" for state in STATES),
                f"{number(pool, 'max_connections'):,.0f}",
                f"{number(pool, 'waiting'):,.0f}",
                span(number(pool, "oldest_wait_seconds")),
                f"{pool['total_sessions_handled']:,.0f}",
                f"{failed(pool):,.0f}",
                f"{sum(labels(pool, 'connect_errors').values()):,.0f}",
                f"{number(pool, 'leaks'):,.0f}",
            )
            for name, pool in sight.pools().items()
        ]
        table(("pool", "status", *(state.replace("_", " ") for state in STATES), *FIGURES), rows)
    return 1 if sight.trouble is not None or sight.state[0] == "unhealthy" else 0


def _go_on(application: Application, interval: float, *, as_json: bool) -> None:
    """Look and show until interrupted."""
    sight = Sight(application, interval)
    sight.look()
    if sight.trouble is not None and not as_json:
        raise sight.trouble  # a wrong address will not become right
    with _screen(application.address.shown, as_json) as show:
        due = time.monotonic()
        while True:
            show(sight)
            # From one look to the next, however long an answer takes; never two at once.
            due = max(due + interval, time.monotonic())
            time.sleep(due - time.monotonic() if due > time.monotonic() else 0)
            sight.look()


@contextmanager
def _screen(url: str, as_json: bool) -> Iterator[Any]:
    """A function that shows what is seen: on a terminal with rich in place, else as lines."""
    if as_json:
        yield lambda sight: print(json.dumps(sight.as_dict()), flush=True)
        return
    if sys.stdout.isatty():
        try:
            from rich.console import Console
            from rich.live import Live

            from ._picture import picture
        except ImportError:
            print("pip install 'rtpool-sync[cli]' shows this in place.", file=sys.stderr)
        else:
            console = Console()
            if not console.is_dumb_terminal:
                plain: Any = {"redirect_stdout": False, "redirect_stderr": False}
                with Live(console=console, screen=True, auto_refresh=False, **plain) as live:
                    yield lambda sight: live.update(picture(url, sight), refresh=True)
                return
    yield _Lines().show


class _Lines:
    """A line for each pool and look."""

    HEAD = (
        f"{'time':8}  {'pool':12} {'status':9} {'in use':>6} {'idle':>5} {'conn.':>5} {'reset':>5}"
        f" {'clos.':>5} {'max':>5} {'waiting':>7} {'oldest':>8}"
        f" {'sessions/s':>10} {'failed/s':>8} {'errors/s':>8}"
    )

    def __init__(self) -> None:
        self._left = 0
        self._processes = 1

    def show(self, sight: Sight) -> None:
        moment = time.strftime("%H:%M:%S")
        if sight.trouble is not None:
            print(f"{moment}  {sight.trouble}", flush=True)
            return
        if sight.processes != self._processes:
            self._processes = sight.processes
            print(f"{moment}  answers from {sight.processes} processes, added up from here on")
        for name, pool in sight.pools().items():
            if not self._left:
                print(self.HEAD)
                self._left = HEADING
            self._left -= 1
            rates = pool.get("per_second", {})
            per_second = [
                f"{rates[key]:.1f}" if key in rates else "-"
                for key in ("sessions", "failed", "connect_errors")
            ]
            counts = [f"{number(pool, state):.0f}" for state in STATES]
            print(
                f"{moment}  {name:12} {sight.state_of(name)[0]:9} {counts[0]:>6}"
                + "".join(f" {count:>5}" for count in counts[1:])
                + f" {number(pool, 'max_connections'):>5.0f} {number(pool, 'waiting'):>7.0f}"
                + f" {span(number(pool, 'oldest_wait_seconds')):>8}"
                + f" {per_second[0]:>10} {per_second[1]:>8} {per_second[2]:>8}"
            )
        sys.stdout.flush()


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Told to end, leave the terminal as it was."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _address(text: str) -> Address:
    try:
        return Address.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not an address: {error}") from None


def _headers(text: str) -> list[tuple[str, str]]:
    """``NAME: VALUE``, or ``@FILE`` with such lines, which no list of processes shows. As curl has it."""
    if not text.startswith("@"):
        return [_header(text, "")]
    try:
        with open(text[1:], encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise argparse.ArgumentTypeError(f"{printable(text[1:])}: {reason}") from None
    return [
        _header(line, f"{printable(text[1:])}: line {n}: ") for n, line in enumerate(lines, 1) if line.strip()
    ]


def _header(text: str, where: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    name, value = name.strip(), value.strip()
    # What was given is not repeated: it may well be a password without its name.
    if not colon or not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name):
        raise argparse.ArgumentTypeError(f"{where}a header is NAME: VALUE, or @FILE with such lines")
    if not value.isprintable() or not value.isascii():
        raise argparse.ArgumentTypeError(f"{where}the value of {name} has characters that no header may have")
    return name, value
