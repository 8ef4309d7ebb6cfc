"""``kind: refine``: changes the images of a set until observers see their views as real images (CIM).

The anchors of a class's views are found in one task for some classes, then blocks of images are refined, a task each.
Images do not depend on each other.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from rayddl.data import unnamed
from rayddl.data.distilled import DistilledSet
from rayddl.errors import ArtifactError
from rayddl.methods.refinement.features import extractor_of
from rayddl.methods.training.observer import Observer
from rayddl.stages import parquet as tables
from rayddl.stages.context import Context, Result
from rayddl.stages.refine import worker
from rayddl.stages.refine.settings import RefineConfig
from rayddl.stages.refine.worker import RefineTask
from rayddl.stages.runtime.sizes import Share
from rayddl.stages.runtime.slots import Work

PAIRS = "pairs.safetensors"
TYPES = {
    "image": "int64",
    "view": "int64",
    "class": "string",
    "anchor": "int64",
    "before": "float",
    "after": "float",
}


def run(config: RefineConfig, context: Context) -> Result:
    """Refine the images of the blocks without a result file, and write the set."""
    began = time.perf_counter()
    context.backend.start()
    made, real = (_set(context, name) for name in (config.set, config.anchors))
    _refuse_misfit(made, real, config)
    job, share = _job(config, context, made)
    images, anchors = made.pixels(), real.pixels()
    pairs = _pairs(job, share, context, (made, images), (real, anchors))
    _refine(job, share, context, images, anchors, pairs)
    whole = _read(job, images.shape)
    info = described(config, context, made, job)
    replace(made, stored=whole["images"], info=info).save(context.out.child("set"))
    _write_table(context, made, pairs, whole)
    before, after = (float(whole[name].mean()) for name in ("before", "after"))
    moved = f"features differ from the anchors' by {after:.3g}, before by {before:.3g}"
    context.progress.update(len(made), len(made), moved)
    summary = {
        "method": info["method"],
        "ipc": made.ipc,
        "factor": job.factor,
        "classes": list(made.classes),
        "images": len(made),
        "anchors": len(real),
        "gap_before": before,
        "gap_after": after,
        "bytes": whole["images"].numel(),
        "seconds": time.perf_counter() - began,
    }
    return Result(summary, leftovers=(*map(job.file, job.blocks), PAIRS))


def _read(job: RefineTask, shape: Sequence[int]) -> dict[str, Tensor]:
    """The refined images, of ``shape`` in all, and for each view ``before`` and ``after``."""
    gaps: list[tuple[Tensor, Tensor]] = []

    def images() -> Iterator[Tensor]:
        for block in map(partial(worker.read_block, job), job.blocks):
            gaps.append((block["before"], block["after"]))
            yield block["images"]

    whole = unnamed.stacked(images(), shape, torch.uint8)
    before, after = map(torch.cat, zip(*gaps, strict=True))
    return {"images": whole, "before": before, "after": after}


def _set(context: Context, stage: str) -> DistilledSet:
    return DistilledSet.load(context.inputs[stage].folder.child("set"))


def _job(config: RefineConfig, context: Context, made: DistilledSet) -> tuple[RefineTask, Share]:
    observers = tuple(Observer.load(context.inputs[n].folder.child("observer")) for n in config.observers)
    for k, (name, observer) in enumerate(zip(config.observers, observers, strict=True)):
        if observer.shape != made.space.shape:
            raise ArtifactError(
                f"the observer of {name!r} sees images of {observer.shape} (channels, height, width), and those of "
                f"{config.set!r} are {made.space.shape}. Set source.size, or take a teacher of images of this size.",
                code="observer-of-another-size",
            )
        extractor_of(observer, config.layer_of(k))  # refuses an unknown layer before workers are started
    factor = int(made.info.get("factor") or 1)
    job = RefineTask(config, observers, factor, len(made), context.out, context.seed_of(), 1)
    share = context.backend.spread(config.resources, units=len(job.blocks))
    return replace(job, threads=share.threads), share


def _refuse_misfit(made: DistilledSet, real: DistilledSet, config: RefineConfig) -> None:
    """Raise :class:`ArtifactError` unless the anchors have the set's classes, with images of each, and its shape."""
    unlike = next((pair for pair in zip_longest(real.classes, made.classes) if pair[0] != pair[1]), None)
    if unlike is not None or made.space.shape != real.space.shape:
        sizes = f"images of {real.space.shape} (channels, height, width)", str(made.space.shape)
        theirs, mine = sizes if unlike is None else (f"the class {unlike[0]!r}", repr(unlike[1]))
        raise ArtifactError(
            f"{config.anchors!r} has {theirs} where {config.set!r} has {mine}: anchors must have the size and the "
            "classes of the set. Make both from one source.",
            code="anchors-of-another-source",
        )
    there = real.hard_labels.bincount(minlength=len(real.classes))
    lacking = [name for k, name in enumerate(real.classes) if not there[k] and (made.hard_labels == k).any()]
    if lacking:
        raise ArtifactError(
            f"{config.anchors!r} has no image of {len(lacking)} of the classes, such as {lacking[0]!r}, so their views "
            "have no anchor. Take a set with images of every class.",
            code="class-without-anchors",
        )


