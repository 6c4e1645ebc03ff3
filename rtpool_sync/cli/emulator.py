"""``rtpool emulator``: the embedded Realtime server on its own, to develop and test other programs with."""

from __future__ import annotations

import argparse
import signal
import threading

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on, 0 for any (8080)")
    parser.add_argument("--tls", action="store_true", help="serve wss, with a certificate made for this run")
    parser.add_argument(
        "--latency", type=float, default=0.0, metavar="MS", help="simulated round trip, in milliseconds (0)"
    )
    parser.add_argument(
        "--key", action="append", metavar="KEY", help="let in only this key; may be repeated (any)"
    )
    parser.add_argument(
        "--model", action="append", metavar="NAME", help="know only this model; may be repeated (any)"
    )
    parser.add_argument(
        "--session-seconds", type=float, default=3600.0, metavar="S", help="longest session (3600)"
    )
    parser.add_argument(
        "--max-sessions", type=int, metavar="N", help="refuse more sessions at a time (no limit)"
    )
    parser.add_argument("--realtime", action="store_true", help="send audio no faster than it plays")


def run(options: argparse.Namespace) -> int:
    from ..emulator import RealtimeServer

    server = RealtimeServer(
        options.host,
        options.port,
        tls=options.tls,
        latency=options.latency / 1000,
        api_keys=options.key,
        models=options.model,
        session_seconds=options.session_seconds,
        max_sessions=options.max_sessions,
        realtime_pacing=options.realtime,
    )
    done = threading.Event()
    # A service manager ends it with SIGTERM, a person with Ctrl-C: both are its normal end.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: done.set())
    with server:
        print(f"Realtime server at {server.url}; Ctrl-C ends it. To talk to it:")
        print(f"  export OPENAI_BASE_URL={server.base_url} OPENAI_API_KEY={'…' if options.key else 'any'}")
        if options.model:
            print(f"  export OPENAI_REALTIME_MODEL={options.model[0]}")
        if server.ca_file:
            print(f"  export WEBSOCKET_CA_FILE={server.ca_file}")
        print(end="", flush=True)
        while not done.wait(3600.0):
            pass
    print(f"{server.opened_total} connections were opened, at most {server.max_open} at a time.")
    return 0
