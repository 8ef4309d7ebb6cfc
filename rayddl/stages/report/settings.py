"""Settings of ``kind: report``."""

from __future__ import annotations

from typing import Annotated, Literal

from rayddl.stages.settings import Reads, StageConfig


class ReportConfig(StageConfig):
    """One self-contained page about the run."""

    kind: Literal["report"]
    of: Annotated[
        tuple[str, ...],
        Reads(("experts", "match", "teacher", "rded", "coreset", "imported", "tune", "evaluate")),
    ] = ("*",)
    """The stages to show; ``"*"`` is every other stage."""
