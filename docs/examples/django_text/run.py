"""The whole example in one process: an embedded server that answers, and the application in front of it."""

from __future__ import annotations

import os

from django.core.management import execute_from_command_line

from rtpool_sync.emulator import RealtimeServer


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "text.settings")
    port = os.environ.get("PORT", "8000")
    with RealtimeServer() as server:
        os.environ["OPENAI_BASE_URL"] = server.base_url  # wins over settings.toml
        # Reloading would start a second server.
        execute_from_command_line(["manage.py", "runserver", "--noreload", port])


if __name__ == "__main__":
    main()
