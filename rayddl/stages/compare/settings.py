"""Settings of ``kind: compare``."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import model_validator

from rayddl.stages.settings import Reads, StageConfig


class CompareConfig(StageConfig):
    """One table and one page over all sets that evaluate stages have evaluated."""

    produces: ClassVar[str] = "page"

    kind: Literal["compare"]
    of: Annotated[tuple[str, ...], Reads(("judgement",))] = ("*",)
    """The evaluate stages to compare; ``"*"`` is every one."""
    runs: tuple[str, ...] = ()
    """Folders or URIs of finished evaluate stages of other runs, to compare with these."""
    names: tuple[str, ...] = ()
    """What to call each of ``runs``. Default, also for ``""``: the name in the definition that evaluated it, of several
    runs that share the evaluation the first one's."""

    @model_validator(mode="after")
    def _a_name_for_each(self) -> CompareConfig:
        if self.names and len(self.names) != len(self.runs):
            raise ValueError(
                f"names has {len(self.names)} entries for {len(self.runs)} runs; give one for each"
            )
        return self
