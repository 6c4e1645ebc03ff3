"""Under gevent a thread is a greenlet. Patched early, late, by halves; struck by its timeouts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rtpool_sync.emulator import RealtimeServer
from rtpool_sync.patching import half_patched

RunProgram = Callable[..., str]

PATCH = "from gevent import monkey; monkey.patch_all()\n"

COMMON = """
import logging, os, time, gevent
logging.getLogger("rtpool_sync").setLevel(logging.ERROR)  # that a checkout timed out is as it should be
from rtpool_sync import RealtimePool, RtpoolError, PoolTimeout

def make(**options):
    options.setdefault("max_connections", 4)
    return RealtimePool(url=os.environ["ECHO_URL"], protocol="plain", max_sessions_per_connection=100000,
                        connect_timeout=5, **options)

def echo(pool, me, times=20):
    for n in range(times):
        with pool.connection(10) as conn:
            conn.send(f"{me}/{n}")
            assert conn.recv(5) == f"{me}/{n}"

def load(pool):
    greenlets = [gevent.spawn(echo, pool, me) for me in range(16)]
    gevent.joinall(greenlets, raise_error=True, timeout=20)
    assert all(greenlet.successful() for greenlet in greenlets)
    return pool.stats().total_sessions_handled
"""
BUILD = COMMON.replace(", gevent\n", "\n") + "pool = make()\n"


@pytest.fixture(params=["127.0.0.1", "localhost"])
def echo_url(request: pytest.FixtureRequest, emulator: RealtimeServer) -> str:
    """With a name to look up, too: that takes a thread, which must not stop the others."""
    return emulator.echo_url.replace("127.0.0.1", request.param)


def test_patched_first(run_program: RunProgram, emulator: RealtimeServer, echo_url: str) -> None:
    out = run_program(
        PATCH
        + COMMON
        + """
ticks = 0
def tick():
    global ticks
    while True:
        gevent.sleep(0.01)
        ticks += 1
with make() as pool:
    gevent.spawn(tick)
    assert load(pool) == 320
    with pool.connection() as conn:
        before = ticks
        try: conn.recv(0.3)
        except TimeoutError: pass
        assert ticks - before > 15, ticks - before  # others run while one receives
        conn.ping()
    with pool.connection(), pool.connection(), pool.connection(), pool.connection():
        before = ticks
        try: pool.acquire(0.3)
        except PoolTimeout: pass
        assert ticks - before > 15  # and while one waits in line
print("done")
""",
        ECHO_URL=echo_url,
    )
    assert out == "done\n"
    assert {(end.code, end.by) for end in emulator.closed} == {(1001, "client")}
    assert emulator.max_sockets <= 4


def test_an_idle_pool_is_looked_after(run_program: RunProgram, emulator: RealtimeServer) -> None:
    """The reaper is a greenlet: it pings, retires and replaces while the others sleep."""
    run_program(
        PATCH
        + COMMON
        + """
pool = make(min_idle=2, max_idle_time=1, health_check_interval=1)
pool.open(wait=True)
first = {c.id for c in pool.connections()}
with pool.connection(), pool.connection(), pool.connection(): pass
end = time.monotonic() + 10
while pool.stats().counters.closed["idle"] < 1 or pool.stats().counters.health_checks["ok"] < 2:
    assert time.monotonic() < end, pool.stats().as_dict()
    gevent.sleep(0.05)
pool.close()
""",
        ECHO_URL=emulator.echo_url,
    )


def test_imported_and_built_before_the_patch(
    run_program: RunProgram, emulator: RealtimeServer, echo_url: str
) -> None:
    """What gunicorn --preload does: opened after it, by many greenlets at once."""
    run_program(BUILD + PATCH + "import gevent\nassert load(pool) == 320\npool.close()\n", ECHO_URL=echo_url)
    assert {(end.code, end.by) for end in emulator.closed} == {(1001, "client")}


def test_closed_before_the_patch_and_opened_after_it(
    run_program: RunProgram, emulator: RealtimeServer
) -> None:
    run_program(
        BUILD
        + """
echo(pool, "before")
pool.close()
time.sleep(0.01)
"""
        + PATCH
        + """
