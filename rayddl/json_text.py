"""JSON text from outside, read within limits of bytes, levels and digits."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from rayddl import limits

DEEPEST = 64
"""Levels of lists and mappings that a document may have."""
_DIGITS = 20
_SHOWN = 60


def parse(data: bytes) -> Any:
    """Return the values in JSON text.

    Raises ``ValueError``, with a message of one line, for text that is not UTF-8 or not JSON, for numbers that are
    not finite or of more than 20 digits, and for more levels or bytes than the limits.
    """
    if len(data) > limits.DOCUMENT_BYTES.value:
        raise ValueError(limits.DOCUMENT_BYTES.exceeded(len(data), "bytes of JSON"))
    try:
        value = json.loads(data.decode(), parse_int=_whole, parse_float=_finite, parse_constant=_constant)
    except RecursionError:
        raise ValueError(f"more than {DEEPEST} levels of lists and mappings") from None
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} levels of lists and mappings")
        level = [item for each in level for item in _inside(each)]
    return value


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, str) and not value.isascii():
        value.encode()  # raises for half of a character, which no file or terminal takes
    return value if isinstance(value, list) else []


def _whole(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"a number of {len(text):,} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:_SHOWN]} is not finite")
    return value


def _constant(text: str) -> NoReturn:
    raise ValueError(f"the number {text} is not finite")
