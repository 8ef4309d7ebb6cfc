"""Settings of ``kind: report``."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from rayddl.stages.settings import Reads, StageConfig


class ReportConfig(StageConfig):
    """One self-contained HTML page about the run."""

    produces: ClassVar[str] = "page"

    kind: Literal["report"]
    of: Annotated[tuple[str, ...], Reads(("experts", "teacher", "set", "judgement"))] = ("*",)
    """The stages to show; ``"*"`` is every other stage."""
