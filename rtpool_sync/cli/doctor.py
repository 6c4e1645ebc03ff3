"""``rtpool doctor``: what works and what does not, from the settings to a connection used twice."""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap

from ..diagnosis import Finding, diagnose
from ._arguments import real

__all__ = ["add_arguments", "run"]

INDENT = " " * 29
WORDS = {"ok": "ok", "warning": "warning", "failed": "FAILED", "skipped": "-"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pool", default="default", metavar="NAME", help="of a pool named in the settings")
    parser.add_argument("--json", action="store_true", help="for programs: all findings as one document")
    parser.add_argument(
        "--no-turn",
        action="store_true",
        help="do not have the model answer, which costs a fraction of a cent",
    )
    parser.add_argument(
        "--timeout",
        type=real(0.001, 86400, "a number of seconds"),
        default=30.0,
        metavar="S",
        help="for the answer, and for the reset (30)",
    )


def run(options: argparse.Namespace) -> int:
    """Examine and print. 0: all works, perhaps with warnings; 1: a phase failed; 2: the settings did."""
    findings = []
    for finding in diagnose(options.pool, turn=not options.no_turn, timeout=options.timeout):
        findings.append(finding)
        if not options.json:
            _show(finding)
    failed = next((finding.phase for finding in findings if finding.status == "failed"), None)
    warnings = sum(finding.status == "warning" for finding in findings)
    if options.json:
        document = {
            "pool": options.pool,
            "ok": failed is None,
            "failed": failed,
            "findings": [finding.as_dict() for finding in findings],
        }
        print(json.dumps(document, indent=2))
    elif failed is not None:
        print(f"\nIt does not work: {failed}.")
    else:
        seen = f", with {warnings} warning{'s' if warnings > 1 else ''}" if warnings else ""
        print(f"\nEverything works{seen}.")
    return 0 if failed is None else 2 if failed == "settings" else 1


def _show(finding: Finding) -> None:
    width = min(120, max(72, shutil.get_terminal_size((110, 24)).columns))
    time = "" if finding.seconds is None else f"{finding.seconds * 1000:.0f} ms"
    head = f"{WORDS[finding.status]:<8} {finding.phase:<9} {time:>8}  "
    for text in finding.detail.splitlines() or [""]:
        print(textwrap.fill(text, width, initial_indent=head, subsequent_indent=INDENT) or head.rstrip())
        head = INDENT
    for text in finding.advice.splitlines():
        print(textwrap.fill(text, width, initial_indent=f"{INDENT}→ ", subsequent_indent=f"{INDENT}  "))
    print(end="", flush=True)
