"""``rtpool emulator``: the embedded Realtime server on its own, to develop and test other programs with."""

from __future__ import annotations

import argparse

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from ..emulator import command

    command.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    from ..emulator import command

    return command.run(options)
