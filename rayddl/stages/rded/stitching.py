"""Cuts the selected crops again and stitches them into distilled images, some classes at a time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rayddl.methods.patches.select import Rows
from rayddl.methods.patches.stitch import places
from rayddl.stages.context import Context
from rayddl.stages.rded.worker import Job, stitch_classes
from rayddl.stages.runtime.slots import Work

CLASSES_A_TASK = 16

Layout = dict[int, list[list[int]]]
"""For each class, for each of its images, the positions of its patches in the selected rows."""


def layout(rows: Rows, job: Job) -> Layout:
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


def stitch_all(job: Job, rows: Rows, picked: Layout, context: Context) -> tuple[Tensor, Tensor]:
    """The distilled images, uint8 ``[N, C, H, W]``, and their labels int64 ``[N]``, in class order."""
    backend, progress = context.backend, context.progress
    groups = [list(picked)[i : i + CLASSES_A_TASK] for i in range(0, len(picked), CLASSES_A_TASK)]
    counts = [len(picked[c]) for c in picked]
    images = torch.empty((sum(counts), *job.shape), dtype=torch.uint8)
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
    with backend.opened(share, "rded stitch", note=progress.note) as free:
        for group, part in free.each(groups, work, lambda g: f"rded stitch classes {g[0]}–{g[-1]}"):
            at = int(starts[group[0]])
            images[at : at + len(part)] = torch.from_numpy(np.array(part))
            done += len(part)
            progress.update(done, len(images), "stitching")
    return images, torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
