"""Removes credentials from text that goes into artifacts, records and messages."""

from __future__ import annotations

import re
from typing import Any

_URI = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<rest>[^\s'\"]*)")


def scrub(value: Any) -> Any:
    """Return ``value`` without the user part, query and fragment of every URI in it.

    Mappings, lists and tuples are processed recursively; other values than strings are returned unchanged.
    """
    if isinstance(value, str):
        return _URI.sub(_without_credentials, value)
    if isinstance(value, dict):
        return {scrub(key): scrub(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(scrub(item) for item in value)
    return value


def _without_credentials(found: re.Match[str]) -> str:
    rest = found["rest"].split("?", 1)[0].split("#", 1)[0]
    host, slash, path = rest.partition("/")
    # A secret key may contain "/", and the "@" then comes after the first "/".
    if "@" in rest and ":" in rest.split("@", 1)[0]:
        return found["scheme"] + rest.rsplit("@", 1)[1]
    return found["scheme"] + host.rsplit("@", 1)[-1] + slash + path
