"""The command ``rtpool``: one module for each subcommand, imported only when it is the one asked for."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from .. import __version__
from ..errors import ConfigError, RtpoolError

__all__ = ["main"]

#: Name → a line for the help. The module of that name has ``add_arguments(parser)`` and ``run(options)``.
COMMANDS = {
    "demo": "make the same spoken calls by hand and with the pool, and compare",
    "emulator": "serve the Realtime protocol on this machine",
    "bench": "measure the pool beside everything one would use instead",
    "doctor": "find out what works and what does not, and what to do about it",
    "watch": "show what the pools of a running application are doing",
    "config": "print the settings in force and where each one comes from",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``rtpool`` with ``argv`` (default: the command line's) and return the exit code.

    0: done. 1: it was tried and failed. 2: wrong usage or settings. 130: interrupted.
    """
    _make_writable()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        module, parser = _parser(arguments)
        options = parser.parse_args(arguments)
        if module is None:
            parser.print_help()
            return 2
        code: int = module.run(options)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # `rtpool config | head`: nobody reads on. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ConfigError as error:
        print(f"rtpool: {error}", file=sys.stderr)
        return 2
    except (ImportError, OSError, RtpoolError) as error:
        if isinstance(error, ImportError) and "pip install" not in str(error):
            raise  # a defect; a missing extra says how to install it
        print(f"rtpool: {error}", file=sys.stderr)
        return 1


def _make_writable() -> None:
    """What the encoding lacks becomes a question mark; what goes to a closed stream goes nowhere."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # for all that follows
        elif getattr(stream, "errors", "") == "strict":
            stream.reconfigure(errors="replace")


def _parser(arguments: Sequence[str]) -> tuple[ModuleType | None, argparse.ArgumentParser]:
    """The parser, with the arguments of the one subcommand that was asked for, and that one's module."""
    parser = argparse.ArgumentParser(
        prog="rtpool", description="A pool of OpenAI Realtime connections: its tools for the command line."
    )
    parser.add_argument("--version", action="version", version=f"rtpool_sync {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    module = None
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == chosen:
            module = importlib.import_module(f"{__name__}.{name}")
            module.add_arguments(command)
    return module, parser
