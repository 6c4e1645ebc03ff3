"""The status page as the server writes it: all there without JavaScript, nothing from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from rtpool_sync import PoolTimeout, RealtimePool, status
from rtpool_sync.emulator import RealtimeServer
from rtpool_sync.status import ROWS, SCRIPT, STYLE, render
from rtpool_sync.web import POLICY

VOID = {"meta", "link"}
NAUGHTY = '<script>alert("x")</script>'


class Page(HTMLParser):
    """The page's text, tags and attributes; fails where tags do not match."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.feed(source)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def plain(server: RealtimeServer, **options: object) -> RealtimePool:
    return RealtimePool(url=server.echo_url, protocol="plain", registry=False, **options)


def test_everything_is_in_the_page_itself(server: RealtimeServer) -> None:
    with plain(server, max_connections=4) as pool, pool.connection(timeout=10), pool.connection(timeout=10):
        page = Page(render([pool]))
    rects = [attributes for tag, attributes in page.tags if tag == "rect"]
    assert [(r["class"], r["x"], r["width"]) for r in rects] == [("in_use", "0", "2")]
    (bar,) = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert (bar["viewbox"], bar["aria-label"]) == ("0 0 4 1", "2 of 4 connections")
    connections = [row for row in page.rows if len(row) == 8]
    assert connections[0][:2] == ["#", "state"]
    assert [row[:2] for row in connections[1:]] == [["1", "in use"], ["2", "in use"]]
    assert [row[4] for row in connections[1:]] == ["1 of 10", "1 of 10"]
    assert [row[0] for row in page.rows[1:4]] == ["checkout wait", "reset", "connect"]
    events = [row for row in page.rows if len(row) == 5 and row[1] == "opened"]
    assert [row[2] for row in events] == ["2", "1"]  # the newest first


def test_the_parts_of_the_bar_stand_side_by_side(server: RealtimeServer) -> None:
    with plain(server, max_connections=8) as pool:
        held = [pool.acquire(timeout=10) for _ in range(3)]
        pool.release(held.pop())
        source = render([pool])
        for conn in held:
            pool.release(conn)
    rects = [attributes for tag, attributes in Page(source).tags if tag == "rect"]
    assert [(r["class"], r["x"], r["width"]) for r in rects] == [("in_use", "0", "2"), ("idle", "2", "1")]
    legend = re.findall(r'<li class="(\w+)"><b>(\d+)</b>', source)
    assert dict(legend) == {
        "in_use": "2",
        "idle": "1",
        "connecting": "0",
        "resetting": "0",
        "closing": "0",
        "free": "5",
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0.0, "0 s"),
        (0.00005, "0.05 ms"),
        (0.0123, "12.3 ms"),
        (1.0, "1.0 s"),
        (59.9, "59.9 s"),
        (60.0, "1 min 00 s"),
        (125.0, "2 min 05 s"),
        (3600.0, "1 h 00 min"),
        (7505.0, "2 h 05 min"),
    ],
)
def test_times_are_for_people(seconds: float | None, text: str) -> None:
    assert status._seconds(seconds) == text


def test_texts_from_outside_are_escaped_and_short(server: RealtimeServer) -> None:
    with plain(server, name=NAUGHTY) as pool:
        with pool.connection(timeout=10) as conn:
            conn.invalidate(NAUGHTY + "x" * 1000)
        with pool.connection(timeout=10) as conn:
            conn.invalidate("first line\nFile app.py, a stack")
            page = render([pool])
    assert "<script>" not in page
    assert "alert(&quot;x&quot;)" in page
    assert "x" * 250 not in page
    assert "first line" in page
    assert "app.py" not in page


def test_failures_stand_out(server: RealtimeServer) -> None:
    with plain(server, max_connections=1) as pool, pool.connection(timeout=10):
        for _ in range(3):
            with pytest.raises(PoolTimeout):
                pool.acquire(timeout=0)
        page = Page(render([pool]))
    (row,) = [row for row in page.rows if row[1].startswith("checkout failed")]
    assert row[1] == "checkout failed × 3"
    assert ("tr", {"class": "bad"}) in page.tags


def test_a_page_of_many_connections_stays_readable() -> None:
    pool = RealtimePool(url="ws://127.0.0.1:1/", protocol="plain", max_connections=1000, registry=False)
    with pool._ledger.lock:
        for _ in range(1000):
            pool._ledger._add_member(0.0)
    page = Page(render([pool]))
    assert len([row for row in page.rows if len(row) == 8 and row[1] == "connecting"]) == ROWS
    assert ["and 800 more"] in page.rows
    pool._ledger.members.clear()


def test_nothing_from_elsewhere_and_nothing_inline(server: RealtimeServer) -> None:
    with plain(server) as pool:
        source = render([pool])
    page = Page(source)
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
        for name in ("src", "href"):
            target = attributes.get(name)
            assert target is None or re.fullmatch(r"data:,|[a-z.]+", target), target
    assert "<style" not in source
    assert re.findall(r"<script[^>]*>(.*?)</script>", source, re.DOTALL) == [""]
    assert not re.search(r"https?:|//\w|@import|url\(", SCRIPT + STYLE)
    assert "innerHTML" not in SCRIPT
    assert "eval" not in SCRIPT
    assert "unsafe" not in POLICY
    assert POLICY.startswith("default-src 'none'")


def test_light_and_dark() -> None:
    light, dark = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    names = re.compile(r"(--[\w-]+):")
    assert set(names.findall(light)) == set(names.findall(dark))
    used = set(re.findall(r"var\((--[\w-]+)\)", STYLE))
    assert used <= set(names.findall(light))
