"""The status page: what the pools of a process are doing, for people.

The server writes the whole page, so it can be read without JavaScript. The
script only fetches the page again and puts the new ``main`` in place of the old:
there is one way to draw everything, and it is here.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING

from . import __version__
from .errors import redact

if TYPE_CHECKING:
    from .events import PoolEvent
    from .pool import RealtimePool
    from .stats import ConnectionStats, PoolStats

__all__ = ["SCRIPT", "STYLE", "render"]

#: Rows at most in the table of connections: a page of thousands helps nobody.
ROWS = 200
#: Characters of a message at most; its first line only, for the rest may be a stack of the application.
TEXT = 200

#: Columns of the table of connections; a star marks numbers.
CONNECTION = ("#*", "state", "age*", "remaining*", "sessions*", "round trip*", "in use for*", "last error")
STATES = ("in_use", "idle", "connecting", "resetting", "closing")


def render(pools: list[RealtimePool]) -> str:
    """The page as HTML."""
    sections = "".join(_pool(pool) for pool in pools) or "<p>There is no pool in this process yet.</p>"
    moment = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    links = " ".join(f'<a href="{name}">{name}</a>' for name in ("health", "stats", "config", "metrics"))
    place = f"Process {os.getpid()} on {escape(socket.gethostname())}, rtpool_sync {__version__}"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Realtime pools</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="status.css">
<script src="status.js" defer></script>
<noscript><meta http-equiv="refresh" content="5"></noscript>
</head>
<body>
<header>
<h1>Realtime pools</h1>
<nav>{links}</nav>
<p id="trouble" role="status" hidden>No answer: these figures are old.</p>
</header>
<main id="live">
{sections}
<footer>{place}, <time>{moment}</time></footer>
</main>
</body>
</html>
"""


def _pool(pool: RealtimePool) -> str:
    health, stats = pool.health(), pool.stats()
    rows = pool.connections()
    shown = "".join(_connection(row) for row in rows[:ROWS])
    if len(rows) > ROWS:
        shown += f'<tr><td colspan="8">and {len(rows) - ROWS} more</td></tr>'
    events = "".join(_event(event) for event in reversed(pool.events()))
    none = '<tr><td colspan="8">none</td></tr>'
    return f"""<section>
<h2>{escape(pool.name)} <span class="badge {health.status}">{health.status}</span></h2>
<p>{_text(health.message)}</p>
{_bar(stats)}
{_figures(stats)}
<h3>How long it takes</h3>
<div class="wide"><table class="times">
<thead>{_head("since the start", "half*", "95 %*", "99 %*", "count*")}</thead>
<tbody>{_times(stats)}</tbody>
</table></div>
<h3>Connections</h3>
<div class="wide"><table class="connections">
<thead>{_head(*CONNECTION)}</thead>
<tbody>{shown or none}</tbody>
</table></div>
<h3>Last events</h3>
<div class="wide"><table class="events">
<thead>{_head("time (UTC)", "event", "#*", "reason", "message")}</thead>
<tbody>{events or none}</tbody>
</table></div>
</section>
"""


def _head(*columns: str) -> str:
    cells = (
        f'<th class="n">{name[:-1]}</th>' if name.endswith("*") else f"<th>{name}</th>" for name in columns
    )
    return f"<tr>{''.join(cells)}</tr>"


def _bar(stats: PoolStats) -> str:
    """The pool's capacity, by state. An SVG: attributes are no inline style, which the policy forbids."""
    width = max(stats.max_connections, stats.total_connections)
    rects, legend, at = [], [], 0
    for state in STATES:
        count = getattr(stats, state)
        word = state.replace("_", " ")
        if count:
            rects.append(
                f'<rect class="{state}" x="{at}" y="0" width="{count}" height="1">'
                f"<title>{count} {word}</title></rect>"
            )
        at += count
        legend.append(f'<li class="{state}"><b>{count}</b> {word}</li>')
    legend.append(f'<li class="free"><b>{width - at}</b> free</li>')
    return (
        f'<svg class="bar" viewBox="0 0 {width} 1" preserveAspectRatio="none" role="img" '
        f'aria-label="{stats.total_connections} of {stats.max_connections} connections">'
        f"{''.join(rects)}</svg>"
        f'<ul class="legend">{"".join(legend)}<li>of at most <b>{stats.max_connections}</b></li></ul>'
    )


