"""What was measured, for people: tables in the terminal and in Markdown, a picture for each group of rows.

    python -m benchmarks.report RESULTS.json docs/performance.md

puts the tables between the two marks of the document.
"""

from __future__ import annotations

import json
import math
import os
import platform
import ssl
import statistics
import sys
from collections.abc import Iterator, Sequence
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .harness import OURS, Bench, Row, figure

__all__ = ["GROUPS", "read", "table", "write"]

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
GROUPS = {
    "pools": "Checkout and return",
    "transport": "Messages over one connection",
    "connect": "Opening a connection",
    "race": "Two threads on one connection",
    "idle": "Idle connections",
    "sessions": "Realtime sessions, 60 ms away",
    "scale": "Few and many connections",
    "metrics": "Being watched",
    "calls": "Telephone calls",
}
PACKAGES = (
    "websocket-client websockets openai simple-websocket aiohttp picows "
    "psycopg-pool SQLAlchemy redis urllib3 DBUtils httpcore"
)


def machine(bench: Bench, language: str) -> dict[str, Any]:
    """What the figures depend on."""
    versions = {}
    for name in PACKAGES.split():
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            pass
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "openssl": ssl.OPENSSL_VERSION,
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "rounds": bench.rounds,
        "quick": bench.quick,
        "server": language,
        "packages": versions,
        "missing": sorted(bench.missing),
    }


def write(directory: Path, bench: Bench, about: dict[str, Any]) -> list[Path]:
    """Write ``results.json`` and a picture for each group; return the files."""
    directory.mkdir(parents=True, exist_ok=True)
    results = directory / "results.json"
    data = {"about": about, "rows": [row.as_dict() for row in bench.rows]}
    results.write_text(json.dumps(data, indent=1) + "\n")
    files = [results]
    for group, title in GROUPS.items():
        rows = [row for row in bench.rows if row.group == group and len(row.samples) > 1]
        if rows:
            picture = directory / f"{group}.svg"
            picture.write_text(svg(title, rows))
            files.append(picture)
    return files


def read(path: Path) -> tuple[dict[str, Any], list[Row]]:
    data = json.loads(path.read_text())
    return data["about"], [Row.from_dict(row) for row in data["rows"]]


# -- tables

HEAD = ("what", "ours", "against", "goal", "reached (lowest to highest round)", "")


def table(rows: Sequence[Row]) -> Iterator[tuple[str, str, str, str, str, str]]:
    """One line for each goal."""
    for row in rows:
        ours = f"{figure(statistics.median(row.samples[OURS]))} {row.unit}".strip()
        for goal, reached, enough in row.judged():
            text = f"{figure(reached.median)}{'x' if goal.against and not goal.is_difference else ''}"
            if reached.low != reached.high:
                text += f" ({figure(reached.low)} to {figure(reached.high)})"
            yield row.name, ours, goal.against or "itself", str(goal), text, "yes" if enough else "NO"


def markdown(about: dict[str, Any], rows: Sequence[Row]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in about["packages"].items())
    lines = [
        f"{about['python']}, {about['openssl']}, {about['system']} with {about['cores']} cores, "
        f"{about['rounds']} rounds, load {about['load']} at the end. {packages}.",
        "",
    ]
    reached = [line[-1] for line in table(rows)]
    lines += [f"**{reached.count('yes')} of {len(reached)} goals reached.**", ""]
    for group, title in GROUPS.items():
        mine = [row for row in rows if row.group == group]
        if not mine:
            continue
        lines += [f"### {title}", ""]
        lines += _block(("what", "ours", "against", "goal", "reached", ""), table(mine))
        lines += [
            "",
            "Each figure as a multiple of ours (of a time: below 1 is faster than we are), medians:",
            "",
        ]
        lines += _matrix(mine)
        lines += [f"{row.name}: {row.note}" for row in mine if row.note]
        lines.append("")
    return "\n".join(lines)


def _block(head: Sequence[str], rows: Iterator[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join("**no**" if cell == "NO" else cell for cell in row) + " |" for row in rows]
    return lines


def _matrix(rows: Sequence[Row]) -> list[str]:
    """Every contestant's figure as a multiple of ours; rows with the same contestants share a table."""
    lines: list[str] = []
    seen: list[tuple[str, ...]] = []
    for row in rows:
        names = tuple(name for name in row.samples if name != OURS)
        if names and names not in seen:
            seen.append(names)
    for names in seen:
        same = [row for row in rows if tuple(name for name in row.samples if name != OURS) == names]
        body = (
            [
                row.name,
                f"{figure(statistics.median(row.samples[OURS]))} {row.unit}".strip(),
                *(row.multiple(name) for name in names),
            ]
            for row in same
        )
        lines += [*_block(("", "ours", *names), body), ""]
    return lines


# -- pictures

BAR, GAP, LEFT, WIDTH = 13, 22, 230, 900
COLOURS = {OURS: "#0a7d55"}
FLOOR, PEER = "#9aa5b1", "#c8733a"


def svg(title: str, rows: Sequence[Row]) -> str:
    """Bars on a logarithmic scale: each contestant's figure as a multiple of ours."""
    values = [row.times(name) for row in rows for name in row.samples]
    low = min(-1, math.floor(math.log10(max(min(values), 1e-3))))
    high = max(1, math.ceil(math.log10(min(max(values), 1e6))))
    span = WIDTH - LEFT - 70

    def at(value: float) -> float:
        place = math.log10(min(max(value, 10**low), 10**high))
        return LEFT + span * (place - low) / (high - low)

    parts: list[str] = []
    y = 60
    for row in rows:
        more = ", more is better" if row.more_is_better else ""
        ours = figure(statistics.median(row.samples[OURS]))
        parts.append(_text(10, y, f"{row.name} ({OURS}: {ours} {row.unit}{more})", weight="bold"))
        y += 8
        for name in row.samples:
            value = row.times(name)
            colour = COLOURS.get(name, FLOOR if name in row.floors else PEER)
            start, end = sorted((at(1.0), at(value)))
            parts.append(_text(LEFT - 8, y + BAR - 3, name, anchor="end"))
            parts.append(
                f'<rect x="{start:.1f}" y="{y}" width="{max(end - start, 2):.1f}" height="{BAR - 2}" '
                f'fill="{colour}"/>'
            )
            label = end + 5 if value >= 1 else at(1.0) + 5
            parts.append(_text(label, y + BAR - 3, row.multiple(name)))
            y += BAR
        y += GAP
    lines = [
        f'<line x1="{at(10.0**power):.1f}" y1="44" x2="{at(10.0**power):.1f}" y2="{y - GAP}" '
        f'stroke="{"#333" if power == 0 else "#ddd"}"/>'
        + _text(at(10.0**power), 40, f"{10.0**power:g}x", anchor="middle")
        for power in range(low, high + 1)
    ]
    head = _text(10, 20, f"{title}: figures as multiples of {OURS}'s (logarithmic)", size=15, weight="bold")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" font-family="sans-serif">\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join([head, *lines, *parts]) + "\n</svg>\n"
    )


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 10, weight: str = "normal"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
        f'font-weight="{weight}" fill="#222">{escape(text)}</text>'
    )


def main(arguments: Sequence[str]) -> int:
    results, document = map(Path, arguments)
    about, rows = read(results)
    before, _, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        print(f"{document} has no {BEGIN} and {END}", file=sys.stderr)
        return 1
    text = f"{before}{BEGIN}\n{markdown(about, rows)}\n{END}{after}"
    document.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