def _pairs(
    job: RefineTask,
    share: Share,
    context: Context,
    made: tuple[DistilledSet, Tensor],
    real: tuple[DistilledSet, Tensor],
) -> Tensor:
    """The anchor of each view: int64 ``[n, factor²]``, positions in the anchors."""
    if context.out.has(PAIRS):
        return load(context.out.read(PAIRS))["pairs"]
    (set_, images), (anchors, pixels) = made, real
    mine = [(set_.hard_labels == k).nonzero().flatten() for k in range(len(set_.classes))]
    theirs = [(anchors.hard_labels == k).nonzero().flatten() for k in range(len(set_.classes))]
    labels = [k for k, members in enumerate(mine) if len(members)]
    found = torch.zeros(len(set_), job.factor**2, dtype=torch.int64)
    sent = context.backend.put(job)

    def work(label: int) -> Work:
        return (worker.pair, sent, images[mine[label]], pixels[theirs[label]])

    with context.backend.opened(share, "anchors", note=context.progress.note) as free:
        for done, (label, places) in enumerate(free.each(labels, work, lambda k: f"anchors of class {k}"), 1):
            found[mine[label]] = theirs[label][places].view(-1, job.factor**2)
            context.progress.update(0, len(set_), f"anchors of {done} of {len(labels)} classes")
    context.out.write(PAIRS, save({"pairs": found}))
    return found


def _refine(
    job: RefineTask, share: Share, context: Context, images: Tensor, anchors: Tensor, pairs: Tensor
) -> None:
    missing = [block for block in job.blocks if not context.out.has(job.file(block))]
    done = job.images - sum(map(len, missing))
    context.progress.update(done, job.images, "images")
    sent = context.backend.put(job)

    def given(block: range) -> tuple[Tensor, Tensor]:
        places = torch.arange(block.start, block.stop)
        return images[places], anchors[pairs[places].flatten()]

    need = (worker.tried, sent, *given(job.blocks[0])) if share.per_slot > 1 else None
    with context.backend.opened(share, "refine", need=need, note=context.progress.note) as free:
        units = free.each(missing, lambda block: (worker.refine, sent, block, *given(block)), worker.named)
        for block, _ in units:
            done += len(block)
            context.progress.update(done, job.images, "images")


def described(config: RefineConfig, context: Context, made: DistilledSet, job: RefineTask) -> dict[str, Any]:
    """The metadata of the refined set: that of ``made``, without its origin and accuracy if it was imported."""
    method = made.info.get("method", "images")
    net = made.info.get("net") or job.observers[0].net.model_dump(mode="json")
    kept = {
        name: value
        for name, value in made.info.items()
        if name not in ("imported", "metrics", "evaluated_by")
    }
    return {
        **kept,
        "method": f"{method} + CIM",
        "net": net,
        "definition": dict(context.definition),
        "seed": context.seed,
        "protocol": {"name": "soft"},
        "refined": {"anchors": config.anchors, "observers": list(config.observers), "steps": config.steps},
    }


def _write_table(context: Context, made: DistilledSet, pairs: Tensor, whole: dict[str, Tensor]) -> None:
    count, per_image = pairs.shape
    names: Sequence[str] = [made.classes[k] for k in made.hard_labels.tolist()]
    columns: dict[str, Sequence[Any]] = {
        "image": [image for image in range(count) for _ in range(per_image)],
        "view": list(range(per_image)) * count,
        "class": [name for name in names for _ in range(per_image)],
        "anchor": pairs.flatten().tolist(),
        "before": whole["before"].tolist(),
        "after": whole["after"].tolist(),
    }
    tables.write(context.out, "views.parquet", columns, TYPES)
