"""Telephone calls over pooled Realtime connections, in threads.

    call = TwilioBridge.answer(ws)                     # flask-sock, websockets.sync, websocket-client
    with pool.connection(session=call.session(instructions="Be brief.")) as conn:
        result = TwilioBridge(call, conn, on_dtmf=...).run()

Where things are:

:mod:`.bridge`     the core: three threads, deadlines, how a call ends
:mod:`.dialect`    what a vendor's protocol has to be able to do (``Dialect``)
:mod:`.actions`    what passes between the two
:mod:`.line`       the connection to the model; :mod:`.model` what its events mean for the telephone
:mod:`.outbox`     what waits to be sent; :mod:`.playback` how much of it was heard
:mod:`.telephony`  the WebSocket of the telephony side; :mod:`.incoming` a call that has just begun
:mod:`.callbacks`, :mod:`.functions`  the application's part
:mod:`.result`     what is left of a call; :mod:`.recording` its sound
:mod:`.twilio`     one vendor
:mod:`.audiocodes` another: :mod:`.audiocodes_protocol` its messages, :mod:`.audiocodes_resume` a call over
                   several WebSockets; :mod:`.resampling` for formats that are not the model's
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .audiocodes import AudioCodesBridge
    from .bridge import Bridge
    from .dialect import Dialect
    from .functions import Output
    from .incoming import Incoming
    from .result import CallResult
    from .telephony import Telephony, TelephonyClosed
    from .twilio import TwilioBridge

__all__ = [
    "AudioCodesBridge",
    "Bridge",
    "CallResult",
    "Dialect",
    "Incoming",
    "Output",
    "Telephony",
    "TelephonyClosed",
    "TwilioBridge",
]

_HOME = {
    "AudioCodesBridge": "audiocodes",
    "Bridge": "bridge",
    "CallResult": "result",
    "Dialect": "dialect",
    "Incoming": "incoming",
    "Output": "functions",
    "Telephony": "telephony",
    "TelephonyClosed": "telephony",
    "TwilioBridge": "twilio",
}


def __getattr__(name: str) -> Any:
    # Lazy: a call of one vendor does not load the other.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
