"""Selection of RDED's best crops from the stream of scored images, with partial results on disk."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save

from rayddl.data.sources import listing
from rayddl.errors import SourceError, StageError
from rayddl.methods.patches.select import Best, CropRows
from rayddl.stages.context import Context
from rayddl.stages.rded.settings import RdedConfig
from rayddl.stages.rded.worker import Judge, RdedTask, cut_images, images_a_call
from rayddl.stages.runtime import cluster, devices
from rayddl.stages.runtime.streams import Block, StreamSteps
from rayddl.storage import Folder

PROGRESS_FILE = "progress.safetensors"
SAVE_SECONDS = 20.0
"""Seconds of the stream between two partial results."""
COLUMNS = ("image", "label", "score", "crop", "box")


@dataclass
class _Seen:
    """The results of the stream so far."""

    best: Best
    done: NDArray[np.bool_]
    """By position in the listing: true if the image was scored, or cannot be read."""
    bad: list[str]

    @property
    def images(self) -> int:
        """The number of images that are done."""
        return int(self.done.sum())

    def take(self, block: Block, names: pa.Array) -> None:
        """Add the results of some images; results of images that are done are ignored."""
        places = np.asarray(block["image"], np.int64)
        first = np.zeros(len(places), bool)
        first[np.unique(places, return_index=True)[1]] = True
        fresh = first & ~self.done[places]
        broken = block["bad"] != ""
        for at in np.flatnonzero(fresh & broken):
            self.bad.append(f"{names[int(places[at])].as_py()}: {block['bad'][at]}")
        self.best.add(CropRows(*(block[c][fresh & ~broken] for c in COLUMNS)))
        self.done[places] = True


def select(job: RdedTask, context: Context) -> tuple[CropRows, list[str], float]:
    """The best crops of all classes, the unreadable images with reasons, and images per second."""
    seen, total = _resumed(job, context.out), len(job.listing)
    before, began, saved = seen.images, time.perf_counter(), time.monotonic()
    names = job.listing.names
    context.progress.update(seen.images, total, "starting the workers")
    missing = np.flatnonzero(~seen.done)
    for block in context.backend.stream(missing, steps(job), job.config.asks, context.progress.note):
        seen.take(block, names)
        _refuse_too_many_bad(context, seen, total)
        rate = (seen.images - before) / (time.perf_counter() - began)
        context.progress.update(
            seen.images, total, f"{rate:,.0f} images/s" + (f"  {len(seen.bad)} bad" if seen.bad else "")
        )
        if time.monotonic() - saved > SAVE_SECONDS:
            _save(seen, context.out)
            saved = time.monotonic()
    if not seen.done.all():
        _save(seen, context.out)
        raise StageError(_missing(seen, names), code="images-missing")
    rate = (seen.images - before) / max(time.perf_counter() - began, 1e-9)
    _save(seen, context.out)
    rows = seen.best.rows()
    counts = np.bincount(rows.label, minlength=len(job.listing.classes))
    refuse_short(job.config, job.listing.classes, counts, job.per_class, "readable images")
    return rows, sorted(seen.bad), rate


def _missing(seen: _Seen, names: pa.Array) -> str:
    """The message of an internal error: the stream ended without some images."""
    missing = np.flatnonzero(~seen.done)
    named = ", ".join(repr(names[int(i)].as_py()) for i in missing[:5])
    more = f" and {len(missing) - 5:,} more" if len(missing) > 5 else ""
    return (
        f"internal error: the stream ended without {len(missing):,} of {len(seen.done):,} images: {named}{more}. "
        "What was done is kept, and the same command scores those that are missing; please report it."
    )


def _refuse_too_many_bad(context: Context, seen: _Seen, total: int) -> None:
    source = context.source
    if len(seen.bad) > source.max_bad_fraction * total:
        examples = "\n".join(f"  {reason}" for reason in sorted(seen.bad)[:5])
        raise SourceError(
            f"source {source.name} in {source.root}: {len(seen.bad):,} of {seen.images:,} images so far cannot be "
            f"read (source.max_bad_fraction allows {source.max_bad_fraction:.1%} of {total:,}):\n"
            f"{examples}\nRepair or remove them, or raise source.max_bad_fraction.",
            code="too-many-bad-images",
        )


def _save(seen: _Seen, out: Folder) -> None:
    rows = seen.best.rows()
    tensors = {
        n: torch.from_numpy(np.ascontiguousarray(c)) for n, c in zip(COLUMNS, rows.columns(), strict=True)
    }
    bad = "\n".join(seen.bad).encode()
    tensors |= {
        "done": torch.from_numpy(seen.done),
        "bad": torch.frombuffer(bytearray(bad), dtype=torch.uint8)
        if bad
        else torch.zeros(0, dtype=torch.uint8),
    }
    out.write(PROGRESS_FILE, save(tensors))


def _resumed(job: RdedTask, out: Folder) -> _Seen:
    best = Best(job.per_class, len(job.listing.classes))
    kept = load(out.read(PROGRESS_FILE)) if out.has(PROGRESS_FILE) else {}
    if "seen" in kept or "done" not in kept:  # written by a version that counted chunks, not images
        return _Seen(best, np.zeros(len(job.listing), bool), [])
    best.add(CropRows(*(kept[n].numpy() for n in COLUMNS)))
    bad = bytes(kept["bad"].tolist()).decode()
    return _Seen(best, kept["done"].numpy().copy(), bad.split("\n") if bad else [])


def refuse_short(
    config: RdedConfig, classes: tuple[str, ...], counts: NDArray[np.int64], needed: int, what: str
) -> None:
    """Raise :class:`SourceError` for a class of fewer than ``needed`` patches, unless ``short_class`` allows it."""
    short = [
        (n, int(c))
        for n, c in zip(classes, counts, strict=True)
        if c < (needed if config.short_class == "error" else 1)
    ]
    if short:
        name, count = short[0]
        others = f", and {len(short) - 1} more classes are short" if len(short) > 1 else ""
        raise SourceError(
            f"class {name!r} has {count} {what}, and {config.ipc} images of {config.factor} x {config.factor} patches "
            f"need {needed}{others}. Lower ipc or factor, or say what to do with short_class: cap (fewer images "
            "of that class) or repeat (some patches more than once).",
            code="class-too-small-for-patches",
        )


def steps(job: RdedTask) -> StreamSteps:
    """The steps of the stream: cut crops from the images of ``job``'s listing, and score them."""
    import ray

    config = job.config
    return StreamSteps(
        "image",
        # A packed reference: tasks do not contain the listing.
        cluster.packed(ray.put(job)),
        rded_cut,
        RdedJudge,
        rded_cut_and_judge,
        chunk=listing.CHUNK,
        judged=images_a_call(config, len(job.listing)),
        judges_at_once=config.resources.at_once,
        cutters_at_once=config.decoders.at_once,
    )


class RdedJudge:
    """Scores crops. An actor, because every GPU task would initialise CUDA again."""

    def __init__(self, sent: bytes) -> None:
        self._judge = Judge(_job(sent))

    def __call__(self, block: Block) -> Block:
        return self._judge(block)


def rded_cut(block: Block, sent: bytes) -> Block:
    """The crops of the images of ``block``."""
    return cut_images(_opened(sent)[0], block["image"])


def rded_cut_and_judge(block: Block, sent: bytes) -> Block:
    """The best crops of the images of ``block``, cut and scored in one process, so that no crops are transferred."""
    job, judge = _opened(sent)
    return judge()(cut_images(job, block["image"]))


def _job(sent: bytes) -> RdedTask:
    import ray

    job: RdedTask = ray.get(cluster.unpacked(sent))
    return job


@lru_cache(maxsize=1)
def _opened(sent: bytes) -> tuple[RdedTask, Callable[[], Judge]]:
    """The job, and a function that returns its judge; both are created once per process."""
    job = _job(sent)
    devices.enter(job.threads, unit="rded cut")
    return job, cache(lambda: Judge(job))
