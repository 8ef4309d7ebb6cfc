"""Draws random images of every class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from rayddl.errors import SourceError

Short = Literal["error", "cap", "repeat"]


def per_class(
    labels: Tensor,
    classes: Sequence[str],
    ipc: int | Sequence[int],
    draws: torch.Generator,
    short: Short = "cap",
) -> Tensor:
    """Indices of ``ipc`` different images of every class, or of ``ipc[c]`` of class c, in class order, drawn at random.

    ``labels`` is int64 ``[N]``. If a class has fewer images, ``short`` decides: ``error`` raises
    :class:`SourceError`, ``cap`` returns all of them, ``repeat`` repeats them in turn until there are
    enough.
    """
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    wanted = [ipc] * len(counts) if isinstance(ipc, int) else ipc
    if short == "error":
        refuse_short(classes, counts, max(wanted))
    picked = []
    for c, (count, most) in enumerate(zip(counts, wanted, strict=True)):
        members = torch.nonzero(labels == c).flatten()
        order = torch.randperm(count, generator=draws)
        if short == "repeat" and 0 < count < most:
            order = order.repeat(-(-most // count))
        picked.append(members[order[:most]])
    return torch.cat(picked)


def refuse_short(classes: Sequence[str], counts: Sequence[int], wanted: int) -> None:
    """Raise :class:`SourceError` if a class has fewer than ``wanted`` images."""
    short = [(name, n) for name, n in zip(classes, counts, strict=True) if n < wanted]
    if short:
        name, found = short[0]
        others = f", and {len(short) - 1} more classes are short" if len(short) > 1 else ""
        raise SourceError(
            f"class {name!r} has {found} images and {wanted} are asked for{others}. Lower ipc, or say what to do "
            "with short_class: cap (fewer images of that class) or repeat (some of them more than once).",
            code="class-too-small",
        )
