"""A pooled connection in the clothes of ``websocket.WebSocket``, for code that was written for one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import websocket

from .errors import ConnectionLost, RecvTimeout

if TYPE_CHECKING:
    from .connection import RealtimeConnection

__all__ = ["WebSocketView"]


class WebSocketView:
    """``send``, ``recv``, ``ping``, ``settimeout``, ``connected``, ``close`` of websocket-client.

    Errors are websocket-client's: ``WebSocketTimeoutException`` and
    ``WebSocketConnectionClosedException``. ``close()`` does not close the
    socket, which belongs to the pool: it marks the connection as not to be
    reused, and ends this view.
    """

    def __init__(self, connection: RealtimeConnection) -> None:
        self._connection = connection
        self._timeout: float | None = None
        self._closed = False

    @property
    def connected(self) -> bool:
        return not (self._closed or self._connection.closed)

    def settimeout(self, timeout: float | None) -> None:
        """Limit every later ``recv``, in seconds; ``None`` for no limit."""
        self._timeout = timeout

    def gettimeout(self) -> float | None:
        return self._timeout

    timeout = property(gettimeout, settimeout)

    def send(self, payload: str | bytes, opcode: int = websocket.ABNF.OPCODE_TEXT) -> int:
        """Send a message; return the length of its payload in bytes."""
        self._check()
        if opcode == websocket.ABNF.OPCODE_BINARY and isinstance(payload, str):
            payload = payload.encode()
        elif opcode == websocket.ABNF.OPCODE_TEXT and isinstance(payload, (bytes, bytearray)):
            payload = bytes(payload).decode()
        elif opcode not in (websocket.ABNF.OPCODE_TEXT, websocket.ABNF.OPCODE_BINARY):
            raise ValueError(f"opcode {opcode} cannot be sent over a pooled connection")
        try:
            self._connection.send(payload)
        except ConnectionLost as error:
            raise websocket.WebSocketConnectionClosedException(str(error)) from error
        return len(payload.encode() if isinstance(payload, str) else payload)

    def send_text(self, text_data: str) -> int:
        return self.send(text_data)

    def send_bytes(self, data: bytes | bytearray) -> int:
        return self.send(bytes(data), websocket.ABNF.OPCODE_BINARY)

    send_binary = send_bytes

    def recv(self) -> str | bytes:
        """Return the next message, undecoded."""
        self._check()
        try:
            message: str | bytes = self._connection.recv_text(self._timeout)
        except RecvTimeout as error:
            raise websocket.WebSocketTimeoutException(str(error)) from error
        except ConnectionLost as error:
            raise websocket.WebSocketConnectionClosedException(str(error)) from error
        return message

    def recv_data(self, control_frame: bool = False) -> tuple[int, bytes]:
        """Return opcode and payload of the next message. Control frames are never shown."""
        message = self.recv()
        if isinstance(message, str):
            return websocket.ABNF.OPCODE_TEXT, message.encode()
        return websocket.ABNF.OPCODE_BINARY, message

    def ping(self, payload: str | bytes = "") -> None:
        """Prove that the peer answers. Waits, unlike websocket-client's, which only writes."""
        self._check()
        try:
            self._connection.ping(5.0 if self._timeout is None else self._timeout)
        except TimeoutError as error:
            raise websocket.WebSocketTimeoutException(str(error)) from error
        except ConnectionLost as error:
            raise websocket.WebSocketConnectionClosedException(str(error)) from error

    def pong(self, payload: str | bytes = "") -> None:
        """Nothing to do: pings of the server are answered by themselves."""
        self._check()

    def close(self, status: int = 1000, reason: bytes | str = b"", timeout: float | None = None) -> None:
        """Have the connection closed when it is returned to its pool."""
        if not self._closed and not self._connection.closed:
            self._connection.invalidate("closed through conn.websocket")
        self._closed = True

    shutdown = abort = close

    def _check(self) -> None:
        if self._closed:
            raise websocket.WebSocketConnectionClosedException("socket is already closed.")

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield self.recv()

    def __enter__(self) -> WebSocketView:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
