"""Warnings about results that will disappoint: collected from the kinds, and as errors with ``--strict``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rayddl.errors import StageError, UserError
from rayddl.pipeline.plan import Plan
from rayddl.stages import kinds


def before(plan: Plan, outlook: Any = None) -> dict[str, tuple[str, ...]]:
    """Return the warnings about the stages of ``plan`` that are not done, by stage. ``outlook`` is the result of
    :func:`rayddl.stages.kinds.outlook`; default: made here, if a stage uses the images.

    Raises :class:`UserError` for stages that must fail on these images.
    """
    waiting = [p for p in plan.chosen if p.state != "done"]
    cautious = [p for p in waiting if p.stage.kind.warns_before]
    if not cautious and not any(p.stage.config.images_needed for p in waiting):
        return {}
    if outlook is None:
        outlook = kinds.outlook(plan.definition.source, timed=False)
    problems = kinds.impossible({p.name: p.stage.config for p in waiting}, outlook)
    if problems:
        listed = "\n".join(f"  {text}" for text in problems)
        raise UserError(
            f"{plan.definition.name} cannot run on these images; nothing was started.\n{listed}",
            code="must-fail",
        )
    configs = {stage.name: stage.config for stage in plan.definition.stages}
    found = {p.name: p.stage.kind.cautions_before(p.stage.config, configs, outlook) for p in cautious}
    return {name: texts for name, texts in found.items() if texts}


def lines(warnings: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield each warning as a line that begins with its stage."""
    return (f"{stage}: {text}" for stage, texts in warnings.items() for text in texts)


def refuse_before(warnings: Mapping[str, Sequence[str]]) -> None:
    """Raise :class:`UserError` if there are warnings about stages that have not run."""
    if warnings:
        listed = "\n".join(f"  {line}" for line in lines(warnings))
        raise UserError(
            f"with --strict warnings are errors, and nothing was started:\n{listed}", code="strict"
        )


def refuse_after(stage: str, texts: Sequence[str]) -> None:
    """Raise :class:`StageError` if there are warnings about the finished stage ``stage``."""
    if texts:
        raise StageError(
            f"stage {stage!r} is finished, and with --strict its warnings are errors: {'; '.join(texts)}",
            code="strict-result",
        )
