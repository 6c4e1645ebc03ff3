"""The pools of a watched application, as they stand on a terminal. Needs rich."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.padding import Padding
from rich.text import Text

from ._sight import STATES, Sight, failed, labels, number, span

__all__ = ["picture"]

COLORS = {"in_use": "blue", "idle": "green", "connecting": "yellow", "resetting": "cyan", "closing": "red"}
BADGES = {"healthy": "green", "degraded": "yellow", "unhealthy": "red"}
BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 60


def picture(url: str, sight: Sight) -> Group:
    """What stands on the terminal."""
    status, message = sight.state
    lines: list[Any] = [
        Text.assemble(("Realtime pools  ", "bold"), url, "  ", time.strftime("%H:%M:%S"), overflow="ellipsis")
    ]
    if sight.trouble is not None:
        old = f"These figures are {span(sight.age)} old. "
        lines.append(Text(f"{old}{sight.trouble}", style="bold red"))
    elif sight.processes > 1:
        lines.append(Text(f"{sight.processes} processes have answered in turn; added up.", style="dim"))
    if not sight.pools():
        lines.append(Text(message))
    for name, pool in sight.pools().items():
        status, message = sight.state_of(name)
        lines += [
            Text(""),
            Text.assemble((name, "bold"), "  ", (status, BADGES.get(status, "")), "  ", message),
            Padding(_bar(pool), (0, 2)),
            Padding(_legend(pool), (0, 2)),
            Padding(_figures(pool), (0, 2)),
            Padding(Text(_history(sight.history.get(name, ()), number(pool, "max_connections"))), (0, 2)),
        ]
        for key in ("checkouts", "connections_closed", "connect_errors", "resets", "health_checks"):
            told = ", ".join(f"{label} {count:,.0f}" for label, count in labels(pool, key).items() if count)
            if told:
                lines.append(Padding(Text.assemble((f"{key.replace('_', ' ')}: ", "dim"), told), (0, 2)))
    return Group(*lines, Text(""), Text("Ctrl-C ends.", style="dim"))


def _bar(pool: Mapping[str, Any]) -> Text:
    whole = max(number(pool, "max_connections"), sum(number(pool, state) for state in STATES), 1)
    bar, at, drawn = Text(no_wrap=True), 0.0, 0
    for state in STATES:
        at += number(pool, state)
        end = round(at / whole * WIDTH)
        bar.append("█" * (end - drawn), COLORS[state])
        drawn = end
    bar.append("░" * (WIDTH - drawn), "dim")
    return bar


def _legend(pool: Mapping[str, Any]) -> Text:
    legend = Text()
    for state in STATES:
        legend.append("■ ", COLORS[state])
        legend.append(f"{number(pool, state):,.0f} {state.replace('_', ' ')}   ")
    return legend.append(f"of at most {number(pool, 'max_connections'):,.0f}")


def _figures(pool: Mapping[str, Any]) -> Text:
    rates = pool.get("per_second", {})

    def rate(key: str) -> str:
        return f" ({rates[key]:,.1f}/s)" if key in rates else ""

    waiting, leaks = number(pool, "waiting"), number(pool, "leaks")
    refused = failed(pool)
    errors = sum(labels(pool, "connect_errors").values())
    figures = (
        (f"waiting {waiting:,.0f}, oldest {span(number(pool, 'oldest_wait_seconds'))}", waiting),
        (f"longest in use {span(number(pool, 'oldest_checkout_seconds'))}", 0),
        (f"sessions {pool['total_sessions_handled']:,.0f}{rate('sessions')}", 0),
        (f"opened {number(pool, 'connections_opened'):,.0f}{rate('opened')}", 0),
        (f"failed checkouts {refused:,.0f}{rate('failed')}", refused),
        (f"connect errors {errors:,.0f}{rate('connect_errors')}", errors),
        (f"leaks {leaks:,.0f}", leaks),
    )
    line = Text()
    for text, notable in figures:
        line.append(text, "yellow" if notable else "")
        line.append("   ")
    return line


def _history(values: Any, most: float) -> str:
    """In use over the last looks, as blocks."""
    top = max(most, *values, 1) if values else 1
    drawn = "".join(BLOCKS[min(7, int(value / top * 8))] if value else " " for value in values)
    return f"in use, the last {len(values)} looks: {drawn}"
