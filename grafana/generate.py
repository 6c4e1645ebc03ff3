"""Writes the dashboards: ``python grafana/generate.py``. Nothing but the standard library is needed.

Classic JSON model, so that files can be imported, provisioned or put into a
sidecar as they are: the data source is a variable, not an input of the import
dialog.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
#: What every query is limited to.
S = 'job=~"$job", instance=~"$instance", pool=~"$pool"'
RATE = "$__rate_interval"
SCHEMA_VERSION = 39  # of Grafana 11; newer ones migrate it

Steps = list[tuple[float | None, str]]
Query = tuple[str, str]  # expression, legend

GREEN: Steps = [(None, "green")]
#: From a line of the overview to the pool whose line it is.
ONE_POOL = {
    "title": "This pool",
    "url": "/d/rtpool-pool?var-pool=${__field.labels.pool}&${datasource:queryparam}&${__url_time_range}",
    "targetBlank": False,
}
STATE_COLOURS = {
    "in_use": "blue",
    "idle": "green",
    "connecting": "yellow",
    "resetting": "purple",
    "closing": "text",
}


def limits(warn: float, bad: float) -> Steps:
    return [(None, "green"), (warn, "orange"), (bad, "red")]


def rate(metric: str, *labels: str) -> str:
    """The rate of a counter per second."""
    return f"rate({metric}{{{', '.join((*labels, S))}}}[{RATE}])"


def quantile(q: float, metric: str, by: str = "") -> str:
    groups = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, sum by ({groups}) ({rate(metric + '_bucket')}))"


def quantiles(metric: str, *qs: float) -> list[Query]:
    return [(quantile(q, metric), f"p{q * 100:g}") for q in qs]


class Board:
    """Panels, placed from left to right in rows of 24 columns."""

    def __init__(self) -> None:
        self.panels: list[dict[str, Any]] = []
        self._x = self._y = self._height = 0

    def row(self, title: str) -> None:
        self._break()
        self.panels.append(
            {
                "id": len(self.panels) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"x": 0, "y": self._y, "w": 24, "h": 1},
                "panels": [],
            }
        )
        self._y += 1

    def _break(self) -> None:
        self._y += self._height
        self._x = self._height = 0

    def _add(
        self, kind: str, title: str, text: str, size: tuple[int, int], queries: list[Query]
    ) -> dict[str, Any]:
        width, height = size
        if self._x + width > 24:
            self._break()
        panel: dict[str, Any] = {
            "id": len(self.panels) + 1,
            "type": kind,
            "title": title,
            "description": text,
            "datasource": SOURCE,
            "gridPos": {"x": self._x, "y": self._y, "w": width, "h": height},
            "targets": [
                {
                    "refId": chr(ord("A") + number),
                    "datasource": SOURCE,
                    "expr": expression,
                    "legendFormat": legend,
                    "editorMode": "code",
                    "range": True,
                }
                for number, (expression, legend) in enumerate(queries)
            ],
        }
        self._x += width
        self._height = max(self._height, height)
        self.panels.append(panel)
        return panel

    def stat(
        self, title: str, text: str, unit: str, query: str, steps: Steps = GREEN, width: int = 4
    ) -> None:
        panel = self._add("stat", title, text, (width, 4), [(query, title)])
        panel["fieldConfig"] = {
            "defaults": {
                "unit": unit,
                "min": 0,
                "color": {"mode": "thresholds"},
                "thresholds": thresholds(steps),
                "mappings": [],
            },
            "overrides": [],
        }
        panel["options"] = {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "value",
            "graphMode": "area",
            "orientation": "auto",
            "textMode": "value",
            "justifyMode": "auto",
        }

    def lines(
        self,
        title: str,
        text: str,
        unit: str,
        queries: list[Query],
        *,
        steps: Steps | None = None,
        stacked: bool = False,
        colours: dict[str, str] | None = None,
        dashed: str = "",
        leads: bool = False,
        width: int = 12,
    ) -> None:
        """Lines over time. ``leads``: a click on a line, which has the label ``pool``, leads to that pool."""
        panel = self._add("timeseries", title, text, (width, 8), queries)
        many = any(re.search(r"by \((state|outcome|reason|kind)\)", query) for query, _ in queries)
        overrides = [
            {
                "matcher": {"id": "byName", "options": name},
                "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
            }
            for name, colour in (colours or {}).items()
        ]
        if dashed:
            overrides.append(
                {
                    "matcher": {"id": "byName", "options": dashed},
                    "properties": [
                        {"id": "custom.stacking", "value": {"mode": "none", "group": "A"}},
                        {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [10, 10]}},
                        {"id": "custom.fillOpacity", "value": 0},
                        {"id": "color", "value": {"mode": "fixed", "fixedColor": "red"}},
                    ],
                }
            )
        panel["fieldConfig"] = {
            "defaults": {
                "unit": unit,
                "min": 0,
                "color": {"mode": "palette-classic"},
                "thresholds": thresholds(steps or GREEN),
                "mappings": [],
                "custom": {
                    "drawStyle": "line",
                    "lineWidth": 1,
                    "fillOpacity": 30 if stacked else 10,
                    "showPoints": "never",
                    "spanNulls": False,
                    "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
                    "thresholdsStyle": {"mode": "dashed" if steps else "off"},
                },
                **({"links": [ONE_POOL]} if leads else {}),
            },
            "overrides": overrides,
        }
        panel["options"] = {
            "legend": {
                "displayMode": "table",
                # Many lines, of which most are at 0: beside the plot, the highest first.
                "placement": "right" if many else "bottom",
                "showLegend": True,
                "calcs": ["lastNotNull", "max"],
                **({"sortBy": "Max", "sortDesc": True} if many else {}),
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        }

    def heatmap(self, title: str, text: str, unit: str, metric: str, width: int = 12) -> None:
        """A histogram over time: how many fell into each bucket."""
        query = f"sum by (le) (increase({metric}_bucket{{{S}}}[{RATE}]))"
        panel = self._add("heatmap", title, text, (width, 8), [(query, "{{le}}")])
        for target in panel["targets"]:
            target["format"] = "heatmap"  # buckets are cumulative: Grafana takes them apart
        panel["fieldConfig"] = {
            "defaults": {
                "unit": "short",
                "thresholds": thresholds(GREEN),
                "mappings": [],
                "custom": {"scaleDistribution": {"type": "linear"}},
            },
            "overrides": [],
        }
        panel["options"] = {
            "calculate": False,
            "cellGap": 1,
            "cellValues": {"unit": "short"},
            "color": {
                "mode": "scheme",
                "scheme": "Oranges",
                "scale": "exponential",
                "exponent": 0.5,
                "steps": 64,
                "reverse": False,
                "fill": "dark-orange",
            },
            "exemplars": {"color": "rgba(255,0,255,0.7)"},
            "filterValues": {"le": 1e-9},
            "legend": {"show": True},
            "rowsFrame": {"layout": "auto"},
            "showValue": "never",
            "tooltip": {"mode": "single", "yHistogram": False, "showColorScale": False},
            "yAxis": {"axisPlacement": "left", "reverse": False, "unit": unit},
        }


def thresholds(steps: Steps) -> dict[str, Any]:
    return {"mode": "absolute", "steps": [{"value": value, "color": colour} for value, colour in steps]}


def variable(name: str, label: str, limits: str, *, many: bool) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {
            "query": f"label_values(rtpool_max_connections{{{limits}}}, {name})",
            "refId": "StandardVariableQuery",
        },
        "refresh": 2,
        "includeAll": many,
        "multi": many,
        **({"allValue": ".+", "current": {"text": ["All"], "value": ["$__all"]}} if many else {}),
        "sort": 1,
        "options": [],
        "hide": 0,
        "regex": "",
        "skipUrlSync": False,
    }


def dashboard(uid: str, title: str, text: str, board: Board, *, one: bool) -> dict[str, Any]:
    return {
        "uid": uid,
        "title": title,
        "description": text,
        "tags": ["rtpool", "openai", "realtime"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "timepicker": {},
        "annotations": {"list": []},
        "links": [
            {
                "title": "Realtime pools",
                "type": "dashboards",
                "tags": ["rtpool"],
                "asDropdown": False,
                "icon": "dashboard",
                "includeVars": True,
                "keepTime": True,
                "targetBlank": False,
                "tooltip": "",
                "url": "",
            }
        ],
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Data source",
                    "type": "datasource",
                    "query": "prometheus",
                    "hide": 0,
                    "includeAll": False,
                    "multi": False,
                    "options": [],
                    "refresh": 1,
                    "regex": "",
                    "skipUrlSync": False,
                },
                variable("job", "Job", "", many=True),
                variable("instance", "Instance", 'job=~"$job"', many=not one),
                variable("pool", "Pool", 'job=~"$job", instance=~"$instance"', many=not one),
            ]
        },
        "panels": board.panels,
    }


IN_USE = f'rtpool_connections{{state="in_use", {S}}}'
MAXIMUM = f"rtpool_max_connections{{{S}}}"
NOT_OK = 'outcome!="ok"'
FAILING = f"sum({rate('rtpool_checkouts_total', NOT_OK)})"
FAILED_RATIO = f"{FAILING} / (sum({rate('rtpool_checkouts_total')}) > 0) or vector(0)"
IN_USE_RATIO = f"sum({IN_USE}) / (sum({MAXIMUM}) > 0)"
#: A closed pool has no reaper (+Inf), and needs none.
REAPER_AGE = f"time() - (rtpool_reaper_last_run_timestamp_seconds{{{S}}} > 0 < +Inf)"


def overview() -> dict[str, Any]:
    b = Board()
    b.row("Now")
    b.stat(
        "In use",
        "Connections in use, of those there may be. Near 100 % callers begin to wait.",
        "percentunit",
        IN_USE_RATIO,
        limits(0.8, 0.95),
    )
    b.stat(
        "Waiting",
        "Callers in line for a connection.",
        "short",
        f"sum(rtpool_waiting_checkouts{{{S}}})",
        limits(1, 10),
    )
    b.stat(
        "Oldest wait",
        "How long the first in line has been waiting: the plainest sign of a stall.",
        "s",
        f"max(rtpool_oldest_wait_seconds{{{S}}})",
        limits(1, 5),
    )
    b.stat(
        "Failed checkouts",
        "Share of the calls for a connection that got none.",
        "percentunit",
        FAILED_RATIO,
        limits(0.001, 0.01),
    )
    b.stat(
        "p99 checkout wait",
        "99 of 100 callers waited no longer.",
        "s",
        quantile(0.99, "rtpool_checkout_wait_seconds"),
        limits(0.5, 5),
    )
    b.stat(
        "Connect errors",
        "Attempts to connect that failed, a second.",
        "ops",
        f"sum({rate('rtpool_connect_errors_total')})",
        limits(0.01, 0.1),
    )
    b.row("Capacity")
    b.lines(
        "Connections by state",
        "What the pools' places are used for. The dashed line is how many there may be.",
        "short",
        [(f"sum by (state) (rtpool_connections{{{S}}})", "{{state}}"), (f"sum({MAXIMUM})", "max")],
        stacked=True,
        colours=STATE_COLOURS,
        dashed="max",
    )
    b.lines(
        "In use by instance",
        "An instance near 100 % while others are idle gets more than its share of the calls.",
        "percentunit",
        [(f"sum by (instance) ({IN_USE}) / (sum by (instance) ({MAXIMUM}) > 0)", "{{instance}}")],
        steps=limits(0.8, 0.95),
    )
    b.lines(
        "Waiting by pool",
        "Callers in line.",
        "short",
        [(f"sum by (pool) (rtpool_waiting_checkouts{{{S}}})", "{{pool}}")],
        leads=True,
    )
    b.lines(
        "Oldest wait by pool",
        "Rising in a straight line: nothing moves any more.",
        "s",
        [(f"max by (pool) (rtpool_oldest_wait_seconds{{{S}}})", "{{pool}}")],
        steps=limits(1, 5),
        leads=True,
    )
    b.row("Demand")
    b.lines(
        "Checkouts by outcome",
        "Calls for a connection, a second, by how they ended.",
        "ops",
        [(f"sum by (outcome) ({rate('rtpool_checkouts_total')})", "{{outcome}}")],
        colours={"ok": "green", "timeout": "red"},
    )
    b.lines(
        "Checkout wait",
        "From the call to the connection, of checkouts that got one.",
        "s",
        quantiles("rtpool_checkout_wait_seconds", 0.5, 0.95, 0.99),
    )
    b.lines(
        "Session duration",
        "From checkout to return.",
        "s",
        quantiles("rtpool_session_duration_seconds", 0.5, 0.95),
    )
    b.lines(
        "Reuse",
        "Share of the sessions on a connection that was used before: 90 % with ten sessions on each, "
        "0 % if the pool only opens ahead of time.",
        "percentunit",
        [
            (
                f"clamp_min(1 - sum by (pool) ({rate('rtpool_connections_opened_total')}) "
                f"/ (sum by (pool) ({rate('rtpool_sessions_total')}) > 0), 0)",
                "{{pool}}",
            )
        ],
        leads=True,
    )
    b.row("Health")
    b.lines(
        "Connect errors by kind",
        "auth is the key, rate_limit the quota, model its name; dns, tcp, tls and proxy are the network.",
        "ops",
        [(f"sum by (kind) ({rate('rtpool_connect_errors_total')})", "{{kind}}")],
    )
    b.lines(
        "Connections closed by reason",
        "idle, age, sessions: housekeeping. lost, health: the network. reset: the server.",
        "ops",
        [(f"sum by (reason) ({rate('rtpool_connections_closed_total')})", "{{reason}}")],
    )
    b.lines(
        "Reaper last ran",
        "Seconds since each pool's own thread last turned. Above a minute it does not any more.",
        "s",
        [(REAPER_AGE, "{{instance}} {{pool}}")],
        steps=limits(30, 60),
    )
    b.lines(
        "Versions",
        "Instances by version of rtpool_sync.",
        "short",
        [('sum by (version) (rtpool_build_info{job=~"$job", instance=~"$instance"})', "{{version}}")],
    )
    return dashboard("rtpool-overview", "Realtime pools", "All pools of all instances.", b, one=False)


def detail() -> dict[str, Any]:
    b = Board()
    b.row("Now")
    b.stat(
        "In use",
        "Connections in use, of those there may be. Near 100 % callers begin to wait.",
        "percentunit",
        IN_USE_RATIO,
        limits(0.8, 0.95),
    )
    b.stat(
        "Waiting",
        "Callers in line for a connection.",
        "short",
        f"sum(rtpool_waiting_checkouts{{{S}}})",
        limits(1, 10),
    )
    b.stat(
        "p99 checkout wait",
        "99 of 100 callers waited no longer.",
        "s",
        quantile(0.99, "rtpool_checkout_wait_seconds"),
        limits(0.5, 5),
    )
    b.stat(
        "Failed checkouts",
        "Share of the calls for a connection that got none.",
        "percentunit",
        FAILED_RATIO,
        limits(0.001, 0.01),
    )
    b.stat(
        "Sessions",
        "Conversations begun, a second.",
        "ops",
        f"sum({rate('rtpool_sessions_total')})",
    )
    b.stat(
        "Reaper last ran",
        "Seconds since the pool's own thread last turned. Above a minute it does not any more.",
        "s",
        f"max({REAPER_AGE})",
        limits(30, 60),
    )
    b.row("Connections")
    b.lines(
        "Connections by state",
        "The dashed line is how many there may be.",
        "short",
        [(f"sum by (state) (rtpool_connections{{{S}}})", "{{state}}"), (f"sum({MAXIMUM})", "max")],
        stacked=True,
        colours=STATE_COLOURS,
        dashed="max",
    )
    b.lines(
        "Opened and closed",
        "Connections a second. Apart for long, the pool grows or shrinks.",
        "ops",
        [
            (f"sum({rate('rtpool_connections_opened_total')})", "opened"),
            (f"sum by (reason) ({rate('rtpool_connections_closed_total')})", "closed: {{reason}}"),
        ],
    )
    b.lines(
        "Healthy",
        "Connections that gave a sign of life recently, and those that could.",
        "short",
        [
            (f"sum(rtpool_healthy_connections{{{S}}})", "healthy"),
            (f'sum(rtpool_connections{{state=~"idle|in_use|resetting", {S}}})', "live"),
        ],
    )
    b.lines(
        "Connect time",
        "From the decision to connect until the session is ready.",
        "s",
        quantiles("rtpool_connect_seconds", 0.5, 0.95),
        steps=limits(1, 3),
    )
    b.row("Callers")
    b.lines(
        "Checkouts by outcome",
        "Calls for a connection, a second.",
        "ops",
        [(f"sum by (outcome) ({rate('rtpool_checkouts_total')})", "{{outcome}}")],
    )
    b.lines(
        "Checkout wait",
        "From the call to the connection.",
        "s",
        quantiles("rtpool_checkout_wait_seconds", 0.5, 0.95, 0.99),
    )
    b.heatmap(
        "How long callers waited",
        "Checkouts by how long they took. Two bands: some find a connection, others wait for one.",
        "s",
        "rtpool_checkout_wait_seconds",
    )
    b.lines(
        "Longest wait and longest use",
        "Of the callers in line and the connections that are out.",
        "s",
        [
            (f"max(rtpool_oldest_wait_seconds{{{S}}})", "waiting"),
            (f"max(rtpool_oldest_checkout_seconds{{{S}}})", "in use"),
        ],
    )
    b.lines(
        "Leaks",
        "Connections dropped without being returned, or out for longer than leak_threshold.",
        "short",
        [(f"sum(increase(rtpool_leaks_total{{{S}}}[{RATE}]))", "leaks")],
    )
    b.row("Between two sessions")
    b.lines(
        "Resets by outcome",
        "Resets a second. What is not ok costs a connection.",
        "ops",
        [(f"sum by (outcome) ({rate('rtpool_resets_total')})", "{{outcome}}")],
        colours={"ok": "green"},
    )
    b.lines(
        "Reset time", "Of resets that succeeded.", "s", quantiles("rtpool_reset_seconds", 0.5, 0.95, 0.99)
    )
    b.lines(
        "Health checks",
        "Pings of idle connections, a second.",
        "ops",
        [(f"sum by (outcome) ({rate('rtpool_health_checks_total')})", "{{outcome}}")],
        colours={"ok": "green", "failed": "red"},
    )
    b.lines(
        "Ping round trip",
        "To the server and back.",
        "s",
        quantiles("rtpool_ping_rtt_seconds", 0.5, 0.95),
    )
    b.row("Traffic")
    b.lines(
        "Messages",
        "WebSocket messages a second.",
        "ops",
        [(f"sum by (direction) ({rate('rtpool_messages_total')})", "{{direction}}")],
    )
    b.lines(
        "Bytes",
        "Of these messages.",
        "Bps",
        [(f"sum by (direction) ({rate('rtpool_message_bytes_total')})", "{{direction}}")],
    )
    return dashboard("rtpool-pool", "Realtime pool", "One pool of one instance.", b, one=True)


def files() -> dict[Path, str]:
    """Every generated file and what is in it."""
    boards = (overview(), detail())
    return {
        HERE / "dashboards" / f"{board['uid']}.json": json.dumps(board, indent=2, ensure_ascii=False) + "\n"
        for board in boards
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
        print(path, file=sys.stderr)
