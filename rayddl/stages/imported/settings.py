"""Settings of ``kind: imported``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from rayddl.config import OnDisk
from rayddl.stages.settings import FileRead, StageConfig


class ImportedConfig(StageConfig):
    """A set made by other code, to evaluate it and compare it with others."""

    produces: ClassVar[str] = "set"

    kind: Literal["imported"]
    path: Annotated[str, OnDisk()]
    """A folder or URI: other code's ``images_best.pt`` and ``labels_best.pt``, those of its last iteration
    (``images_5000.pt``), a rayddl set, folders of images by class, or a Parquet table; or one ``.pt`` file with images
    and labels, as a list or a dictionary. Images of ``.pt`` files must be in the source's pixel space, or pixels as
    uint8; their labels are classes, probabilities or logits, by what they are. Numbers are the source's classes in
    their order."""
    form: Literal["set", "pt", "imagefolder", "parquet"] | None = None
    """Which of these it is. Default: found out from the files."""
    method: str = Field(default="imported", min_length=1)
    """The method's name in tables and pages; a rayddl set keeps its own unless another is given."""
    lr_student: float | None = Field(default=None, gt=0)
    """The student's learning rate for which the set was made. Default: the one stored with it, else 0.01."""
    sha256: str | None = None
    """SHA-256 of the set's images and labels, as ``rayddl show`` prints it for this stage: any other set is
    refused."""

    def files_at(self, where: str) -> Iterator[FileRead]:
        """The files of the set."""
        from rayddl.data.formats.forms import files_of

        yield from (FileRead(*found) for found in files_of(where, self.form))
