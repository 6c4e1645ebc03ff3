"""All rows, one after another."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

from . import calls, connect, idle, metrics, pools, race, report, scale, sessions, transport
from .harness import Bench, Row
from .servers import Servers

__all__ = ["GROUPS", "run"]

GROUPS: dict[str, Callable[[Bench, Servers], None]] = {
    "pools": lambda bench, servers: pools.run(bench, servers.plain),
    "transport": transport.run,
    "connect": connect.run,
    "race": race.run,
    "idle": idle.run,
    "sessions": lambda bench, _: sessions.run(bench),
    "scale": scale.run,
    "metrics": metrics.run,
    "calls": lambda bench, _: calls.run(bench),
}


def run(
    only: Collection[str], out: Path, *, quick: bool = False, rounds: int | None = None
) -> tuple[list[Row], list[Path], bool]:
    """Measure the groups ``only`` (none: all); return rows, files written, whether all went well."""
    bench = Bench(quick, rounds or (2 if quick else 7), 0.02 if quick else 0.15)
    broken, files = False, []
    with Servers() as servers:
        for name, measure in GROUPS.items():
            if not only or name in only:
                since = time.monotonic()
                print(f"{report.GROUPS[name]} ...", flush=True)
                try:
                    measure(bench, servers)
                except RuntimeError as error:  # the other groups are of use even so
                    print(f"  broken off: {error}", file=sys.stderr)
                    broken = True
                print(f"  ({time.monotonic() - since:.0f} s)", flush=True)
                files = report.write(out, bench, report.machine(bench, servers.language))
    if bench.missing:
        print(f"Not installed, so not measured: {', '.join(sorted(bench.missing))}")
    return bench.rows, files, not broken
