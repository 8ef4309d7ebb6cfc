"""Elements of the page that Python writes itself; every text and attribute is escaped."""

from __future__ import annotations

import math

from markupsafe import Markup, escape


def el(tag: str, *children: str | Markup, **attributes: str | float | None) -> Markup:
    """One element. ``class_`` stands for ``class``, ``stroke_width`` for ``stroke-width``.

    Children that are not :class:`Markup` are text. Attributes that are ``None`` are left out.
    """
    written = [
        Markup(' {}="{}"').format(name.rstrip("_").replace("_", "-"), _value(value))
        for name, value in attributes.items()
        if value is not None
    ]
    inside = Markup("").join(escape(child) for child in children)
    return Markup("<{}{}>{}</{}>").format(tag, Markup("").join(written), inside, tag)


def place(value: float) -> str:
    """A coordinate to a tenth of a unit, as short as can be."""
    if not math.isfinite(value):
        raise ValueError("a coordinate must be finite")
    return f"{value:.1f}".removesuffix(".0") if abs(value) >= 0.05 else "0"


def _value(value: str | float) -> str:
    return value if isinstance(value, str) else place(value)
