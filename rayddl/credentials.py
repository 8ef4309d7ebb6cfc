"""Removes credentials from text that goes into artifacts, records, pages and messages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_MARK = re.compile(r"(:\\{0,8}/\\{0,8}/)")
"""The ``://`` of a URI, also with the slashes escaped as in JSON."""
_ENCODED = re.compile(
    r"(%(?:25){0,8}3A(?:/|%(?:25){0,8}2F){2}|:%(?:25){0,8}2F(?:/|%(?:25){0,8}2F)|:/%(?:25){0,8}2F)",
    re.IGNORECASE,
)
"""The same, percent-encoded in part or as a whole, once or several times; Python's ``quote`` leaves the slashes."""
_ENCODED_AT = re.compile(r"\S*%(?:25){0,8}40", re.IGNORECASE)
_ENCODED_OPTIONS = re.compile(r"%(?:25){0,8}(?:3F|23)[^\s'\"]*", re.IGNORECASE)
_COLON = re.compile(r":|%(?:25){0,8}3A", re.IGNORECASE)
_AT = re.compile(r"@|%(?:25){0,8}40", re.IGNORECASE)
_SECRET = re.compile(r"secret|key|token|pass|sig|credential", re.IGNORECASE)
_SECRET_OPTION = re.compile(rf"(?:{_SECRET.pattern})[\w.-]{{0,40}}(?:=|%(?:25){{0,8}}3D)", re.IGNORECASE)
_FLAT = re.compile(r"(?<![\w+.-])([A-Za-z][\w+.-]{1,19}:/)[^\s/:@'\"]{1,200}:[^\s@'\"]{1,400}@")
"""A URI as a path, in which one slash remains of two, with its user and secret."""
_PORT = re.compile(r"\d{1,5}(?![^\s/?#'\"])")
_MORE_OPTIONS = re.compile(r"&[\w.-]+=\S*")
_PLACE_END = re.compile(r"[/?#]")
_WORD_END = re.compile(r"[\s/?#]")
_PLAIN_END = re.compile(r"[\s'\"]")
_WORD = re.compile(r"[^\s?#'\"]*")


def scrub(value: Any) -> Any:
    """Return ``value`` without the user part, query and fragment of every URI in it, in time linear in its length.

    Mappings, lists and tuples are processed recursively; other values than strings are returned unchanged. A key
    may contain any character: what stands between ``://`` and an ``@`` is removed where it can be a key.
    """
    if isinstance(value, str):
        # A percent-encoded URI may be in the query of another one, which goes as a whole.
        for mark in (_MARK, _ENCODED):
            value = _scrubbed(value, mark) if mark.search(value) else value
        return _FLAT.sub(r"\1", value) if ":/" in value else value
    if isinstance(value, Mapping):
        return {scrub(key): scrub(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(scrub(item) for item in value)
    return value


def _scrubbed(text: str, marks: re.Pattern[str]) -> str:
    before, *rest = marks.split(text)
    found = [before]
    # Text that begins with a URI is taken for a URI as a whole, as if it were in quotation marks.
    alone, only = _scheme(before) == len(before), len(rest) == 2
    for mark, part in zip(rest[::2], rest[1::2], strict=True):
        own = _without_encoded(part) if marks is _ENCODED else part
        found += [mark, _without_credentials(own, _quote_before(before), alone, only)]
        before, alone = part, False
    return "".join(found)


def _without_encoded(part: str) -> str:
    """Return ``part`` without a percent-encoded user part and query."""
    user = _ENCODED_AT.match(part)
    return _ENCODED_OPTIONS.sub("", part[user.end() :] if user else part, count=1)


def _quote_before(before: str) -> str:
    """Return the quotation mark in front of the scheme that ends ``before``, or nothing."""
    start = len(before) - _scheme(before)
    return before[start - 1] if start and before[start - 1] in "'\"" else ""


def _scheme(before: str) -> int:
    """Return the length of the scheme that ends ``before``. A scheme is short; the bound keeps the time linear."""
    length = 0
    while length < min(20, len(before)) and (before[-length - 1].isalnum() or before[-length - 1] in "+.-"):
        length += 1
    return length


def _without_credentials(part: str, quote: str, alone: bool, only: bool) -> str:
    """Return ``part``, which begins after ``://``, without the user part and the query of the URI; ``only`` if the text
    has no other URI.
    """
    line, newline, rest = part.partition("\n")
    line = line[_length_of_user(line, quote, alone) or _length_of_encoded_user(line) :]
    place = _PLAIN_END.search(line)
    end = place.start() if place else len(line)
    options = min((at for mark in "?#" if (at := line.find(mark, 0, end)) >= 0), default=-1)
    if options >= 0:
        line = line[:options] + line[_end_of_options(line, options, end, quote, alone and only) :]
    encoded = _ENCODED_OPTIONS.search(line, 0, end) if options < 0 else None
    if encoded and _SECRET_OPTION.search(encoded[0]):
        line = line[: encoded.start()] + line[encoded.end() :]
    return line + newline + rest


def _length_of_user(line: str, quote: str, alone: bool) -> int:
    """Return how many characters at the start of ``line`` are a user part with its ``@``."""
    closing = _closing(line, quote) if quote else None
    reach = len(line) if closing is None else closing
    head = _PLAIN_END.split(line[:reach].split("?", 1)[0].split("#", 1)[0], 1)[0]
    first = head.partition("/")[0]
    if "@" in first or ":" in first:
        name, colon, after = first.partition(":")
        if "@" in name or (colon and "@" not in head and _PORT.match(after)):
            return head.rfind("@", 0, len(first)) + 1
        # A secret key may contain every character, also a blank, a quotation mark or a question mark.
        return line.rfind("@", 0, reach) + 1
    # Without a colon, an "@" behind a "/" is part of a path, and one behind a blank is of the text, unless all of
    # it is the URI.
    ends = _PLACE_END if quote or alone else _WORD_END
    found = ends.search(line, 0, reach)
    return line.rfind("@", 0, found.start() if found else reach) + 1


def _length_of_encoded_user(line: str) -> int:
    """Return how many characters at the start of ``line`` are a user part whose ``@`` is percent-encoded."""
    head = _WORD.match(line)[0]  # type: ignore[index]  # it matches everywhere
    _, *after = _COLON.split(first := head.partition("/")[0], maxsplit=1)
    secret = after and not _PORT.match(after[0])
    ends = [found.end() for found in _AT.finditer(head if secret else first)]
    return ends[-1] if ends else 0


def _closing(line: str, quote: str) -> int | None:
    """Return where the quotation mark is that closes the URI: one that no letter or digit follows."""
    at = line.find(quote)
    while at >= 0:
        if not line[at + 1 : at + 2].isalnum():
            return at
        at = line.find(quote, at + 1)
    return None


def _end_of_options(line: str, start: int, end: int, quote: str, whole: bool) -> int:
    closing = _closing(line[start:], quote) if quote else None
    if closing is not None:
        return start + closing
    # A value with a blank in it: more options follow.
    for more in _MORE_OPTIONS.finditer(line, end):
        end = more.end()
    # The value of the last one may be a secret with a blank in it, if all of the text is the URI.
    name = line[max(start, line.rfind("&", start, end)) : end].partition("=")[0]
    return len(line) if whole and _SECRET.search(name) else end
