"""``kind: report``: one self-contained page about the stages it names.

The module ``report`` of a kind's folder renders its stages: ``read(found)`` returns a
:class:`rayddl.report.run.ReportedStage`, ``part(stages, run)`` a :class:`rayddl.report.run.Part` for all stages of
the kind, and ``TINT`` is the colour of the kind's bars. Stages of kinds without it are listed with folder and time
only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from rayddl.data.sources import picking
from rayddl.data.sources import registry as sources
from rayddl.errors import RayddlError
from rayddl.report.gallery import CLASSES, IMAGES
from rayddl.report.page import render
from rayddl.report.run import Chapter, ReportedStage, Run
from rayddl.report.values import Pictures
from rayddl.seeds import generator
from rayddl.stages.context import Context, Input, Result
from rayddl.stages.finished import PAGE, as_stage, in_order, versions
from rayddl.stages.kinds import known
from rayddl.stages.kinds import outlook as outlook_of
from rayddl.stages.report.settings import ReportConfig
from rayddl.stages.runtime import listings


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
    context.progress.update(len(inputs), total, "reading real images")
    outlook = _outlook(context)
    page = render(
        Run(
            definition=context.definition,
            source=context.source.model_dump(mode="json"),
            seed=context.seed,
            versions=versions(),
            stages=tuple(stages),
            real=_real(context, read),
            size=_size(outlook, inputs),
            warnings=tuple(_warnings(inputs, outlook)),
            chapters=tuple(Chapter(sections[name].part, tuple(shown)) for name, shown in read.items()),
        )
    ).encode()
    context.out.write(PAGE, page)
    context.progress.update(total, total, f"{PAGE} of {len(page) / 1000:.0f} kB")
    return Result({"file": PAGE, "bytes": len(page)})


def _real(context: Context, read: Mapping[str, Sequence[ReportedStage]]) -> Pictures | None:
    """Some random real images of every class; ``None`` if no set of these classes is shown, or they cannot be read."""
    shown = [one.pictures for stages in read.values() for one in stages if one.pictures is not None]
    if not shown:
        return None
    many = IMAGES if len(shown[0].classes) <= CLASSES else 1
    draws = generator(context.seed, "shown")
    try:
        if sources.in_place(context.source):
            listed = listings.listing_of(context.source)
            (images, labels), classes = listings.drawn(context.source, listed, many, draws), listed.classes
        else:
            train = sources.load(context.source).train
            picked = picking.per_class(train.labels, train.classes, many, draws)
            images, labels, classes = train.images[picked], train.labels[picked], train.classes
    except (RayddlError, OSError) as error:
        context.progress.note(f"the page shows no real images: {error}")
        return None
    if classes != shown[0].classes:
        return None
    return Pictures(images.numpy(), labels.numpy(), classes)


def _outlook(context: Context) -> Any:
    """What a plan knows about the source; ``None`` if its files are gone."""
    try:
        return outlook_of(context.source)
    except (RayddlError, OSError) as error:
        context.progress.note(f"the page does not say how many real images there are: {error}")
        return None


def _size(outlook: Any, inputs: Sequence[Input]) -> dict[str, int]:
    """The numbers of images in the files, and of those that could not be read, as far as stages counted them."""
    if outlook is None:
        return {}
    files = {"training images": outlook.source_summary.train, "held-out images": outlook.source_summary.test}
    skipped = max((int(found.summary.get("bad") or 0) for found in inputs), default=0)
    return {**files, "unreadable images, skipped": skipped} if skipped else files


def _warnings(inputs: Sequence[Input], outlook: Any) -> Iterator[str]:
    """The warnings of a plan of these stages, which hold for the results, too, and those about the results."""
    kinds, configs = known(), {}
    for found in inputs:
        # Another version of rayddl may have had other settings.
        with suppress(ValidationError, KeyError):
            configs[found.stage] = kinds[found.kind].config.model_validate(dict(found.config))
    for found in inputs:
        if found.kind not in kinds:
            continue
        kind, config = kinds[found.kind], configs.get(found.stage)
        expected = () if outlook is None or config is None else kind.cautions_before(config, configs, outlook)
        others = [each.summary for each in inputs if each.kind == found.kind and each is not found]
        seen = (*kind.cautions_after(found.summary), *kind.cautions_beside(found.summary, others))
        yield from (f"{found.stage}: {text}" for text in (*expected, *seen))
