"""``rtpool bench``: how fast the pool is beside everything one would use instead, on this machine."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from . import _report
from ._arguments import whole

__all__ = ["add_arguments", "run"]

ROOT = Path(__file__).resolve().parents[2]
GROUPS = ("pools", "transport", "connect", "race", "idle", "sessions", "scale", "metrics", "calls")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "only", nargs="*", choices=[[], *GROUPS], metavar="GROUP", help=f"of {', '.join(GROUPS)} (all)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a minute or two instead of fifteen; figures too rough to keep"
    )
    parser.add_argument("--rounds", type=whole(1, 1000), metavar="N", help="turns that everybody takes (7)")
    parser.add_argument(
        "--out", type=Path, default=Path("build/bench"), metavar="DIR", help="for JSON and SVG (build/bench)"
    )


def run(options: argparse.Namespace) -> int:
    """Measure and print. The exit code says whether it ran, not who won."""
    if not (ROOT / "benchmarks" / "run.py").exists():
        raise FileNotFoundError(
            "the benchmarks are not part of the installed package: use a checkout's `make bench`"
        )
    sys.path.insert(0, str(ROOT))
    bench = importlib.import_module("benchmarks.run")
    lines = importlib.import_module("benchmarks.report")
    rows, files, fine = bench.run(options.only, options.out, quick=options.quick, rounds=options.rounds)
    _report.table(lines.HEAD, list(lines.table(rows)), figures=False)
    print("Written: " + ", ".join(str(file) for file in files))
    return 0 if fine else 1
