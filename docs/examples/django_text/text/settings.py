"""Django's settings. What concerns the pool is in settings.toml, for each environment."""

from __future__ import annotations

import os
from pathlib import Path

BASE_DIR = Path(__file__).parent.parent

DEBUG = os.environ.get("ENV_FOR_DYNACONF", "development") == "development"
SECRET_KEY = "for development only" if DEBUG else os.environ["SECRET_KEY"]
ALLOWED_HOSTS = os.environ.get("ALLOWED_HOSTS", "127.0.0.1,localhost").split(",")

INSTALLED_APPS = ["rtpool_sync.contrib.django"]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
]
ROOT_URLCONF = "text.urls"
WSGI_APPLICATION = "text.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "text/templates"],
    }
]
USE_TZ = True

REALTIME_SETTINGS_FILES = [
    path for path in (BASE_DIR / "settings.toml", BASE_DIR / ".secrets.toml") if path.exists()
]
REALTIME_MONITORING_GUARD = "text.views.from_this_machine"
