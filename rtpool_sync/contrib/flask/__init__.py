"""The pool at home in Flask: an extension, monitoring pages, and the commands ``flask realtime``.

    from rtpool_sync.contrib.flask import Realtime

    realtime = Realtime()

    def create_app():
        app = Flask(__name__)
        realtime.init_app(app)
        return app

    @app.post("/talk")
    def talk():
        with realtime.connection() as conn:
            ...

Each application has a pool of its own, made on first use. Nothing is opened and
no thread is started before the first checkout.
"""

from __future__ import annotations

try:
    import flask as _flask  # noqa: F401
except ImportError as error:
    raise ImportError("rtpool_sync.contrib.flask needs Flask: pip install 'rtpool-sync[flask]'") from error

from .extension import Realtime

__all__ = ["Realtime"]
