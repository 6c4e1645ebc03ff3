"""Name resolution and TCP connect with a deadline.

``getaddrinfo`` cannot be interrupted, so it runs in a thread of its own; all
who ask for one name at the same time share that thread, so a dead DNS server
costs one thread per name, not one per attempt.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from typing import Any

__all__ = ["connect_tcp", "resolve"]

#: Seconds before the next address is tried beside one that has not answered (RFC 8305 recommends 0.25).
STAGGER = 0.25

#: Seconds between looks at whether the attempt was aborted.
ABORT_LOOK = 0.1

Address = tuple[int, int, int, str, Any]


class _Lookup:
    """One getaddrinfo under way."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.addresses: list[Address] = []
        self.error: OSError | None = None


_lookups: dict[tuple[int, str, int], _Lookup] = {}  # by process, host and port
_lookups_lock = threading.Lock()  # guards _lookups


def _after_fork() -> None:
    global _lookups_lock
    _lookups_lock = threading.Lock()
    _lookups.clear()


os.register_at_fork(after_in_child=_after_fork)


def _look_up(key: tuple[int, str, int], lookup: _Lookup) -> None:
    error: OSError | None = None
    try:
        lookup.addresses = list(socket.getaddrinfo(key[1], key[2], 0, socket.SOCK_STREAM))
    except (OSError, UnicodeError) as problem:
        error = problem if isinstance(problem, OSError) else OSError(f"not a host name: {key[1]!r}")
    finally:
        _finish(key, lookup, error)


def _finish(key: tuple[int, str, int], lookup: _Lookup, error: OSError | None) -> None:
    with _lookups_lock:
        _lookups.pop(key, None)
    lookup.error = error
    lookup.done.set()


def resolve(host: str, port: int, end: float, aborted: threading.Event | None = None) -> list[Address]:
    """Return the addresses of ``host``.

    Raises ``OSError`` or, at ``end``, ``TimeoutError``; soon after ``aborted`` is
    set, ``ConnectionAbortedError``.
    """
    with contextlib.suppress(OSError, UnicodeError):
        return list(  # a literal address needs no thread
            socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)
        )
    key = (os.getpid(), host, port)
    with _lookups_lock:
        lookup = _lookups.get(key)
        alone = lookup is None
        if lookup is None:
            lookup = _lookups[key] = _Lookup()
    if alone:  # not under the lock: while a thread is started, other greenlets run
        thread = threading.Thread(target=_look_up, args=(key, lookup), name="rtpool-resolver", daemon=True)
        try:
            thread.start()
        except RuntimeError as problem:
            _finish(key, lookup, OSError(f"no thread for a DNS lookup: {problem}"))
        except BaseException:  # out of nowhere: nobody else would ever take it out again
            _finish(key, lookup, OSError("a DNS lookup was interrupted"))
            raise
    while not lookup.done.wait(max(0.0, min(end - time.monotonic(), ABORT_LOOK))):
        if time.monotonic() >= end:
            raise TimeoutError(f"no answer about {host} from DNS")
        _check(aborted)
    error = lookup.error
    if error is not None:
        raise type(error)(*error.args)  # one of our own: others may be raising it as well
    return lookup.addresses


def _check(aborted: threading.Event | None) -> None:
    if aborted is not None and aborted.is_set():
        raise ConnectionAbortedError("aborted")


def _interleave(addresses: list[Address]) -> list[Address]:
    """Alternate the families, beginning with the resolver's first choice (RFC 8305, section 4)."""
    first = [a for a in addresses if a[0] == addresses[0][0]]
    other = [a for a in addresses if a[0] != addresses[0][0]]
    mixed = []
    for i in range(max(len(first), len(other))):
        mixed += first[i : i + 1] + other[i : i + 1]
    return mixed


def connect_tcp(
    addresses: list[Address], end: float, aborted: threading.Event | None = None
) -> socket.socket:
    """Connect to the first address that answers; a silent one delays the others by 0.25 s only.

    Raises ``OSError`` (of the last address that failed), ``TimeoutError``, or,
    soon after ``aborted`` is set, ``ConnectionAbortedError``.
    """
    waiting = _interleave(addresses)[::-1]
    open_sockets: dict[int, socket.socket] = {}
    poll = select.poll()
    error: OSError = OSError("no address")
    next_at = time.monotonic()
    try:
        while waiting or open_sockets:
            now = time.monotonic()
            if now >= end:
                raise TimeoutError("no answer to a TCP connect")
            _check(aborted)
            if waiting and (now >= next_at or not open_sockets):
                family, kind, number, _, address = waiting.pop()
                try:
                    sock = socket.socket(family, kind, number)
                except OSError as problem:  # a family this machine does not have
                    error = problem
                    continue
                open_sockets[sock.fileno()] = sock
                sock.setblocking(False)
                _tune(sock)
                with contextlib.suppress(BlockingIOError):
                    try:
                        sock.connect(address)
                    except BlockingIOError:
                        raise
                    except OSError as problem:
                        error = problem
                        open_sockets.pop(sock.fileno()).close()
                        continue
                poll.register(sock, select.POLLOUT)
                next_at = now + STAGGER
            until = min(end, now + ABORT_LOOK, next_at if waiting else end)
            for fd, _ in poll.poll(max(0.0, until - time.monotonic()) * 1000):
                sock = open_sockets.pop(fd)
                poll.unregister(fd)
                number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not number:
                    return sock
                error = OSError(number, os.strerror(number))
                sock.close()
                next_at = time.monotonic()
        raise error
    finally:
        for sock in open_sockets.values():
            sock.close()


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
