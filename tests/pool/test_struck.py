"""An exception out of nowhere (KeyboardInterrupt, a greenlet's timeout), at every point where it can strike.

The interpreter delivers such exceptions when a Python function begins and after
the call of a C function. A profile function is called at just these points, and
what it raises appears there: so each of them gets its turn, one after another.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from pool_calls import Call, echo, in_line, waiting
from pool_support import descriptors, eventually, plain, pool_threads

from rtpool_sync import RealtimePool
from rtpool_sync.emulator import RealtimeServer
from rtpool_sync.ledger import Waiter

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


class Struck(BaseException):
    """Nothing of ours catches it by mistake."""


class Striker:
    """Raises :class:`Struck` at the ``number``-th point inside of the pool's code."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        if event not in ("call", "c_return") or not _inside(frame):
            return
        self.left -= 1
        if not self.left:
            raise Struck


def _inside(frame: FrameType) -> bool:
    """Whether it is our code that is struck, or the starting of a thread on our behalf.

    Not a finalizer, where exceptions go nowhere; and not the inside of the
    standard library, some locks of which would stay locked.
    """
    starting = frame.f_globals.get("__name__") == "threading" and frame.f_code.co_name == "start"
    if not (_ours(frame) or starting):
        return False
    outer: FrameType | None = frame
    while outer is not None:
        if _ours(outer):
            return outer.f_code.co_name != "__del__"
        outer = outer.f_back
    return False


def _ours(frame: FrameType) -> bool:
    module: str = frame.f_globals.get("__name__", "")
    return module.startswith("rtpool_sync.")


def strike_everywhere(scene: Callable[[Callable[[Callable[[], Any]], bool]], None]) -> int:
    """Play a scene until it is over before anything strikes; return how many times something did."""
    for number in range(1, 2000):
        struck = False

        def act(function: Callable[[], Any], number: int = number) -> bool:
            nonlocal struck
            sys.setprofile(Striker(number))
            try:
                function()
            except Struck:
                struck = True
            finally:
                sys.setprofile(None)
            return struck

        scene(act)
        if not struck:
            return number - 1
    raise AssertionError("it never ends")


@pytest.fixture(autouse=True)
def _half_made_objects() -> Iterator[None]:
    """A socket that was struck while it was made is closed by the collector; not in another test."""
    yield
    gc.collect()


def whole(pool: RealtimePool, size: int) -> None:
    """Every place can be lent, nobody waits."""
    eventually(lambda: pool.stats().in_use == 0, 5.0, repr(pool))
    assert pool.stats().waiting == 0
    handles = [pool.acquire(5.0) for _ in range(size)]
    for handle in handles:
        echo(handle)
        pool.release(handle)
    assert pool.stats().total_connections <= size


@pytest.mark.parametrize("leak_threshold", [0.0, 60.0])
def test_borrowing_an_idle_connection(leak_threshold: float) -> None:
    """The variable behind ``as`` lives on, as in a loop: that must not keep the connection."""
    options = {"max_connections": 1, "leak_threshold": leak_threshold}
    with RealtimeServer() as server, plain(server.echo_url, **options) as pool:
        pool.wait(10.0)
        kept: list[object] = []

        def borrow() -> None:
            with pool.connection(5.0) as conn:
                kept[:] = [conn]

        def scene(act: Callable[[Callable[[], Any]], bool]) -> None:
            act(borrow)
            whole(pool, 1)

        assert strike_everywhere(scene) > 10
        assert pool.stats().counters.leaks == 0
        assert server.max_sockets == 1


def test_waiting_in_line() -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1) as pool:
        kept: list[object] = []

        def borrow() -> None:
            with pool.connection(5.0) as conn:
                kept[:] = [conn]

        def scene(act: Callable[[Callable[[], Any]], bool]) -> None:
            held = pool.acquire(5.0)
            done = threading.Event()

            def give_back() -> None:
                eventually(lambda: pool.stats().waiting or done.is_set(), 5.0)
                pool.release(held)

            returner = Call(give_back)
            act(borrow)
            done.set()
            returner.result(10.0)
            whole(pool, 1)

        assert strike_everywhere(scene) > 15
        assert server.max_sockets == 1


