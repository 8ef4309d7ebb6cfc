"""Settings of ``kind: imported``."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rayddl.stages.settings import StageConfig


class ImportedConfig(StageConfig):
    """A set that was made elsewhere, to be judged and compared with others."""

    produces: ClassVar[str] = "set"

    kind: Literal["imported"]
    path: str
    """A folder or URI: ``images_best.pt`` and ``labels_best.pt`` of other code, a rayddl set, folders of images
    by class, or a Parquet table. Images of ``.pt`` files are taken to be in the source's pixel space, and numbers
    to be its classes in their order."""
    form: Literal["set", "pt", "imagefolder", "parquet"] | None = None
    """Default: what is there."""
    method: str = Field(default="imported", min_length=1)
    """What tables and pages call it; a rayddl set keeps its own name unless another is given."""
    lr_student: float | None = Field(default=None, gt=0)
    """The rate that the set was made for; default: what lies with it, else 0.01."""
    sha256: str | None = None
    """The hash of the set's images and labels, as ``rayddl show`` of this stage tells it: others are refused."""
