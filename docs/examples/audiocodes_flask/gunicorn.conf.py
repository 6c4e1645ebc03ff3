"""gunicorn reads this by itself when it is started in this folder: ``gunicorn 'app:create_app()'``."""

from __future__ import annotations

from rtpool_sync.contrib.gunicorn import child_exit, post_worker_init

__all__ = ["child_exit", "post_worker_init"]

worker_class = "gthread"
# One process: a call that is resumed has to come back to the one that has it.
workers = 1
# A call holds a thread of these, and one more while it is carried on over another WebSocket.
threads = 24
# What is left of the calls under way when the server is to stop. Then they are ended, not cut off.
graceful_timeout = 30
