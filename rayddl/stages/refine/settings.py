"""Settings of ``kind: refine``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import model_validator

from rayddl.methods.refinement.settings import RefineSettings
from rayddl.nets.config import NetConfig
from rayddl.stages.settings import Observers, Precision, Reads, StageConfig, listed

VIEWS = 64
"""Most views that networks see at a time, unless one image has more."""


class RefineConfig(RefineSettings, StageConfig):
    """Images of another set, changed until observers see their tiles as they see whole real images (CIM, Shang et
    al. 2026). As the published method does, start from ``rded`` with ``whole: true`` and ``factor: 2``, with a
    ``coreset`` of ``method: easiest`` and ``factor² ipc`` images of each class as anchors. There, tiles and anchors are
    the same images. Here they are those that both stages choose: ``rded`` scores them at the size of a tile,
    ``coreset`` at their own, and each draws its ``mipc`` candidates by itself.
    """

    produces: ClassVar[str] = "set"
    soft: ClassVar[bool] = True

    kind: Literal["refine"]
    set: Annotated[str, Reads(("set",))]
    """The stage whose images are refined; of several patches on an image, each is a view."""
    anchors: Annotated[str, Reads(("set",))]
    """The stage whose images the views are to resemble in their features: real images, of any number. Each view has
    the anchor of its class with which the distances of all views together are smallest; with enough anchors, no two
    views have the same one. Views that are their own anchors (``factor: 1``) do not change."""
    observer: Observers
    """The teacher whose features are compared, or a list of teachers, whose distances are averaged."""
    precision: Precision = "fp32"
    """The number format in which observers compute."""

    @model_validator(mode="after")
    def _a_layer_for_each_observer(self) -> RefineConfig:
        if self.layers is not None and len(self.layers) not in (1, len(self.observers)):
            raise ValueError(
                f"there are {len(self.layers)} layers for {len(self.observers)} observers; give one for each, or one "
                "for all"
            )
        return self

    @property
    def observers(self) -> tuple[str, ...]:
        """The teachers whose features are compared."""
        return listed(self.observer)

    def layer_of(self, observer: int) -> str | None:
        """The layer of an observer, counted from 0; ``None`` for the default."""
        if self.layers is None:
            return None
        return self.layers[observer] if len(self.layers) > 1 else self.layers[0]

    def network(self, stages: Mapping[str, StageConfig]) -> NetConfig | None:
        """The network with which the set that is refined was made."""
        of = stages.get(self.set)
        return of.network(stages) if of else None
