from __future__ import annotations

import logging

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_http_methods, require_safe

from rtpool_sync import PoolExhausted, PoolTimeout, RtpoolError
from rtpool_sync.contrib.django.views import metrics as pool_metrics

from .conversation import NoAnswer, ask

log = logging.getLogger(__name__)

LONGEST = 2000


@require_http_methods(["GET", "HEAD", "POST"])
def page(request: HttpRequest) -> HttpResponse:
    """A form, and below it the answer."""
    question = request.POST.get("question", "").strip()
    shown = {"question": question, "longest": LONGEST}
    if request.method != "POST":
        return render(request, "page.html", shown)
    if not 0 < len(question) <= LONGEST:
        return render(request, "page.html", {**shown, "problem": "Please ask something shorter."}, status=400)
    try:
        return render(request, "page.html", {**shown, "answer": ask(question)})
    except (PoolTimeout, PoolExhausted):
        response = render(request, "page.html", {**shown, "problem": "All lines are busy."}, status=503)
        response["Retry-After"] = "5"
        return response
    except (RtpoolError, NoAnswer) as error:
        log.warning("no answer: %s", error)
        return render(request, "page.html", {**shown, "problem": "The model did not answer."}, status=502)


@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """Where Prometheus looks if it is told nothing else."""
    return pool_metrics(request)


def from_this_machine(request: HttpRequest) -> bool:
    """Who may see the monitoring. Behind a proxy everybody comes from there: then write your own."""
    return request.META["REMOTE_ADDR"] in ("127.0.0.1", "::1")
