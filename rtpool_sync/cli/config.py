"""``rtpool config``: the settings in force and where each comes from. Secrets are masked."""

from __future__ import annotations

import argparse
import json
import os

from ..config import SETTINGS, PoolConfig
from ..errors import ConfigError
from ..settings import DEFAULT_FILES, load_with_sources, places, pool_names
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
        for note in _notes(options.pool, config):
            print(note)
        table(("setting", "value", "from", "variable"), rows, figures=False)
    return 0


def _notes(name: str, config: PoolConfig) -> list[str]:
    """What explains most surprises: another folder, another environment, a slip in a name, no key."""
    read = places()
    if read:
        environment = os.environ.get("ENV_FOR_DYNACONF")
        chosen = (
            f"ENV_FOR_DYNACONF={environment}" if environment else "ENV_FOR_DYNACONF is not set: development"
        )
        notes = [f"Read: {', '.join(read)} ({chosen})"]
    else:
        notes = [f"Read: no file (there is no {' and no '.join(DEFAULT_FILES)} in {os.getcwd()})"]
    tables = pool_names()
    if name not in tables:
        others = ", ".join(tables[1:]) or "none"
        notes.append(
            f"No table realtime_pools.{name}: these are the general settings. Pools with one: {others}"
        )
    try:
        config.require_key()
    except ConfigError as error:
        notes.append(f"Missing: {error}")
    return notes
