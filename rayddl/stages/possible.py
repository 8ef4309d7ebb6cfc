"""Refuses before a run what must fail in it: classes, image sizes and networks that do not fit. Imports torch only for
networks of plugins, which are built to try them.
"""

from __future__ import annotations

from collections.abc import Iterator

from rayddl import plugins
from rayddl.data.sources.summary import SourceSummary
from rayddl.errors import NetError, PluginError
from rayddl.nets.config import NetConfig
from rayddl.stages.estimates import Outlook
from rayddl.stages.settings import StageConfig


def problems(name: str, config: StageConfig, outlook: Outlook) -> Iterator[str]:
    """Yield why the stage ``name`` must fail on the images of ``outlook``."""
    seen = outlook.source_summary
    if seen.fewest and config.images_needed > seen.fewest:
        yield (
            f"{name}: needs {config.images_needed:,} training images of each class, and the smallest class has "
            f"{seen.fewest:,}; lower ipc, or set short_class to cap (fewer images of that class) or repeat"
        )
    _, height, width = seen.shape
    if getattr(config, "weights", None) is None:  # pretrained networks have a size of their own
        for net in dict.fromkeys(_nets(config)):
            if not net.takes(height, width):
                yield (
                    f"{name}: {net.label} needs images of at least {net.smallest} pixels a side, and these have "
                    f"{width} x {height}; set source.size={net.smallest}"
                    + (
                        f", or depth {min(height, width).bit_length() - 1} or less"
                        if net.name == "convnet"
                        else ""
                    )
                )
            elif plugins.owner("nets", net.name) is not None:
                yield from _unbuilt(name, net, seen)


def _unbuilt(name: str, net: NetConfig, seen: SourceSummary) -> Iterator[str]:
    from rayddl.nets.build import build

    try:
        build(net, seen.shape, seen.classes, seed=0)
    except (NetError, PluginError) as error:
        yield f"{name}: {error}"


def of_source(outlook: Outlook) -> Iterator[str]:
    """Yield why the images cannot be loaded."""
    sizes = outlook.source_summary.sizes
    if outlook.source.size is None and len(sizes) > 1:
        listed = ", ".join(f"{width} x {height}" for width, height in sizes[:3])
        side = min(min(size) for size in sizes)
        yield (
            f"source: images differ in size ({listed}{', …' if len(sizes) > 3 else ''}); set source.size to the "
            f"side in pixels that all are brought to, for example --set source.size={side}"
        )


def _nets(config: StageConfig) -> Iterator[NetConfig]:
    for name in type(config).model_fields:
        value = getattr(config, name)
        yield from (
            each for each in (value if isinstance(value, tuple) else (value,)) if isinstance(each, NetConfig)
        )
