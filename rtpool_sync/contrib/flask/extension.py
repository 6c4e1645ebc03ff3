"""``Realtime``, the extension object, and what it keeps in ``app.extensions["realtime"]``."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from flask import Flask, current_app, has_app_context

from ...config import SETTINGS, PoolConfig, config_error, hide_secrets, unknown_field
from ...connection import RealtimeConnection
from ...pool import RealtimePool
from ...protocols.base import Protocol
from ...settings import FILES_VARIABLE, load_with_sources
from . import borrowed, commands, monitoring

__all__ = ["Pools", "Realtime"]

KEY = "realtime"
FILES_KEY = "REALTIME_SETTINGS_FILES"


class Realtime:
    """The extension: one pool for each application that it is initialized with.

    Args:
        app: An application to start with, as by :meth:`init_app`.
        url_prefix: Where the monitoring pages are; ``None`` for nowhere.
        name: Of the pool; further extension objects with other names give an application further pools.
        guard: Called for each request of a monitoring page, with no argument, in the request's context. Who
            may see it: anything true. Anything false answers 403; a response answers instead of the page.
        protocol, registry, settings: As of :class:`~rtpool_sync.RealtimePool`; the settings win over
            those of the application.

    Raises:
        ConfigError: There is no such setting.
        TypeError: ``guard`` cannot be called.
    """

    def __init__(
        self,
        app: Flask | None = None,
        url_prefix: str | None = "/realtime",
        *,
        name: str = "default",
        guard: Callable[[], Any] | None = None,
        protocol: str | Protocol = "realtime",
        registry: Any = None,
        **settings: Any,
    ) -> None:
        hide_secrets(settings)
        slips = [unknown_field(key) for key in settings if key not in SETTINGS]
        if slips:  # values are looked at with all the others, at first use
            raise config_error(slips)
        if guard is not None and not callable(guard):
            raise TypeError(f"guard must be a callable or None, not {type(guard).__name__}")
        self.name = name
        self.url_prefix = url_prefix
        self.guard = guard
        self._protocol = protocol
        self._registry = registry
        self._settings = settings
        if app is not None:
            self.init_app(app)

    def __repr__(self) -> str:
        return f"<Realtime {self.name!r}>"

    def init_app(self, app: Flask) -> None:
        """Give ``app`` the pool, the monitoring pages and the commands. Opens nothing, reads no settings.

        Raises:
            RuntimeError: The application has a pool of this name already.
        """
        pools = app.extensions.get(KEY)
        first = pools is None
        if pools is None:
            pools = app.extensions[KEY] = Pools(app)
        pools.add(self)
        if first:
            borrowed.watch(app)
            app.cli.add_command(commands.group)
        if self.url_prefix is not None:
            monitoring.mount(app, self.url_prefix, self.guard)

    @property
    def pool(self) -> RealtimePool:
        """The pool of the current application.

        Raises:
            RuntimeError: There is no application context, or its application does not know this extension.
            ConfigError: The settings cannot be used; all faults are named at once.
        """
        if not has_app_context():
            raise RuntimeError(
                "no application context: use `with app.app_context():`, "
                "or get the pool with realtime.pool_of(app)"
            )
        return self.pool_of(current_app._get_current_object())  # type: ignore[attr-defined]

    def pool_of(self, app: Flask) -> RealtimePool:
        """Return the pool of ``app``, for threads that have no application context.

        Raises:
            RuntimeError, ConfigError: As :attr:`pool` does.
        """
        pools = app.extensions.get(KEY)
        if pools is None or pools.member(self.name) is not self:
            raise RuntimeError(f"init_app() of {self!r} was not called with application {app.name!r}")
        pool: RealtimePool = pools[self.name]
        return pool

    def connection(
        self, timeout: float | None = None, *, session: Mapping[str, Any] | None = None
    ) -> AbstractContextManager[RealtimeConnection]:
        """Return a context manager that lends a connection: ``with realtime.connection() as conn: ...``.

        Args, and what entering raises: as of ``RealtimePool.connection()``.

        Raises:
            RuntimeError, ConfigError: As :attr:`pool` does.
        """
        return self.pool.connection(timeout, session=session)

    def acquire(
        self, timeout: float | None = None, *, session: Mapping[str, Any] | None = None
    ) -> RealtimeConnection:
        """Check a connection out; :meth:`release` gives it back, and the end of the request if you do not."""
        return self.pool.acquire(timeout, session=session)

    def release(self, conn: RealtimeConnection) -> None:
        """Give a connection back, in a context or outside of it. Doing it twice is harmless.

        Raises:
            ValueError: It is not a connection of a pool of this extension.
        """
        pool = getattr(conn, "_pool", None)
        if not isinstance(pool, borrowed.FlaskPool) or pool.name != self.name:
            raise ValueError(f"not a connection of {self!r}")
        pool.release(conn)

    def close(self, app: Flask, timeout: float = 10.0) -> None:
        """Close the pool of ``app`` if it was used, as ``RealtimePool.close``. The next use makes another."""
        app.extensions[KEY].close(self.name, timeout)

    # -- for Pools

    def _read(self, settings: Any) -> tuple[PoolConfig, dict[str, str]]:
        return load_with_sources(self.name, settings=settings, files=_files(settings), **self._settings)

    def _make(self, config: PoolConfig, registry: Any = None) -> RealtimePool:
        registry = self._registry if registry is None else registry
        return borrowed.FlaskPool(config, name=self.name, protocol=self._protocol, registry=registry)


class Pools(Mapping[str, RealtimePool]):
    """The pools of one application by name, each made on first use: ``app.extensions["realtime"]``."""

    def __init__(self, app: Flask) -> None:
        # No lock, which a fork could leave taken: single operations of a dict are atomic.
        self._app = weakref.ref(app)  # which owns this object
        self._members: dict[str, Realtime] = {}
        self._pools: dict[str, RealtimePool] = {}

    def add(self, member: Realtime) -> None:
        if member.name in self._members:
            raise RuntimeError(
                f"this application has a realtime pool {member.name!r} already; use another name="
            )
        self._members[member.name] = member

    def member(self, name: str) -> Realtime | None:
        return self._members.get(name)

    def __getitem__(self, name: str) -> RealtimePool:
        pool = self._pools.get(name)
        if pool is None:
            config, _ = self.read(name)
            pool = self._pools.setdefault(name, self._members[name]._make(config))
        return pool

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._members))

    def __len__(self) -> int:
        return len(self._members)

    def __repr__(self) -> str:
        return f"<Pools: {', '.join(map(repr, self._members))}>"

    def read(self, name: str) -> tuple[PoolConfig, dict[str, str]]:
        """The settings of a pool, and where each comes from."""
        return self._members[name]._read(self._settings())

    def _settings(self) -> Any:
        app = self._app()
        assert app is not None, "the application is gone"
        return app.config  # looked up late: FlaskDynaconf may have replaced it since init_app()

    def for_check(self, name: str) -> RealtimePool:
        """A pool of its own for a try, with one connection at most, that shows up nowhere."""
        config, _ = self.read(name)
        return self._members[name]._make(config.replace(max_connections=1, min_idle=0), registry=False)

    def close(self, name: str, timeout: float) -> None:
        pool = self._pools.pop(name, None)
        if pool is not None:
            pool.close(timeout)


def _files(settings: Any) -> Any:
    named = settings.get(FILES_KEY)
    if named is not None:
        return named
    if os.environ.get(FILES_VARIABLE) or not type(settings).__module__.startswith("dynaconf"):
        return None
    # FlaskDynaconf has read settings.toml already, for an environment that it chooses its own way
    # (FLASK_ENV): to read it once more might add the settings of another one.
    return ()
