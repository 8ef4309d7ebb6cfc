"""The Python API: the same runs as the command line, with values instead of text."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from rayddl import hosts
from rayddl.pipeline import estimating
from rayddl.pipeline import plan as plans
from rayddl.pipeline.definition import load as definitions
from rayddl.pipeline.definition.overrides import Overrides
from rayddl.pipeline.display.base import Display, Hidden
from rayddl.pipeline.estimating import Estimates
from rayddl.pipeline.plan import Plan
from rayddl.pipeline.plugging import Given, use
from rayddl.pipeline.results import RunResult
from rayddl.pipeline.runner import execute
from rayddl.pipeline.session import ray_session
from rayddl.plugins import activate

DefinitionLike: TypeAlias = str | os.PathLike[str] | Mapping[str, Any]
"""A definition: its file, the name of one in ``pipelines/`` or of a shipped one, or a mapping of its keys."""


def plan(
    definition: DefinitionLike,
    *,
    overrides: Overrides = (),
    out: str | os.PathLike[str] = "runs",
    plugins: Given | Sequence[Given] = (),
    allow_remote: bool = False,
) -> Plan:
    """Return what running ``definition`` would do; printed, it is a table. Starts and writes nothing.

    Contacts only hosts that ``overrides``, ``out`` or a mapping name, with ``allow_remote`` also those that a
    definition file names. ``plugins`` are as for :func:`run`. Raises :class:`rayddl.errors.UserError` with every
    problem of the input.
    """
    use(plugins)
    given = json.dumps([definition if isinstance(definition, Mapping) else "", overrides], default=str)
    with hosts.only(os.fspath(out), given, allow=allow_remote):
        return plans.make(definitions.load(definition, overrides), os.fspath(out)).narrowed(())


def estimate(plan: Plan, *, measure: bool = False, price: float | None = None) -> Estimates:
    """Return the expected work and memory of the unfinished stages of ``plan`` on this machine, with warnings about
    results that will disappoint; printed, a table.

    With ``measure``, one matching step runs in another process to measure its peak memory.
    """
    activate(plan.definition.plugins)
    return estimating.estimate(plan, measure=measure, price=price)


def run(
    definition: DefinitionLike,
    *,
    overrides: Overrides = (),
    out: str | os.PathLike[str] = "runs",
    progress: bool | Display = True,
    address: str | None = None,
    num_cpus: int | None = None,
    grows: str | Sequence[str] = (),
    plugins: Given | Sequence[Given] = (),
    strict: bool = False,
    stages: Sequence[str] = (),
) -> RunResult:
    """Run ``definition`` and return its artifacts; finished stages are not run again.

    ``overrides`` are as on the command line (``["experts.count=20"]``) or a mapping
    (``{"experts.count": 20}``). ``address`` attaches to a Ray cluster; without it, local Ray is started when
    a stage needs it and stopped at the end. ``grows`` are groups of nodes that the cluster's autoscaler can
    add, each as ``4xCPU:8,GPU:1``. ``plugins`` are loaded in addition to the installed ones and register networks,
    sources and methods for the definition: a :class:`rayddl.Plugin`, a module with a ``plugin``, or the module's name
    or file. With ``stages``, only these and the stages that they need are run. With ``strict``, warnings about results
    that disappoint are errors. Raises
    :class:`rayddl.errors.RayddlError`.
    """
    use(plugins)
    planned = plans.make(definitions.load(definition, overrides), os.fspath(out)).narrowed(stages)
    display = progress if not isinstance(progress, bool) else choose_display() if progress else Hidden()
    with ray_session(display, address, num_cpus, (grows,) if isinstance(grows, str) else grows) as ray:
        return execute(planned, display, ray, strict=strict)


def choose_display(*, as_json: bool = False, quiet: bool = False) -> Display:
    """Return the display for JSON if asked for, else for standard output: a terminal, or a pipe or file."""
    if as_json:
        from rayddl.pipeline.display.jsonl import JsonLines, private_stdout

        return JsonLines(private_stdout())
    from rayddl.pipeline.display.live import Terminal
    from rayddl.pipeline.display.plain import Plain
    from rayddl.pipeline.tables import SafeConsole

    console = SafeConsole(highlight=False)
    if not quiet and console.is_terminal and not console.is_dumb_terminal:
        return Terminal(console)
    return Plain(quiet=quiet)
