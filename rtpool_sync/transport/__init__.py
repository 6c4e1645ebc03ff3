"""A WebSocket on websocket-client: deadlines, full duplex, buffered reads, bounded close.

``stream`` is the byte stream (TCP, TLS), ``frames`` the framing, ``websocket``
the connection made of both, ``dial`` the way to open one.
"""

from .dial import Dial, Endpoint
from .websocket import Transport

__all__ = ["Dial", "Endpoint", "Transport"]