def test_being_served_what_turns_out_to_be_dead() -> None:
    """It goes back in line, and may be struck there as well."""
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1) as pool:

        def scene(act: Callable[[Callable[[], Any]], bool]) -> None:
            with pool.connection(5.0) as conn:
                echo(conn)
                transport = conn._transport
            assert transport is not None
            transport.abort()  # the kernel knows, the pool does not
            act(lambda: pool.release(pool.acquire(5.0)))
            whole(pool, 1)

        assert strike_everywhere(scene) > 15


def test_giving_back_to_one_in_line() -> None:
    """Whatever strikes whoever gives back, the one in line is served."""
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1) as pool:
        kept: list[object] = []

        def scene(act: Callable[[Callable[[], Any]], bool]) -> None:
            checkouts = [pool.connection(5.0)]
            kept[:] = [checkouts[0].__enter__()]
            other = in_line(pool, lambda: pool.release(pool.acquire(5.0)))
            act(lambda: checkouts[0].__exit__(None, None, None))
            checkouts.clear()
            other.result(4.0)
            whole(pool, 1)

        assert strike_everywhere(scene) > 5
        assert server.max_sockets == 1


def test_settings_of_a_checkout() -> None:
    with RealtimeServer() as server:
        with RealtimePool(base_url=server.base_url, api_key="sk-x", max_connections=1) as pool:
            session = {"instructions": "Be brief."}

            def borrow() -> None:
                with pool.connection(5.0, session=session):
                    pass

            def scene(act: Callable[[Callable[[], Any]], bool]) -> None:
                act(borrow)
                eventually(lambda: pool.stats().in_use == 0, 5.0, repr(pool))

            assert strike_everywhere(scene) > 30
            assert pool.stats().waiting == 0
        assert server.max_sockets == 1


def test_the_first_checkout() -> None:
    """Never two loops over one pool, and none without one."""
    with RealtimeServer() as server:
        before = descriptors()

        def scene(act: Callable[[Callable[[], Any]], bool]) -> None:
            pool = plain(server.echo_url, max_connections=1)
            act(lambda: pool.release(pool.acquire(5.0)))
            whole(pool, 1)
            eventually(lambda: sum("reaper" in name for name in pool_threads()) == 1)
            pool.close()
            eventually(lambda: pool_threads() == [])

        assert strike_everywhere(scene) > 40
        gc.collect()
        eventually(lambda: descriptors() <= before)
        assert server.max_sockets == 1


def test_a_pool_that_was_struck_at_its_start_closes_at_once() -> None:
    with RealtimeServer() as server:

        def scene(act: Callable[[Callable[[], Any]], bool]) -> None:
            pool = plain(server.echo_url)
            act(pool.open)
            closing = Call(pool.close, 5.0)
            closing.result(4.0)
            eventually(lambda: pool_threads() == [], what=str(threading.enumerate()))

        assert strike_everywhere(scene) > 20


def test_waiting_for_the_pool() -> None:
    with RealtimeServer() as server:

        def scene(act: Callable[[Callable[[], Any]], bool]) -> None:
            with plain(server.echo_url, max_connections=1) as pool:
                act(lambda: pool.wait(5.0))
                assert not pool._ledger.watchers
                whole(pool, 1)

        assert strike_everywhere(scene) > 10


def test_a_wake_up_that_was_struck_is_not_the_last() -> None:
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1) as pool:
        pool.wait(10.0)
        reaper = pool._reaper
        assert reaper is not None
        turns: list[float] = []
        original = reaper._plan

        def plan(now: float) -> float | None:
            timeout = original(now)
            turns.append(now)
            return None if timeout is None else 5.0  # by itself it would not turn for long

        reaper._plan = plan  # type: ignore[method-assign]

        def scene(act: Callable[[Callable[[], Any]], bool]) -> None:
            eventually(lambda: not reaper._loop._woken, 2.0)
            act(pool._wake)
            seen = len(turns)
            pool._wake()
            eventually(lambda: len(turns) > seen, 2.0, "nobody heard")

        assert strike_everywhere(scene) > 2


def test_one_that_is_struck_twice_in_line_is_not_counted_for_ever() -> None:
    """The second strikes while it leaves: its place stays, until it is given what nobody takes."""
    with RealtimeServer() as server, plain(server.echo_url, max_connections=1) as pool:
        held = pool.acquire(5.0)
        ledger = pool._ledger
        with ledger.lock:
            ledger.waiters[Waiter(pool, 0.0)] = None  # what such a one leaves behind
        waiting(pool, 1)
        pool.release(held)
        whole(pool, 1)
