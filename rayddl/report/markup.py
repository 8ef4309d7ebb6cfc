"""Creates HTML and SVG elements; all texts and attributes are escaped."""

from __future__ import annotations

import math

from markupsafe import Markup, escape


def el(tag: str, *children: str | Markup, **attributes: str | float | None) -> Markup:
    """Return an element. ``class_`` is written as ``class``, ``stroke_width`` as ``stroke-width``.

    Children that are not :class:`Markup` are escaped as text. Attributes that are ``None`` are omitted.
    """
    written = [
        Markup(' {}="{}"').format(name.rstrip("_").replace("_", "-"), _value(value))
        for name, value in attributes.items()
        if value is not None
    ]
    inside = Markup("").join(escape(child) for child in children)
    return Markup("<{}{}>{}</{}>").format(tag, Markup("").join(written), inside, tag)


def place(value: float) -> str:
    """Return a coordinate rounded to 0.1, without trailing zeros. Raises ``ValueError`` if it is not finite."""
    if not math.isfinite(value):
        raise ValueError("a coordinate must be finite")
    return f"{value:.1f}".removesuffix(".0") if abs(value) >= 0.05 else "0"


def _value(value: str | float) -> str:
    return value if isinstance(value, str) else place(value)
