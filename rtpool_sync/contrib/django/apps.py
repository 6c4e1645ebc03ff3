"""The Django application. ``ready()`` runs in every management command, and twice under runserver."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.core.signals import request_finished, request_started, setting_changed

from ...settings import KEYS
from . import borrowed, conf
from .handler import pools

__all__ = ["RealtimeConfig"]


class RealtimeConfig(AppConfig):
    name = "rtpool_sync.contrib.django"
    label = "rtpool_sync"
    verbose_name = "Realtime pools"

    def ready(self) -> None:
        """Connect signals and register checks: nothing else, and nothing is opened."""
        from . import checks

        checks.register()
        request_started.connect(borrowed.started, dispatch_uid="rtpool_sync")
        request_finished.connect(borrowed.finished, dispatch_uid="rtpool_sync")
        setting_changed.connect(_setting_changed, dispatch_uid="rtpool_sync")


def _setting_changed(*, setting: str, **kwargs: Any) -> None:
    # What tests do with override_settings: the pools of before have other settings.
    if setting.upper() in KEYS or setting in conf.OWN_KEYS:
        pools.close_all(timeout=0.0)
