from __future__ import annotations

from django.urls import include, path

from . import views

urlpatterns = [
    path("", views.page, name="page"),
    path("realtime/", include("rtpool_sync.contrib.django.urls")),
    path("metrics", views.metrics),
]
