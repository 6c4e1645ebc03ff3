"""The server as a command: it tells how to reach it and runs until it is told to end."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Sequence

__all__ = ["add_arguments", "main", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options on anybody's parser."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=_number(int, 0, 65535), default=8080, help="port, 0 for any (8080)")
    parser.add_argument("--tls", action="store_true", help="serve wss, with a certificate made for this run")
    parser.add_argument(
        "--latency",
        type=_number(float, 0, 10_000),
        default=0.0,
        metavar="MS",
        help="simulated round trip, in milliseconds (0)",
    )
    parser.add_argument(
        "--api-key", action="append", metavar="KEY", help="let in only this key; may be repeated (any)"
    )
    parser.add_argument(
        "--model", action="append", metavar="NAME", help="know only this model; may be repeated (any)"
    )
    parser.add_argument(
        "--session-seconds",
        type=_number(float, 0.001, 1e9),
        default=3600.0,
        metavar="S",
        help="longest session (3600)",
    )
    parser.add_argument(
        "--max-sessions",
        type=_number(int, 0, 1_000_000),
        metavar="N",
        help="refuse more sessions at a time (no limit)",
    )
    parser.add_argument("--realtime", action="store_true", help="send audio no faster than it plays")


def run(options: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM."""
    from .server import RealtimeServer

    server = RealtimeServer(
        options.host,
        options.port,
        tls=options.tls,
        latency=options.latency / 1000,
        api_keys=options.api_key,
        models=options.model,
        session_seconds=options.session_seconds,
        max_sessions=options.max_sessions,
        realtime_pacing=options.realtime,
    )
    done = threading.Event()
    # A service manager ends it with SIGTERM, a person with Ctrl-C: both are its normal end.
    before = {
        number: signal.signal(number, lambda *_: done.set()) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        try:
            server.start()
        except OSError as error:
            reason = error.strerror or str(error)
            raise OSError(f"cannot listen on {options.host}, port {options.port}: {reason}") from error
        with server:
            print(f"Realtime server at {server.url}; Ctrl-C ends it. To talk to it:")
            print(f"  export OPENAI_BASE_URL={server.base_url}")
            # A key given on the command line is not repeated where it may be logged.
            print(f"  export OPENAI_API_KEY={'…' if options.api_key else 'anything'}")
            if server.ca_file:
                print(f"  export WEBSOCKET_CA_FILE={server.ca_file}")
            sys.stdout.flush()
            while not done.wait(3600.0):
                pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    print(f"{server.opened_total} connections were opened, at most {server.max_open} at a time.")
    return 0


def _number(kind: type[int] | type[float], low: float, high: float) -> Callable[[str], float]:
    """Return a converter of arguments that takes numbers from ``low`` to ``high``."""

    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            name = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {name} from {low:g} to {high:g}")
        return value

    return convert


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with ``argv``; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="rtpool emulator", description="Serve the Realtime protocol on this machine."
    )
    add_arguments(parser)
    options = parser.parse_args(argv)
    try:
        return run(options)
    except (ImportError, OSError) as exc:
        print(f"rtpool emulator: {exc}", file=sys.stderr)
        return 1
