"""Names and TCP, before a deadline."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time

import pytest
from transport_peers import PATIENCE, Background, Blackhole, Listener, Names, eventually, within

from rtpool_sync.transport import resolve as module
from rtpool_sync.transport.resolve import Address, _interleave, connect_tcp, resolve


def soon(seconds: float = PATIENCE) -> float:
    return time.monotonic() + seconds


def at(port: int, host: str = "127.0.0.1", family: int = socket.AF_INET) -> Address:
    return (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))


def refused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


# -- names


def test_a_literal_address_needs_no_thread(names: Names) -> None:
    before = threading.active_count()
    assert [a[4] for a in resolve("127.0.0.1", 80, soon(-1))] == [("127.0.0.1", 80)]
    assert threading.active_count() == before


def test_a_name(names: Names) -> None:
    names.known["api.test"] = [("127.0.0.1", 1), ("127.0.0.1", 2)]
    assert [a[4] for a in resolve("api.test", 443, soon())] == [("127.0.0.1", 1), ("127.0.0.1", 2)]
    assert not module._lookups


def test_a_name_that_does_not_exist(names: Names) -> None:
    names.known["api.test"] = known = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    with pytest.raises(socket.gaierror, match="not known") as caught:
        resolve("api.test", 443, soon())
    assert caught.value is not known, "several threads may raise it at the same time"
    assert caught.value.errno == socket.EAI_NONAME


@pytest.mark.parametrize("host", ["x" * 64 + ".test", "a..b"])
def test_what_is_no_name(host: str) -> None:
    with pytest.raises(OSError, match="not a host name"):
        resolve(host, 443, soon())


def test_a_name_server_that_does_not_answer_costs_one_thread(names: Names) -> None:
    names.known["api.test"] = answer = threading.Event()
    before = threading.active_count()
    with within(0.5, at_least=0.1):
        waiting = [Background(lambda: resolve("api.test", 443, soon(0.1))) for _ in range(5)]
        for one in waiting:
            assert isinstance(one.error(), TimeoutError)
    assert threading.active_count() == before + 1
    assert names.asked == ["api.test"]
    later = Background(lambda: resolve("api.test", 443, soon()))
    answer.set()
    assert isinstance(later.error(), socket.gaierror)
    eventually(lambda: not module._lookups)


def test_an_aborted_attempt_does_not_wait_for_the_name_server(names: Names) -> None:
    names.known["api.test"] = answer = threading.Event()
    aborted = threading.Event()
    waiting = Background(lambda: resolve("api.test", 443, soon(), aborted))
    eventually(lambda: names.asked)
    with within(0.5):
        aborted.set()
        assert isinstance(waiting.error(), ConnectionAbortedError)
    answer.set()


def test_without_a_thread_the_name_can_be_asked_for_again(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    names.known["api.test"] = [("127.0.0.1", 1)]

    def no_thread(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with within(0.5), pytest.raises(OSError, match="can't start new thread"):
            resolve("api.test", 443, soon())
    assert resolve("api.test", 443, soon())


def test_interrupted_at_the_start_of_the_thread_the_name_can_be_asked_for_again(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: threading.Thread) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            resolve("api.test", 443, soon())
    names.known["api.test"] = [("127.0.0.1", 1)]
    assert [a[4] for a in resolve("api.test", 443, soon())] == [("127.0.0.1", 1)]


def test_a_forked_child_asks_for_itself(names: Names) -> None:
    names.known["api.test"] = answer = threading.Event()
    waiting = Background(lambda: resolve("api.test", 443, soon()))
    eventually(lambda: names.asked)
    with module._lookups_lock:
        child = os.fork()
        if child == 0:
            names.known["api.test"] = [("127.0.0.1", 1)]
            code = 1
            try:
                code = 0 if resolve("api.test", 443, soon()) else 2
            finally:
                os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    answer.set()
    assert isinstance(waiting.error(), socket.gaierror)
    module._lookups[0, "a.test", 1] = module._Lookup()
    lock = module._lookups_lock
    module._after_fork()  # what the child did, where it can be seen
    assert not module._lookups
    assert module._lookups_lock is not lock


# -- connecting


def test_families_take_turns() -> None:
    six, four = [at(i, "::1", socket.AF_INET6) for i in range(3)], [at(i) for i in range(2)]
    assert _interleave(six + four) == [six[0], four[0], six[1], four[1], six[2]]
    assert _interleave(four) == four
    assert _interleave([]) == []


def test_connecting_sets_the_socket_up() -> None:
    with Listener() as listener:
        with connect_tcp([at(listener.port)], soon()) as sock:
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 10
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3
            assert not sock.getblocking()
            assert sock.getpeername() == ("127.0.0.1", listener.port)


def test_keepalive_times_where_the_system_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "TCP_KEEPIDLE")
    with Listener() as listener:
        connect_tcp([at(listener.port)], soon()).close()


def test_a_refused_address_gives_way_at_once() -> None:
    with Listener() as listener, within(0.2):
        connect_tcp([at(refused_port()), at(refused_port()), at(listener.port)], soon()).close()


def test_a_silent_address_delays_the_next_a_little() -> None:
    with Blackhole() as hole, Listener() as listener, within(0.6, at_least=0.2):
        with connect_tcp([at(hole.port), at(listener.port)], soon()) as sock:
            assert sock.getpeername()[1] == listener.port


def test_a_refusal_while_a_silent_one_is_waited_for() -> None:
    with Blackhole() as hole, Listener() as listener, within(0.6, at_least=0.2):
        connect_tcp([at(hole.port), at(refused_port()), at(listener.port)], soon()).close()


def test_a_slow_address_is_not_given_up_for_the_next() -> None:
    """All are waited for together: the first that answers wins."""
    with Blackhole() as first, Blackhole() as second:
        with within(0.8, at_least=0.4), pytest.raises(TimeoutError):
            connect_tcp([at(first.port), at(second.port)], soon(0.4))


def test_a_deadline_that_has_passed() -> None:
    with Listener() as listener, pytest.raises(TimeoutError):
        connect_tcp([at(listener.port)], soon(-1))


def test_the_last_error_is_reported() -> None:
    with pytest.raises(ConnectionRefusedError) as caught:
        connect_tcp([at(refused_port()), at(refused_port())], soon())
    assert caught.value.errno == errno.ECONNREFUSED
    with pytest.raises(OSError, match="no address"):
        connect_tcp([], soon())


def test_an_address_that_cannot_even_be_tried() -> None:
    with Listener() as listener:
        good, strange, unreachable = at(listener.port), at(1, family=12345), at(9, "255.255.255.255")
        connect_tcp([strange, unreachable, good], soon()).close()
        with pytest.raises(OSError):
            connect_tcp([strange], soon())


def test_connecting_can_be_aborted() -> None:
    aborted = threading.Event()
    with Blackhole() as hole:
        waiting = Background(lambda: connect_tcp([at(hole.port)], soon(), aborted))
        with within(0.5):
            aborted.set()
            assert isinstance(waiting.error(), ConnectionAbortedError)
