"""What opening a connection over TLS takes: the handshakes, and the close."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any

from rtpool_sync import RealtimePool

from . import clients
from .harness import OURS, Bench, Goal, Row, Worker, cpu_seconds, interleave, no_gc
from .servers import Server, Servers

WSC, WSS, DEFAULT = "websocket-client, one context", "websockets.sync", "websocket-client"
_name = ""
_server: Server
_pool: RealtimePool
_bundle = ""


def setup(client: str, server: list[Any]) -> None:
    global _name, _server, _pool, _bundle
    _name, _server = client, Server(*server)
    if client == OURS:
        # A connection for each session, opened and closed by the pool's own threads, all of it counted.
        _pool = RealtimePool(
            url=_server.url,
            ca_file=_server.ca_file,
            protocol="plain",
            max_connections=1,
            max_sessions_per_connection=1,
        )
    elif client == DEFAULT:
        # By default it reads the system's authorities anew for each connection; ours has to be one.
        files = [ssl.get_default_verify_paths().cafile, "/etc/ssl/certs/ca-certificates.crt"]
        system = [Path(file).read_bytes() for file in files if file and os.path.exists(file)][:1]
        bundle = Path(f"{_server.ca_file}.all")
        bundle.write_bytes(b"".join([Path(_server.ca_file or "").read_bytes(), *system]))
        _bundle = str(bundle)
    _connect()


def _connect() -> None:
    if _name == OURS:
        with _pool.connection():
            pass
    elif _name == DEFAULT:
        import websocket

        websocket.create_connection(_server.url, sslopt={"ca_certs": _bundle}).close()
    else:
        clients.connect(_name.partition(",")[0], _server).close()


def cost(count: int) -> float:
    """Milliseconds of processor time for a connection."""
    with no_gc():
        since = cpu_seconds()
        for _ in range(count):
            _connect()
        return (cpu_seconds() - since) / count * 1000


def run(bench: Bench, servers: Servers) -> None:
    count = 10 if bench.quick else 40
    workers: dict[str, Worker] = {}
    broken: list[str] = []

    def measure(name: str) -> float:
        while True:
            try:
                if name not in workers:
                    workers[name] = Worker("benchmarks.connect", client=name, server=list(servers.tls))
                return float(workers[name].call("cost", count=count, patience=20.0))
            except (
                RuntimeError
            ) as error:  # a thread of websockets.sync reads while another writes: see race.py
                broken.append(f"{name} once: {error}")
                workers.pop(name).close()
                if name == OURS or len(broken) > 10:
                    raise

    try:
        names = (OURS, clients.RAW, WSC, DEFAULT, WSS)
        samples = interleave(bench.rounds, {name: lambda n=name: measure(n) for name in names})
    finally:
        for worker in workers.values():
            worker.close()
    goals = [Goal(WSS, at_least=2.0), Goal(DEFAULT, at_least=1.0)]
    bench.add(
        Row(
            "connect",
            "connect and close over TLS: client's CPU",
            "ms",
            samples,
            goals,
            floors=[clients.RAW],
            note="; ".join(["the raw socket does not resume its TLS sessions, and says no goodbye", *broken]),
        )
    )
