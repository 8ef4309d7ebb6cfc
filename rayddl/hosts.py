"""Which hosts a command may contact: those that the user named, and not those that a file names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

from rayddl.credentials import scrub
from rayddl.errors import UserError

Host: TypeAlias = tuple[str, str]
"""Scheme with authority, and query, both as written: a query may name another host."""

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,19}://[^\s'\"]*")
_HERE = ("file:///", "mock://")
_allowed: ContextVar[frozenset[Host] | None] = ContextVar("allowed", default=None)


@contextmanager
def only(*named: str | None, allow: bool = False) -> Iterator[None]:
    """In the block, :func:`check` refuses all hosts but those of the URIs in the texts ``named``.

    With ``allow``, and outside of such a block, every host is allowed.
    """
    found = frozenset(_host(uri) for text in named if text for uri in _URI.findall(text))
    token = _allowed.set(None if allow else found)
    try:
        yield
    finally:
        _allowed.reset(token)


def check(uri: str) -> None:
    """Raise :class:`UserError` if ``uri`` is of a host that this command may not contact."""
    allowed = _allowed.get()
    if allowed is None or "://" not in uri or uri.startswith(_HERE) or _host(uri) in allowed:
        return
    # The path may hold the value of a variable.
    raise UserError(
        f"a file names a place at {scrub(_host(uri)[0])!r}, and the command line does not, so it is not contacted; if "
        "you trust the file, give --allow-remote (in Python allow_remote=True), or name the place yourself",
        code="host-not-named",
    )


def restricted() -> bool:
    """True inside a block in which not every host is allowed."""
    return _allowed.get() is not None


def _host(uri: str) -> Host:
    place, _, query = uri.partition("?")
    scheme, _, rest = place.partition("://")
    return f"{scheme.lower()}://{re.split(r'[/#]', rest, maxsplit=1)[0]}", query
