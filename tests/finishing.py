"""Runs a stage to its end as a run does, without a manifest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rayddl.pipeline import artifacts
from rayddl.stages.context import Context, Result


def finished(run: Callable[[Any, Context], Result], config: Any, context: Context) -> Result:
    """The result of ``run(config, context)``, after what it leaves over has been deleted."""
    result = run(config, context)
    artifacts.tidy(context.out, result.leftovers)
    return result
