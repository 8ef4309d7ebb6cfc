"""Warnings about results that will disappoint: collected from the kinds, and as errors with ``--strict``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rayddl.errors import StageError, UserError
from rayddl.pipeline.plan import Plan


def before(plan: Plan, outlook: Any = None) -> dict[str, tuple[str, ...]]:
    """Return the warnings about the stages of ``plan`` that are not done, by stage. ``outlook`` is the result of
    :func:`rayddl.stages.kinds.outlook`; default: made here, if a kind needs it.
    """
    waiting = [p for p in plan.stages if p.state != "done" and p.stage.kind.optional("cautions")]
    if not waiting:
        return {}
    if outlook is None:
        from rayddl.stages.kinds import outlook as look

        outlook = look(plan.definition.source)
    configs = {stage.name: stage.config for stage in plan.definition.stages}
    found = {p.name: p.stage.kind.cautions_before(p.stage.config, configs, outlook) for p in waiting}
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
            code="strict",
        )