import gevent
try: pool.acquire()
except RtpoolError as error: assert "closed" in str(error), error
pool.open()
assert load(pool) == 340
pool.close()
""",
        ECHO_URL=emulator.echo_url,
    )


def test_opened_before_the_patch_is_an_error_that_says_so(
    run_program: RunProgram, emulator: RealtimeServer
) -> None:
    """It would serve, and stop every greenlet while one of them receives."""
    out = run_program(
        BUILD
        + """
pool.resize(min_idle=2)
pool.open(wait=True)
echo(pool, "before")
import sys
sys.unraisablehook = lambda args: None  # threads of before the patch that end: Python no longer knows them
"""
        + PATCH
        + """
import gevent
for use in (pool.acquire, pool.open, pool.wait):
    try: use()
    except RtpoolError as error: print(error)
assert pool.stats().total_connections >= 2
began = time.monotonic()
pool.close()
assert time.monotonic() - began < 3
pool.open()
load(pool)
pool.close()
""",
        ECHO_URL=emulator.echo_url,
    )
    lines = out.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert "opened before gevent patched" in line
        assert "patch_all() first" in line
    assert {(end.code, end.by) for end in emulator.closed} == {(1001, "client")}


@pytest.mark.parametrize("left_out", ["thread", "select", "queue"])
def test_patched_by_halves_is_an_error_that_says_so(
    run_program: RunProgram, emulator: RealtimeServer, left_out: str
) -> None:
    out = run_program(
        f"from gevent import monkey; monkey.patch_all({left_out}=False)\n"
        + COMMON
        + """
pool = make()
for use in (pool.acquire, pool.open):
    try: use()
    except RtpoolError as error: print(error)
pool.close()
""",
        ECHO_URL=emulator.echo_url,
    )
    lines = out.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert "gevent has patched" in line
        assert f"but not {left_out}" in line
        assert "without exceptions" in line
    assert emulator.accepted_total == 0


def test_a_real_thread_beside_the_greenlets_is_told(
    run_program: RunProgram, emulator: RealtimeServer
) -> None:
    """gevent's parts belong to one thread each: used in another they crash the process."""
    out = run_program(
        PATCH
        + COMMON
        + """
def attempt(use):
    try: use()
    except RtpoolError as error: return error
with make() as pool:
    greenlets = [gevent.spawn(echo, pool, me, 100) for me in range(8)]
    for use in (lambda: pool.acquire(5), lambda: echo(pool, "thread"), pool.wait):
        print(gevent.get_hub().threadpool.apply(attempt, (use,)))
    gevent.joinall(greenlets, raise_error=True, timeout=20)
    assert pool.stats().total_sessions_handled == 800
    assert gevent.get_hub().threadpool.apply(pool.stats).max_connections == 4
""",
        ECHO_URL=emulator.echo_url,
    )
    lines = out.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert "belongs to another thread" in line
    assert {(end.code, end.by) for end in emulator.closed} == {(1001, "client")}


def test_not_patched_at_all_it_is_nothing_to_us(run_program: RunProgram, emulator: RealtimeServer) -> None:
    """gevent in the process, real threads for us."""
    run_program(
        COMMON
        + """
import threading
with make() as pool:
    threads = [threading.Thread(target=echo, args=(pool, me)) for me in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join(20)
    assert pool.stats().total_sessions_handled == 160
""",
        ECHO_URL=emulator.echo_url,
    )


STRUCK = '''
import random
chance = random.Random(SEED)

def whole(pool):
    # Everything is back, and the capacity is what it was: all can be had at once.
    end = time.monotonic() + 10
    while pool.stats().active_sessions or pool.stats().waiting:
        assert time.monotonic() < end, pool.stats().as_dict()
        gevent.sleep(0.01)
    handles = [pool.acquire(10) for _ in range(pool.config.max_connections)]
    for number, handle in enumerate(handles):
        handle.send(f"last {number}")
        assert handle.recv(5) == f"last {number}"
    for handle in handles: pool.release(handle)
    assert pool.stats().total_connections == pool.config.max_connections

class Patience:
    """Of a length that half of them live to see the end, however fast the machine is."""
    longest = 0.005
    struck = served = 0
    def draw(self): return gevent.Timeout(chance.uniform(0.0002, self.longest))
    def ended(self, struck):
        self.struck += struck
        self.served += not struck
        self.longest *= 1.2 if struck else 0.85
patience = Patience()
'''


