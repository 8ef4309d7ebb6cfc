"""``kind: report``: one self-contained page about the stages it names.

The module ``report`` of a kind's folder renders its stages: ``read(found)`` returns a
:class:`rayddl.report.run.ReportedStage`, ``part(stages, run)`` a :class:`rayddl.report.run.Part` for all stages of
the kind, and ``TINT`` is the colour of the kind's bars. Stages of kinds without it are listed with folder and time
only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rayddl.report.page import render
from rayddl.report.run import Chapter, ReportedStage, Run
from rayddl.stages.context import Context, Input, Result
from rayddl.stages.finished import PAGE, as_stage, in_order, versions
from rayddl.stages.kinds import known
from rayddl.stages.report.settings import ReportConfig


def run(config: ReportConfig, context: Context) -> Result:
    """Write ``report.html``. Raises :class:`ArtifactError` for an incomplete input."""
    del config
    inputs = in_order(context)
    total = len(inputs) + 1
    used = {found.kind for found in inputs}
    sections = {
        name: module for name, kind in known().items() if name in used and (module := kind.optional("report"))
    }
    read: dict[str, list[ReportedStage]] = {name: [] for name in sections}
    stages = []
    for done, found in enumerate(inputs):
        context.progress.update(done, total, found.stage)
        module = sections.get(found.kind)
        stages.append(as_stage(found, module.TINT if module else "random"))
        if module:
            read[found.kind].append(module.read(found))
    page = render(
        Run(
            definition=context.definition,
            source=context.source.model_dump(mode="json"),
            seed=context.seed,
            versions=versions(),
            stages=tuple(stages),
            warnings=tuple(_warnings(inputs)),
            chapters=tuple(Chapter(sections[name].part, tuple(shown)) for name, shown in read.items()),
        )
    ).encode()
    context.out.write(PAGE, page)
    context.progress.update(total, total)
    return Result({"file": PAGE, "bytes": len(page)})


def _warnings(inputs: Sequence[Input]) -> Iterator[str]:
    kinds = known()
    for found in inputs:
        if found.kind in kinds:
            yield from (f"{found.stage}: {text}" for text in kinds[found.kind].cautions_after(found.summary))
