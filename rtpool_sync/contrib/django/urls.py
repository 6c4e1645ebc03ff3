"""The monitoring pages: ``path("realtime/", include("rtpool_sync.contrib.django.urls"))``.

Their names are ``realtime:status``, ``realtime:health``, ``realtime:stats``,
``realtime:config``, ``realtime:metrics``. Each answers with a slash at its end and
without, so that ``APPEND_SLASH`` does not matter.
"""

from __future__ import annotations

from django.urls import path, re_path

from . import views

app_name = "realtime"

urlpatterns = [
    path("", views.status, name="status"),
    re_path(r"^health/?$", views.health, name="health"),
    re_path(r"^stats/?$", views.stats, name="stats"),
    re_path(r"^config/?$", views.config, name="config"),
    re_path(r"^metrics/?$", views.metrics, name="metrics"),
    path("status.js", views.status_script, name="script"),
    path("status.css", views.status_style, name="style"),
]
