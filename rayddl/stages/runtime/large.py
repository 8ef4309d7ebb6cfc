"""Which splits no process holds as a whole. Imports neither torch nor Ray."""

from __future__ import annotations

import math
from typing import Literal

from rayddl.data.config import SourceConfig
from rayddl.data.sources import registry as sources
from rayddl.data.sources.summary import source_summary
from rayddl.stages.runtime import sizes


def is_large(config: SourceConfig, split: Literal["train", "test"]) -> bool:
    """True if the split would be decoded into shards, by workers."""
    return sources.in_place(config) and large(config, getattr(source_summary(config), split))


def large(config: SourceConfig, images: int) -> bool:
    """True if so many images of a listing are decoded into shards."""
    return images * image_bytes(config) > sizes.WHOLE_BYTES


def image_bytes(config: SourceConfig) -> int:
    """The bytes of an image, at most."""
    return 3 * config.size**2 if config.size else math.prod(source_summary(config).shape)
