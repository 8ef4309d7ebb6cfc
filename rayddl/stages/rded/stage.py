"""``kind: rded``: selects and stitches the most realistic crops of every class (Sun et al. 2024), with Ray Data.

The listing is subsampled before any image is read. Workers return at most one scored box per image, and the
driver keeps the best of each class.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from rayddl import seeds
from rayddl.data.distilled import LR_STUDENT, DistilledSet
from rayddl.data.sources.listing import Listing
from rayddl.errors import ArtifactError
from rayddl.methods.patches import boxes
from rayddl.methods.patches.select import Rows
from rayddl.methods.training.observer import Observer
from rayddl.stages import parquet as tables
from rayddl.stages.context import Context, Result
from rayddl.stages.rded.selection import PROGRESS_FILE, refuse_short, select
from rayddl.stages.rded.settings import RdedConfig
from rayddl.stages.rded.stitching import layout, stitch_all
from rayddl.stages.rded.worker import Job
from rayddl.stages.runtime.listings import listing_of
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
    context.out.delete(PROGRESS_FILE)
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
    return Result(summary)


def prepared(config: RdedConfig, context: Context) -> tuple[Job, int]:
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
    job = Job(
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


def _write_winners(out: Folder, rows: Rows, listing: Listing) -> None:
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