def test_a_timeout_strikes_those_who_wait(run_program: RunProgram, emulator: RealtimeServer) -> None:
    """gevent.Timeout is no Exception; it comes while the line moves."""
    out = run_program(
        PATCH
        + COMMON
        + STRUCK.replace("SEED", "1")
        + """
def one(pool, me):
    for n in range(60):
        struck = False
        try:
            with patience.draw():
                handle = pool.acquire(10)
                try:
                    gevent.sleep(chance.uniform(0, 0.001))
                finally:
                    pool.release(handle)
        except gevent.Timeout:
            struck = True
        patience.ended(struck)
with make(max_connections=2) as pool:
    greenlets = [gevent.spawn(one, pool, me) for me in range(12)]
    gevent.joinall(greenlets, raise_error=True, timeout=25)
    assert all(greenlet.successful() for greenlet in greenlets)
    assert patience.struck > 50 and patience.served > 50
    whole(pool)
    assert pool.stats().counters.leaks == 0
print("done")
""",
        ECHO_URL=emulator.echo_url,
    )
    assert out == "done\n"
    assert emulator.max_sockets <= 2


@pytest.mark.parametrize("protocol", ["plain", "realtime"])
def test_a_timeout_strikes_a_borrower(
    run_program: RunProgram, emulator: RealtimeServer, protocol: str
) -> None:
    """Wherever it strikes: nobody hears another's answer, and no place is lost."""
    out = run_program(
        PATCH
        + COMMON
        + STRUCK.replace("SEED", "2")
        + """
def make_realtime():
    return RealtimePool(base_url=os.environ["BASE_URL"], api_key="sk-x", max_connections=3)

def talk(conn, token):
    content = [{"type": "input_text", "text": token}]
    conn.send({"type": "conversation.item.create",
               "item": {"type": "message", "role": "user", "content": content}})
    while True:
        event = conn.recv(5)
        if event["type"] == "conversation.item.done":
            assert event["item"]["content"][0]["text"] == token, (token, event)
            return

def shout(conn, token):
    conn.send(token)
    assert conn.recv(5) == token

plain = PROTOCOL == "plain"
say = shout if plain else talk
def one(pool, me):
    for n in range(30):
        struck = False
        try:
            with patience.draw():
                with pool.connection(10) as conn:
                    say(conn, f"{me}/{n}")
        except gevent.Timeout:
            struck = True
        patience.ended(struck)
pool = make(max_connections=3) if plain else make_realtime()
with pool:
    pool.wait()
    greenlets = [gevent.spawn(one, pool, me) for me in range(6)]
    gevent.joinall(greenlets, raise_error=True, timeout=25)
    assert all(greenlet.successful() for greenlet in greenlets)
    assert patience.struck > 20 and patience.served > 20, (patience.struck, patience.served)
    if plain:
        whole(pool)
    else:
        handles = [pool.acquire(10) for _ in range(3)]
        for handle in handles: talk(handle, "last")
        for handle in handles: pool.release(handle)
    assert pool.stats().counters.leaks == 0
print("done")
""".replace("PROTOCOL", repr(protocol)),
        ECHO_URL=emulator.echo_url,
        BASE_URL=emulator.base_url,
    )
    assert out == "done\n"
    assert emulator.max_sockets <= 3


def test_a_greenlet_that_is_killed_gives_back(run_program: RunProgram, emulator: RealtimeServer) -> None:
    run_program(
        PATCH
        + COMMON
        + STRUCK.replace("SEED", "3")
        + """
def hold(pool):
    with pool.connection(10) as conn:
        conn.send("unanswered: not received")
        gevent.sleep(60)
with make(max_connections=2) as pool:
    for _ in range(5):
        greenlets = [gevent.spawn(hold, pool) for _ in range(4)]  # two hold, two wait
        gevent.sleep(0.05)
        gevent.killall(greenlets, timeout=5)
    whole(pool)
""",
        ECHO_URL=emulator.echo_url,
    )
    assert emulator.max_sockets <= 2


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert half_patched() is None

    class Poll:
        __module__ = "gevent.select"

    monkeypatch.setattr("select.poll", Poll)
    problem = half_patched()
    assert problem is not None
    assert problem.startswith("gevent has patched select but not threading, selectors, queue: call")
