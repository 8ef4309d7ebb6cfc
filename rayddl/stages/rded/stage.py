"""``kind: rded``: selects and stitches the most realistic crops of every class (Sun et al. 2024), with Ray Data.

The listing is subsampled before any image is read. Workers return at most one scored box per image, and the
driver keeps the best of each class.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayddl import seeds
from rayddl.data import unnamed
from rayddl.data.distilled import LR_STUDENT, DistilledSet
from rayddl.data.sources.listing import Listing
from rayddl.errors import ArtifactError
from rayddl.methods.patches import boxes
from rayddl.methods.patches.select import CropRows
from rayddl.methods.patches.stitch import places
from rayddl.methods.training.observer import Observer
from rayddl.stages import parquet as tables
from rayddl.stages.context import Context, Result
from rayddl.stages.rded.selection import PROGRESS_FILE, refuse_short, select
from rayddl.stages.rded.settings import RdedConfig
from rayddl.stages.rded.worker import RdedTask, stitch_classes
from rayddl.stages.runtime.listings import listing_of
from rayddl.stages.runtime.slots import Work
from rayddl.storage import Folder

TYPES = {
    "class": "string",
    "rank": "int64",
    "image": "string",
    "score": "float",
    "crop": "int64",
    "top": "int64",
    "left": "int64",
    "side": "int64",
}
CLASSES_A_TASK = 16

Layout = dict[int, list[list[int]]]
"""For each class, for each of its images, the positions of its patches in the selected rows."""


def run(config: RdedConfig, context: Context) -> Result:
    """Select, stitch and write the set; resumes from partial results of a killed run."""
    import ray

    context.backend.start()
    began = time.perf_counter()
    job, listed = prepared(config, context)
    _refuse_short_classes(config, job.listing, context)
    rows, bad, rate = select(job, context)
    picked = layout(rows, job)
    images, labels = stitch_all(job, rows, picked, context)
    _write_winners(context.out, rows, job.listing)
    seen: Observer = ray.get(job.observer)
    info = {
        "method": "RDED",
        "net": seen.net.model_dump(mode="json"),
        "source": context.source.model_dump(mode="json"),
        "definition": dict(context.definition),
        "seed": context.seed,
        "factor": config.factor,
        "protocol": {"name": "soft"},
        "observer": {"stage": config.teacher, "accuracy": seen.accuracy},
    }
    made = DistilledSet(images, labels, LR_STUDENT, job.listing.classes, seen.space, info)
    made.save(context.out.child("set"))
    seconds = time.perf_counter() - began
    summary = {
        "method": "RDED",
        "ipc": config.ipc,
        "factor": config.factor,
        "classes": list(job.listing.classes),
        "images": len(images),
        "listed": listed,
        "looked_at": len(job.listing),
        "bad": len(bad),
        "bad_examples": bad[:20],
        "images_per_second": rate,
        "bytes": images.numel(),
        "seconds": seconds,
    }
    many = len(job.listing)
    context.progress.update(many, many, f"{len(images):,} images from {many:,} looked at")
    return Result(summary, leftovers=(PROGRESS_FILE,))


def prepared(config: RdedConfig, context: Context) -> tuple[RdedTask, int]:
    """The workers' arguments, and the number of images in the whole listing. Reads no image.

    Raises :class:`ArtifactError` for an observer without outputs for the source's classes.
    """
    import ray

    listing = listing_of(context.source)
    for line in listing.notes:
        context.progress.note(line)
    found = context.inputs[config.teacher]
    observer = Observer.load(found.folder.child("observer")).pruned(listing.classes)
    _refuse_mixed_sides(observer, config)
    picked = boxes.preselected(context.seed_of(), listing.each_name(), listing.labels, config.mipc)
    chosen = listing.take(picked)
    job = RdedTask(
        config,
        chosen,
        observer.shape,
        seeds.derive(context.seed_of(), "crops"),
        ray.put(observer),
        threads=1,
    )
    return job, len(listing)


def _refuse_mixed_sides(observer: Observer, config: RdedConfig) -> None:
    _, height, width = observer.shape
    if height != width:
        raise ArtifactError(
            f"the observer of {config.teacher!r} takes {height} x {width} pixels; RDED's crops are square. "
            "Set source.size, and train it on square images.",
            code="observer-not-square",
        )
    if height // config.factor < 4:
        raise ArtifactError(
            f"factor {config.factor} leaves patches of {height // config.factor} pixels of images of {height}; "
            "lower factor.",
            code="patches-too-small",
        )


def _refuse_short_classes(config: RdedConfig, listing: Listing, context: Context) -> None:
    needed, counts = config.factor**2 * config.ipc, listing.counts()
    few = [(n, int(c)) for n, c in zip(listing.classes, counts, strict=True) if c < config.mipc]
    if few:
        name, count = min(few, key=lambda pair: pair[1])
        context.progress.note(
            f"{len(few)} of {len(counts)} classes have fewer than mipc ({config.mipc}) images, {name!r} "
            f"{count:,}; all of theirs are looked at"
        )
    refuse_short(config, listing.classes, counts, needed, "images")


def _write_winners(out: Folder, rows: CropRows, listing: Listing) -> None:
    names = listing.names.take(rows.image).to_pylist()
    starts = np.searchsorted(rows.label, rows.label, side="left")
    columns: dict[str, Any] = {
        "class": [listing.classes[c] for c in rows.label],
        "rank": (np.arange(len(rows)) - starts).tolist(),
        "image": names,
        "score": rows.score.tolist(),
        "crop": rows.crop.tolist(),
        **{name: rows.box[:, k].tolist() for k, name in enumerate(("top", "left", "side"))},
    }
    tables.write(out, "winners.parquet", columns, TYPES)


def layout(rows: CropRows, job: RdedTask) -> Layout:
    """The layout of the selected crops ``rows``, which are sorted by class and rank.

    A class with too few crops gets fewer images (``short_class: cap``), at least one, or repeats some crops
    (``repeat``).
    """
    config, per_image = job.config, job.config.factor**2
    result: Layout = {}
    for c in range(len(job.listing.classes)):
        first, last = (int(np.searchsorted(rows.label, c, side=side)) for side in ("left", "right"))
        found = last - first
        short = found < job.per_class and config.short_class == "cap"
        images = max(1, found // per_image) if short else config.ipc
        result[c] = [[first + rank % found for rank in image] for image in places(images, config.factor)]
    return result


def stitch_all(job: RdedTask, rows: CropRows, picked: Layout, context: Context) -> tuple[Tensor, Tensor]:
    """The distilled images, uint8 ``[N, C, H, W]``, and their labels int64 ``[N]``, in class order."""
    backend, progress = context.backend, context.progress
    groups = [list(picked)[i : i + CLASSES_A_TASK] for i in range(0, len(picked), CLASSES_A_TASK)]
    counts = [len(picked[c]) for c in picked]
    images = unnamed.empty((sum(counts), *job.shape), torch.uint8)
    starts = np.concatenate([[0], np.cumsum(counts)])
    sent = backend.put(job)
    share = backend.spread(job.config.decoders, units=len(groups), gpu=False, key="decoders")

    def work(group: list[int]) -> Work:
        first, last = picked[group[0]][0][0], np.searchsorted(rows.label, group[-1], side="right")
        first = int(np.searchsorted(rows.label, group[0], side="left"))
        mine = rows.take(np.arange(first, last))
        shifted = {c: [[row - first for row in image] for image in picked[c]] for c in group}
        return (stitch_classes, sent, mine, shifted)

    done = 0
    with backend.opened(share, "rded stitch", note=progress.note, key="decoders") as free:
        for group, part in free.each(groups, work, lambda g: f"rded stitch classes {g[0]}–{g[-1]}"):
            at = int(starts[group[0]])
            images[at : at + len(part)] = torch.from_numpy(np.array(part))
            done += len(part)
            progress.update(done, len(images), "stitching")
    return images, torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