def _figures(stats: PoolStats) -> str:
    c = stats.counters
    figures = (
        ("waiting", str(stats.waiting), bool(stats.waiting)),
        ("oldest wait", _seconds(stats.oldest_wait_seconds), stats.oldest_wait_seconds > 1),
        ("longest in use", _seconds(stats.oldest_checkout_seconds), False),
        ("healthy", f"{stats.healthy_connections} of {stats.total_connections}", False),
        ("sessions", f"{stats.total_sessions_handled:,}", False),
        ("failed checkouts", f"{sum(c.checkouts_failed.values()):,}", any(c.checkouts_failed.values())),
        ("opened", f"{c.opened:,}", False),
        ("connect errors", f"{sum(c.connect_errors.values()):,}", any(c.connect_errors.values())),
        ("leaks", f"{c.leaks:,}", bool(c.leaks)),
    )
    items = (
        f"<div{' class=notable' if notable else ''}><dt>{name}</dt><dd>{value}</dd></div>"
        for name, value, notable in figures
    )
    return f'<dl class="figures">{"".join(items)}</dl>'


def _times(stats: PoolStats) -> str:
    c = stats.counters
    rows = (
        ("checkout wait", c.checkout_wait),
        ("reset", c.reset),
        ("connect", c.connect),
        ("ping round trip", c.ping_rtt),
        ("session", c.session_duration),
    )
    return "".join(
        _row(
            [name],
            [_seconds(times.quantile(q)) for q in (0.5, 0.95, 0.99)] + [f"{sum(times.counts):,}"],
        )
        for name, times in rows
    )


def _row(words: Iterable[str], numbers: Iterable[str]) -> str:
    cells = "".join(f"<td>{word}</td>" for word in words)
    cells += "".join(f'<td class="n">{n}</td>' for n in numbers)
    return f"<tr>{cells}</tr>"


def _connection(row: ConnectionStats) -> str:
    return (
        f'<tr><td class="n">{row.id}</td><td class="{row.state}">{row.state.replace("_", " ")}</td>'
        f'<td class="n">{_seconds(row.age)}</td><td class="n">{_seconds(row.remaining)}</td>'
        f'<td class="n">{row.sessions} of {row.max_sessions}</td><td class="n">{_seconds(row.rtt)}</td>'
        f'<td class="n">{_seconds(row.in_use)}</td><td>{_text(row.last_error)}</td></tr>'
    )


def _event(event: PoolEvent) -> str:
    moment = time.strftime("%H:%M:%S", time.gmtime(event.time)) + f".{int(event.time % 1 * 1000):03d}"
    kind = event.kind.replace("_", " ") + (f" × {event.count:,}" if event.count > 1 else "")
    number = "" if event.connection is None else event.connection
    bad = "" if event.kind in ("opened", "closed") else ' class="bad"'
    return (
        f'<tr{bad}><td>{moment}</td><td>{kind}</td><td class="n">{number}</td>'
        f"<td>{escape(event.reason)}</td><td>{_text(event.message)}</td></tr>"
    )


def _text(text: str) -> str:
    line = redact(text).partition("\n")[0]
    return escape(line if len(line) <= TEXT else line[: TEXT - 1] + "…")


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    if value >= 3600:
        return f"{value // 3600:.0f} h {value % 3600 // 60:02.0f} min"
    if value >= 60:
        return f"{value // 60:.0f} min {int(value % 60):02d} s"
    if value >= 1:
        return f"{value:.1f} s"
    return f"{value * 1000:.3g} ms" if value else "0 s"


