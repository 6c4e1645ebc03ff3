"""The status page in a real browser: drawn, refreshed in place, and its policy obeyed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import pytest
from browser import Browser, pixels

from rtpool_sync import RealtimePool
from rtpool_sync.emulator import RealtimeServer
from rtpool_sync.web import monitoring_app

Eventually = Callable[[Callable[[], object]], None]


class Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.close()


@pytest.fixture
def pool(server: RealtimeServer) -> Iterator[RealtimePool]:
    with RealtimePool(url=server.echo_url, protocol="plain", max_connections=4, registry=False) as pool:
        yield pool


@pytest.fixture
def web(pool: RealtimePool) -> Iterator[WSGIServer]:
    with make_server("127.0.0.1", 0, monitoring_app(pool), handler_class=Quiet) as web:
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield web
        web.shutdown()
        thread.join()


@pytest.mark.timeout(120)
def test_the_page_is_drawn_and_refreshed_in_place(
    browser: Browser, web: WSGIServer, pool: RealtimePool, eventually: Eventually
) -> None:
    held = [pool.acquire(timeout=10) for _ in range(2)]
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    browser.call("Page.navigate", url=f"http://127.0.0.1:{web.server_port}/")
    rows = "document.querySelectorAll('.connections tbody tr').length"
    eventually(lambda: browser.value(f"document.readyState === 'complete' && {rows}") == 2)

    # Half of the bar is in use: by its geometry, and to the eye.
    box = browser.value("(() => { const r = document.querySelector('.bar').getBoundingClientRect();"
                        " return [r.left, r.top, r.width, r.height] })()")  # fmt: skip
    shown = pixels(browser.picture())

    def colour(share: float) -> tuple[int, ...]:
        x, y = int(box[0] + box[2] * share), int(box[1] + box[3] / 2)
        return tuple(shown[y][x * 3 : x * 3 + 3])

    assert colour(0.1) == colour(0.4) == (0x2F, 0x6F, 0xDB)
    assert colour(0.6) == colour(0.9) == (0xEC, 0xEF, 0xF2)
    assert tuple(shown[2][6:9]) == (255, 255, 255)

    # While load runs the figures follow, in the same document.
    browser.value("window.mark = 'still the same page'")
    sessions = "Number([...document.querySelectorAll('dt')].find(e => e.textContent === 'sessions')" \
               ".nextElementSibling.textContent.replace(',', ''))"  # fmt: skip
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.001):
            with pool.connection(timeout=10) as conn:
                conn.send("x")
                conn.recv(timeout=10)

    worker = threading.Thread(target=work)
    worker.start()
    eventually(lambda: browser.value(sessions) > 2)
    first = browser.value(sessions)
    eventually(lambda: browser.value(sessions) > first)
    stop.set()
    worker.join()
    for conn in held:
        pool.release(conn)
    eventually(lambda: browser.value("document.querySelectorAll('rect.in_use').length") == 0)
    eventually(lambda: browser.value(sessions) == pool.stats().total_sessions_handled)
    assert browser.value("window.mark") == "still the same page"

    # Dark, if the reader likes it so.
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(17, 21, 26)"
    assert browser.complaints == []  # of the policy, of scripts, of what is missing

    # And when the application is gone, the page says so.
    web.RequestHandlerClass = Gone
    eventually(lambda: browser.value("!document.getElementById('trouble').hidden"))
    assert browser.value(rows) > 0


@pytest.mark.timeout(120)
def test_the_policy_holds_and_nothing_needs_a_script(
    browser: Browser, web: WSGIServer, pool: RealtimePool, eventually: Eventually
) -> None:
    rows = "document.querySelectorAll('.connections tbody tr').length"
    with pool.connection(timeout=10):
        # Without JavaScript: all of it is there, and it is loaded again every few seconds.
        light = [{"name": "prefers-color-scheme", "value": "light"}]
        browser.call("Emulation.setEmulatedMedia", features=light)
        browser.call("Emulation.setScriptExecutionDisabled", value=True)
        browser.call("Page.navigate", url=f"http://127.0.0.1:{web.server_port}/")
        document = "document.querySelector('.legend')?.textContent"
        eventually(lambda: "1 in use" in (browser.value(document) or ""))
        assert browser.value(rows) == 1
        fill = "getComputedStyle(document.querySelector('rect.in_use')).fill"
        eventually(
            lambda: browser.value(f"document.readyState === 'complete' && {fill}") == "rgb(47, 111, 219)"
        )
        assert browser.value("getComputedStyle(document.querySelector('#trouble')).display") == "none"
    eventually(lambda: "1 idle" in (browser.value(document) or ""))

    # With it, the browser refuses whatever might have got into the page.
    browser.call("Emulation.setScriptExecutionDisabled", value=False)
    browser.call("Page.navigate", url=f"http://127.0.0.1:{web.server_port}/")
    eventually(lambda: browser.value("document.readyState") == "complete")
    browser.value("""
        const script = document.createElement('script');
        script.textContent = 'window.injected = true';
        const image = document.createElement('img');
        image.src = 'http://127.0.0.1:9/stolen.png';
        const style = document.createElement('div');
        style.setAttribute('style', 'position: fixed');
        document.body.append(script, image, style);
    """)
    assert browser.value("window.injected") is None
    assert browser.value("getComputedStyle(document.body.lastChild).position") == "static"
    for directive in ("script-src", "img-src", "style-src"):
        # They come in with the answers to other questions.
        eventually(lambda d=directive: browser.value("1") and any(d in c for c in browser.complaints))


class Gone(Quiet):
    def handle(self) -> None:
        pass
