"""Settings of ``kind: compare``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import model_validator

from rayddl.config import OnDisk
from rayddl.stages.settings import FileRead, Reads, StageConfig
from rayddl.storage import Folder

MANIFEST = "manifest.json"


class CompareConfig(StageConfig):
    """One table and one page over all sets that evaluate stages have evaluated."""

    produces: ClassVar[str] = "page"

    kind: Literal["compare"]
    of: Annotated[tuple[str, ...], Reads(("judgement",))] = ("*",)
    """The evaluate stages to compare; ``"*"`` is every one."""
    runs: Annotated[tuple[str, ...], OnDisk(each=True)] = ()
    """Folders or URIs of finished evaluate stages of other runs, to compare with these."""
    names: tuple[str, ...] = ()
    """What to call each of ``runs``. Default, also for ``""``: the name in the definition that evaluated it, of several
    runs that share the evaluation the first one's."""

    def files_at(self, where: str) -> Iterator[FileRead]:
        """The manifest, which has the hashes of the other files."""
        folder = Folder(where)
        if folder.has(MANIFEST):
            yield FileRead(folder, MANIFEST, folder.size(MANIFEST))

    @model_validator(mode="after")
    def _a_name_for_each(self) -> CompareConfig:
        if self.names and len(self.names) != len(self.runs):
            raise ValueError(
                f"names has {len(self.names)} entries for {len(self.runs)} runs; give one for each"
            )
        return self
