"""Settings of ``kind: compare``."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from rayddl.stages.settings import Reads, StageConfig


class CompareConfig(StageConfig):
    """One table and one page over all sets that evaluate stages have evaluated."""

    produces: ClassVar[str] = "page"

    kind: Literal["compare"]
    of: Annotated[tuple[str, ...], Reads(("judgement",))] = ("*",)
    """The evaluate stages to compare; ``"*"`` is every one."""
    runs: tuple[str, ...] = ()
    """Folders or URIs of finished evaluate stages of other runs, to compare with these."""
