"""Units of work of ``kind: rded``: read a chunk of the listing, cut crops, score them, stitch the selected ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayddl.data.pixels.cutting import as_jpeg, cut, opened
from rayddl.data.pixels.decode import reason
from rayddl.data.sources.listing import Blob, Listing
from rayddl.methods.patches import boxes, stitch
from rayddl.methods.patches.score import Scorer
from rayddl.methods.patches.select import CropRows, best_crop
from rayddl.methods.training.feeding import staging
from rayddl.methods.training.observer import Observer
from rayddl.stages.rded.settings import RdedConfig
from rayddl.stages.runtime import devices
from rayddl.stages.runtime.streams import Block

PADDED_BYTES = 24 * 2**20
"""Most bytes of float32 input in one CPU batch, so that it about fits into the caches."""
GPU_BATCH = 1280
BATCHES_A_CALL = 4
"""Most scoring batches of one call of a judge with a GPU: all but the first are copied while another is scored."""
CALLS = 32
"""Least number of calls of judges, if there are enough images: several judges then end at about the same time."""


@dataclass(frozen=True)
class RdedTask:
    """The arguments that all workers of the stage share."""

    config: RdedConfig
    listing: Listing
    """The pre-selected images."""
    shape: tuple[int, int, int]
    """(C, H, W) of the observer's input and of the distilled images."""
    crop_seed: int
    observer: Any
    """Reference to the :class:`Observer` in the object store."""
    threads: int

    @property
    def patch(self) -> int:
        """Side in pixels to which crops are resized."""
        return self.shape[1] // self.config.factor

    @property
    def per_class(self) -> int:
        """The number of patches to select for each class."""
        return self.config.factor**2 * self.config.ipc


def images_a_call(config: RdedConfig, images: int) -> int:
    """Images per call of a judge with a GPU, of ``images`` in all: as many as a few scoring batches have crops of."""
    batch = max(1, (config.batch or GPU_BATCH) // config.candidates)
    return batch * max(1, min(BATCHES_A_CALL, images // (batch * CALLS)))


def cut_images(job: RdedTask, positions: NDArray[np.int64]) -> Block:
    """The crops of the images at ascending ``positions`` of the listing, a row per image.

    ``bad`` is the reason why an image cannot be read, or empty; other columns of an unreadable image are undefined.
    """
    config = job.config
    count, channels, side = len(positions), job.shape[0], job.patch
    names = job.listing.names.take(positions).to_pylist()
    patches = np.zeros((count, config.candidates, channels, side, side), np.uint8)
    where = np.zeros((count, config.candidates, 3), np.int32)
    bad = [""] * count
    for row, (name, blob) in enumerate(zip(names, job.listing.read(positions), strict=True)):
        found = _crops(job, name, blob)
        if isinstance(found, str):
            bad[row] = found
        else:
            where[row], patches[row] = found
    return {
        "image": np.asarray(positions, np.int64),
        "label": job.listing.labels[positions],
        "box": where,
        "patch": patches,
        "bad": np.array(bad, dtype=object),
    }


def _crops(job: RdedTask, name: str, blob: Blob) -> tuple[NDArray[np.int32], NDArray[np.uint8]] | str:
    """Boxes and crops of an image, or the reason why it cannot be read."""
    config = job.config
    if isinstance(blob, Exception):
        return reason(blob)
    try:
        image = opened(blob, job.shape[0])
        found = (
            boxes.whole(image.height, image.width)
            if config.whole
            else boxes.crops(job.crop_seed, name, image.height, image.width, config.candidates)
        )
        return found, cut(image, found, job.patch, reduced=config.scoring == "native").numpy()
    except Exception as error:  # parsers raise any exception for a broken file
        return reason(error)


class Judge:
    """Scores crops with the observer, on the device that Ray assigned to the process."""

    def __init__(self, job: RdedTask) -> None:
        import ray

        config = job.config
        device = devices.enter(job.threads, config.precision, "rded judge")
        seen: Observer = ray.get(job.observer)
        pad = config.scoring == "published"
        side = job.shape[1] if pad else job.patch
        numbers = 4 * job.shape[0] * side**2
        fitting = GPU_BATCH if device.type == "cuda" else max(8, min(256, PADDED_BYTES // numbers))
        self._job, self._device = job, device
        self._scorer = Scorer(
            seen.module.to(device),
            torch.tensor(seen.mean),
            torch.tensor(seen.std),
            size=job.shape[1],
            pad=pad,
            batch=config.batch or fitting,
            dtype=torch.bfloat16 if config.precision == "bf16" else torch.float32,
        )

    def __call__(self, block: Block) -> Block:
        """The best crop of each image: a row for every row of ``block``."""
        crops, readable = self._job.config.candidates, np.flatnonzero(block["bad"] == "")
        count, each = len(block["image"]), np.arange(len(readable))
        patches = block["patch"]
        # Gathered into the memory from which batches are copied to the device: one copy on the CPU.
        picked = staging((len(readable), *patches.shape[1:]), torch.uint8, self._device)
        np.take(patches, readable, axis=0, out=picked.numpy(), mode="clip")
        labels = torch.from_numpy(block["label"][readable].astype(np.int64)).repeat_interleave(crops)
        scores = self._scorer(picked.flatten(0, 1), labels).view(-1, crops).numpy()
        best = best_crop(scores)
        found = {
            "score": np.full(count, np.nan, np.float32),
            "crop": np.full(count, -1, np.int32),
            "box": np.zeros((count, 3), np.int32),
        }
        found["score"][readable] = scores[each, best]
        found["crop"][readable] = best
        found["box"][readable] = block["box"][readable][each, best]
        return {"image": block["image"], "label": block["label"], **found, "bad": block["bad"]}


def stitch_classes(
    job: RdedTask, winners: CropRows, per_class: dict[int, list[list[int]]]
) -> NDArray[np.uint8]:
    """The images of some classes, uint8 ``[n, C, H, W]``: the selected crops, cut again at their tiles' sizes.

    ``winners`` are the selected rows of those classes; ``per_class`` lists the crops of each image, class by
    class, as positions in ``winners``.
    """
    torch.set_num_threads(job.threads)
    spans = stitch.tiles(job.shape[1], job.config.factor)
    groups = [rows for members in per_class.values() for rows in members]
    blobs = job.listing.read(winners.image[[row for rows in groups for row in rows]])
    images = [
        stitch.stitched(
            [
                _again(job, winners, row, blob, (spans[place // len(spans)][1], spans[place % len(spans)][1]))
                for place, (row, blob) in enumerate(zip(rows, blobs, strict=False))
            ],
            job.shape[1],
            job.config.factor,
        )
        for rows in groups
    ]
    quality = job.config.jpeg
    return torch.stack(images if quality is None else [as_jpeg(image, quality) for image in images]).numpy()


def _again(job: RdedTask, winners: CropRows, row: int, blob: Blob, size: tuple[int, int]) -> Tensor:
    if isinstance(blob, Exception):
        raise blob
    image = opened(blob, job.shape[0])
    return cut(image, winners.box[row : row + 1], size, reduced=job.config.scoring == "native")[0]
