"""``rtpool config``: the settings in force and where each comes from. Secrets are masked."""

from __future__ import annotations

import argparse
import json

from ..config import SETTINGS
from ..settings import load_with_sources
from ._report import table

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pool", default="default", metavar="NAME", help="of a pool named in the settings")
    parser.add_argument("--json", action="store_true", help="for programs: name, value, source, variable")


def run(options: argparse.Namespace) -> int:
    config, sources = load_with_sources(options.pool)
    shown = config.describe()
    rows = [
        (name, shown[name], sources.get(name, "default"), setting.env or "")
        for name, setting in SETTINGS.items()
    ]
    if options.json:
        keys = ("name", "value", "source", "variable")
        print(json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=2))
    else:
        print(f"Settings of pool {options.pool!r}, which connects to {config.redacted_url}")
        table(("setting", "value", "from", "variable"), rows, figures=False)
    return 0
