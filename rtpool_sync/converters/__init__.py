"""From what a user wrote to what the pool works with, and back to something that may be shown."""

from .kinds import API_KEY, CA_FILE, Kind, Refused, check_key, header_text, seconds, url, whole, word
from .masking import Secret, masked_session, masked_url, show
from .tables import HEADERS, SESSION, FrozenDict

__all__ = [
    "API_KEY",
    "CA_FILE",
    "HEADERS",
    "SESSION",
    "FrozenDict",
    "Kind",
    "Refused",
    "Secret",
    "check_key",
    "header_text",
    "masked_session",
    "masked_url",
    "seconds",
    "show",
    "url",
    "whole",
    "word",
]
