"""``kind: report``: one self-contained page about the stages it names.

What a stage looks like on the page its kind decides, in the module ``report`` of the kind's folder: ``read(found)``
gives a :class:`rayddl.report.run.ReportedStage`, ``part(stages, run)`` makes a :class:`rayddl.report.run.Part` of all
that the kind has in the run, and ``TINT`` is the colour of the kind's bars. Stages of kinds without it appear with
their folder and time only.
"""

from __future__ import annotations

from rayddl.report.page import render
from rayddl.report.run import Chapter, ReportedStage, Run
from rayddl.stages.context import Context, Result
from rayddl.stages.finished import PAGE, as_stage, in_order, versions
from rayddl.stages.kinds import known
from rayddl.stages.report.settings import ReportConfig


def run(config: ReportConfig, context: Context) -> Result:
    """Write ``report.html``. Raises :class:`ArtifactError` for an input that is not whole."""
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
            chapters=tuple(Chapter(sections[name].part, tuple(shown)) for name, shown in read.items()),
        )
    ).encode()
    context.out.write(PAGE, page)
    context.progress.update(total, total)
    return Result({"file": PAGE, "bytes": len(page)})
