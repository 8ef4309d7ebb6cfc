"""Changes of results that concern some settings of a kind, and so fingerprints of stages with those settings only.

A change that concerns all stages of a kind raises the kind's version instead. Imports neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rayddl.config import Config
from rayddl.data.config import IMAGENET_SIZE, SourceConfig
from rayddl.methods.training.settings import zoomed
from rayddl.nets.config import NORMS, NetConfig

ZOOMED = "test images zoomed as published"
RESNET = "resnet18 with batch norm initialised as torchvision's"
BATCH_NORM = "batch norm summed image by image, after a bias without gradient"
LOWERED = "shortcuts of resnet18 in the number format of its convolutions"
SIDES = {"digits": 8, "cifar10": 32, "cifar100": 32, "tinyimagenet": 64, "imagenet": IMAGENET_SIZE}
"""Sides in pixels of sources whose images have one size."""


def side_of(source: SourceConfig) -> int | None:
    """The side of the source's images in pixels; ``None`` if it is known only from the files."""
    return source.size or SIDES.get(source.name)


class _Published(Protocol):
    @property
    def zoomed(self) -> bool:
        """True if published results for the source are of zoomed test images."""


def zooms(zoom: bool | None, source: _Published) -> bool:
    """True if test images are zoomed: as set, else if the published results for ``source`` are of zoomed ones."""
    return source.zoomed if zoom is None else zoom


def tested_on_zoomed(zoom: bool | None, source: SourceConfig, side: int | None) -> Sequence[str]:
    """The revision of networks tested at ``side`` pixels; empty where images are not zoomed, or unchanged by it."""
    unchanged = side is not None and zoomed(side) == side
    return () if unchanged or not zooms(zoom, source) else (ZOOMED,)


def of_networks(config: Config) -> Sequence[str]:
    """The revisions of the networks named in ``config``."""
    values = [getattr(config, name) for name in type(config).model_fields]
    nets = [net for value in values for net in (value if isinstance(value, tuple) else (value,))]
    named = {net.name for net in nets if isinstance(net, NetConfig)}
    found = {net.name for net in nets if isinstance(net, NetConfig) and net.norm == "batch"}
    own = any(NORMS.get(name, ())[1:] for name in found)
    lowered = "resnet18" in named and getattr(config, "precision", None) == "bf16"
    return (
        *((RESNET,) if "resnet18" in found else ()),
        *((BATCH_NORM,) if own else ()),
        *((LOWERED,) if lowered else ()),
    )