SCRIPT = """"use strict";
(() => {
  const live = document.getElementById("live");
  const trouble = document.getElementById("trouble");

  function reading() {
    const selection = document.getSelection();
    return selection && !selection.isCollapsed && live.contains(selection.anchorNode);
  }

  async function refresh() {
    if (!document.hidden && !reading()) {
      try {
        const patience = AbortSignal.timeout(5000);
        const answer = await fetch(location.pathname, { cache: "no-store", signal: patience });
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        const fresh = page.getElementById("live");
        if (!answer.ok || !fresh) throw new Error(String(answer.status));
        live.replaceChildren(...fresh.childNodes);
        trouble.hidden = true;
      } catch {
        trouble.hidden = false;
      }
      document.body.classList.toggle("old", !trouble.hidden);
    }
    setTimeout(refresh, 1000);
  }

  setTimeout(refresh, 1000);
})();
"""

STYLE = """:root {
  color-scheme: light dark;
  --ground: #fff; --text: #1c2128; --faint: #59636e; --line: #d5dae0; --free: #eceff2;
  --in-use: #2f6fdb; --idle: #2f9e58; --connecting: #c98a00; --resetting: #8b5cd6; --closing: #8a929b;
  --good: #1a7f37; --warn: #9a6700; --bad: #cf222e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #11151a; --text: #e4e8ec; --faint: #98a2ad; --line: #303740; --free: #252b33;
    --in-use: #5b93f0; --idle: #46b873; --connecting: #e0a832; --resetting: #a987e8; --closing: #737c86;
    --good: #4ac26b; --warn: #e0a832; --bad: #ff7b72;
  }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 75rem; background: var(--ground); color: var(--text);
  font: 15px/1.45 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
header { display: flex; flex-wrap: wrap; gap: 0 1.5rem; align-items: baseline; }
h1 { font-size: 1.3rem; margin: 0; }
h2 { font-size: 1.15rem; margin: 0; }
h3 { font-size: .95rem; margin: 1.2rem 0 .3rem; color: var(--faint); }
a { color: var(--in-use); }
p { margin: .3rem 0 .8rem; }
section { border-top: 1px solid var(--line); margin-top: 1rem; padding-top: 1rem; }
.badge { font-size: .75rem; padding: .1rem .5rem; border-radius: 1rem; border: 1px solid;
  vertical-align: middle; }
.healthy { color: var(--good); } .degraded { color: var(--warn); } .unhealthy { color: var(--bad); }
.bar { display: block; width: 100%; height: 1.6rem; background: var(--free); border-radius: .25rem; }
rect.in_use { fill: var(--in-use); } rect.idle { fill: var(--idle); }
rect.connecting { fill: var(--connecting); } rect.resetting { fill: var(--resetting); }
rect.closing { fill: var(--closing); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none; margin: .4rem 0; padding: 0; }
.legend li[class]::before { content: ""; display: inline-block; width: .7em; height: .7em; margin-right: .4em;
  border-radius: .15em; background: var(--free); border: 1px solid var(--line); }
.legend li.in_use::before { background: var(--in-use); }
.legend li.idle::before { background: var(--idle); }
.legend li.connecting::before { background: var(--connecting); }
.legend li.resetting::before { background: var(--resetting); }
.legend li.closing::before { background: var(--closing); }
.figures { display: flex; flex-wrap: wrap; gap: .3rem 2rem; margin: .8rem 0; }
dt { color: var(--faint); font-size: .8rem; } dd { margin: 0; font-size: 1.15rem; }
.notable dd { color: var(--warn); font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .15rem .8rem .15rem 0; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { font-weight: 600; font-size: .8rem; color: var(--faint); }
td:last-child { white-space: normal; width: 99%; }
th.n, td.n { text-align: right; }
td.in_use { color: var(--in-use); } td.idle { color: var(--idle); }
td.connecting { color: var(--connecting); }
td.resetting { color: var(--resetting); } td.closing { color: var(--closing); }
tr.bad td { color: var(--bad); }
.times { width: auto; }
.times td:last-child { width: auto; }
footer { margin-top: 1.5rem; color: var(--faint); font-size: .8rem; }
#trouble { color: var(--bad); margin: 0; }
body.old main { opacity: .5; }
"""
