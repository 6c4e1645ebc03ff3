"""Who may see the monitoring pages: functions for ``REALTIME_MONITORING_GUARD``.

A guard takes the request. What it returns decides: something true lets the
request in, something false refuses it with 403, and a response is sent as it is.
"""

from __future__ import annotations

from typing import Any

__all__ = ["staff"]


def staff(request: Any) -> bool:
    """Users of the admin. ``/health`` is for everybody: load balancers do not log in."""
    match = request.resolver_match
    if match is not None and match.view_name == "realtime:health":
        return True
    user = getattr(request, "user", None)
    return user is not None and bool(user.is_active and user.is_staff)
