"""Shared parts of the drafts with which kinds propose settings for images: steps, networks, and lines of YAML.

A kind's module ``draft`` has ``suits(request)``, a rank with its reason, and ``draft(request)``, a :class:`Draft`; its
``ALSO_CALLED`` are other names of the method, in lower case.

The published settings are for 50,000 images, whose epochs have 200 steps. What counts is the number of steps, so for
few images batches are smaller, epochs more, and windows longer in epochs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayddl import yaml_text
from rayddl.data.sources.path_contents import PathContents
from rayddl.errors import UserError

LARGEST_MATCHED = 64
"""Side in pixels up to which trajectories can be matched in reasonable time."""
STEPS_AN_EPOCH = 15
"""Least number of steps in an epoch that a batch leaves."""
STUDENT_EPOCHS, FEWEST_EPOCHS = 300, 100
STUDENT_IMAGES = 20_000
"""Images, counted each time, that a student sees at most on a processor, unless ``FEWEST_EPOCHS`` need more."""
_PLAIN = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./-]*")
_FIXED = ("cifar10", "cifar100", "digits")


@dataclass(frozen=True)
class DraftRequest:
    """What a draft is made for."""

    contents: PathContents
    gpu: bool
    half: bool = False
    """Whether there is no GPU and the processor computes bfloat16 faster than float32."""
    ipc: int | None = None
    """Images per class, if they are given."""
    size: int | None = None
    """Side in pixels, if it is given."""

    def side(self, able: Sequence[int]) -> int:
        """The side in pixels at which stages work: the given or stored one, or the largest of ``able`` that needs no
        enlarging.
        """
        contents = self.contents
        square = contents.one_size and contents.sides[0][0] == contents.sides[0][1]
        if self.size is not None:
            return self.size
        if (square and contents.side <= LARGEST_MATCHED) or contents.source["name"] in _FIXED:
            return contents.side
        return max([side for side in able if side <= contents.side], default=able[0])

    def per_class(self, patches: int = 1) -> int:
        """The images per class: the given number, or 10 where classes have at least 100 images, else 1.

        Each is made of ``patches`` different real ones. Raises :class:`UserError` if the smallest class has too few.
        """
        fewest = min(self.contents.train)
        most = fewest // patches
        wanted = self.ipc or min(10 if fewest >= 100 else 1, max(most, 1))
        if wanted > most:
            several = f", and {patches} make one image" if patches > 1 else ""
            raise UserError(
                f"{wanted} images per class cannot be made: the smallest class has {fewest} training images{several}; "
                + (f"give at most --ipc {most}" if most else "add images, or choose another --method"),
                code="ipc-above-class",
            )
        return wanted

    def batch(self, most: int) -> int:
        """The largest power of two that leaves ``STEPS_AN_EPOCH`` steps, between 8 and ``most``."""
        batch = 8
        while batch * 2 <= most and self.contents.images / (batch * 2) >= STEPS_AN_EPOCH:
            batch *= 2
        return batch

    def student_epochs(self, made: int) -> int:
        """The epochs of students of ``made`` images: those of the literature, fewer of large sets on a processor."""
        if self.gpu:
            return STUDENT_EPOCHS
        return min(STUDENT_EPOCHS, max(FEWEST_EPOCHS, STUDENT_IMAGES // made))

    def precision(self) -> tuple[str, ...]:
        """The line of YAML that lets a stage compute in bfloat16 where that is faster; else none."""
        return (key("precision", "bf16", "faster than fp32 on this processor"),) if self.half else ()


@dataclass(frozen=True)
class Draft:
    """A kind's proposal."""

    ipc: int
    size: int
    lines: tuple[str, ...]
    """The stages in YAML, below ``stages:``."""


def convnet(side: int, width: int, **more: Any) -> dict[str, Any]:
    """A ConvNet whose last block sees about 4 pixels a side, as in the literature."""
    depth = max(1, min(7, (side // 4).bit_length() - 1)) if side > 16 else min(2, side.bit_length() - 1)
    return {"name": "convnet", "depth": depth, "width": width, **more}


def key(name: str, value: Any, comment: str = "", indent: int = 4) -> str:
    """A line of YAML with an aligned comment."""
    line = f"{' ' * indent}{name}: {_yaml(value)}"
    return f"{line:<33} # {comment}" if comment else line


def _yaml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_yaml(item)}" for name, item in value.items()) + "}"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and yaml_text.dump([value]) == f"- {value}\n":
        return value
    if isinstance(value, float):
        return f"{value:g}".replace("e-0", "e-")
    return json.dumps(value, ensure_ascii=False)
