"""Units of work of ``kind: refine``: find the anchors of some views, refine the images of a block.

Networks see :data:`VIEWS` views at a time. Blocks of images are the same for any number of workers, and the last one
is filled up, so that every image is computed in a batch of the same shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from safetensors.torch import load, save
from torch import Tensor

from rayddl import seeds
from rayddl.methods.refinement.features import extractor_of
from rayddl.methods.refinement.refine import FeatureExtractor, Refined, apart, draw, paired, refined, views
from rayddl.methods.training.input_spec import in_unit
from rayddl.methods.training.observer import Observer
from rayddl.stages.refine.settings import VIEWS, RefineConfig
from rayddl.stages.runtime import devices
from rayddl.storage import Folder


@dataclass(frozen=True)
class RefineTask:
    """The arguments that all workers of the stage share."""

    config: RefineConfig
    observers: tuple[Observer, ...]
    factor: int
    """Tiles along one side of an image."""
    images: int
    """The number of images in the set."""
    out: Folder
    seed: int
    threads: int

    @property
    def per_block(self) -> int:
        """The number of images in a block."""
        return max(1, min(self.images, VIEWS // self.factor**2))

    @property
    def blocks(self) -> list[range]:
        """The images of each block."""
        starts = range(0, self.images, self.per_block)
        return [range(start, min(start + self.per_block, self.images)) for start in starts]

    def file(self, block: range) -> str:
        """The file of a block's refined images."""
        return f"block-{block.start // self.per_block:05d}.safetensors"


def pair(job: RefineTask, images: Tensor, anchors: Tensor) -> Tensor:
    """The anchor of each view of ``images``, as int64 positions in ``anchors``; both are uint8, of one class."""
    device = devices.enter(job.threads, job.config.precision, "anchors")
    eyes = _eyes(job, device)
    shown = views(in_unit(images.to(device)), job.factor)
    real = in_unit(anchors.to(device))
    distances = apart(_seen(eyes, shown), _seen(eyes, real), job.config.distance)
    return paired(distances)


def refine(job: RefineTask, block: range, images: Tensor, anchors: Tensor) -> None:
    """Refine ``images`` uint8 ``[n, C, H, W]`` of ``block`` and write its file.

    ``anchors`` uint8 ``[n * factor², C, H, W]`` are those of their views.
    """
    if job.out.has(job.file(block)):
        return
    device = devices.enter(job.threads, job.config.precision, named(block))
    count = len(block)
    missing = job.per_block - count
    rows = torch.cat([torch.arange(count), torch.full((missing,), count - 1)])
    known = anchors.view(count, -1, *anchors.shape[1:])[rows].flatten(0, 1)
    found = _refined(job, [block[int(row)] for row in rows], images[rows], known, device)
    tensors = {
        "images": found.images[:count].mul(255).round_().to(torch.uint8).cpu(),
        "before": found.before[: count * job.factor**2].cpu(),
        "after": found.after[: count * job.factor**2].cpu(),
    }
    job.out.write(job.file(block), save(tensors))


def tried(job: RefineTask, images: Tensor, anchors: Tensor) -> None:
    """Refine the images of a block by one step, without a file, so that the caller can measure GPU memory."""
    device = devices.enter(job.threads, job.config.precision, "refine tried")
    one = RefineTask(
        job.config.model_copy(update={"steps": 1}),
        job.observers, job.factor, job.images, job.out, job.seed, job.threads,
    )  # fmt: skip
    _refined(one, list(range(len(images))), images, anchors, device)


def named(block: range) -> str:
    """The name of a block on the dashboard."""
    return f"refine images {block.start}–{block.stop - 1}"


def read_block(job: RefineTask, block: range) -> dict[str, Tensor]:
    """The tensors in the file of ``block``: ``images``, and for each view ``before`` and ``after``."""
    return load(job.out.read(job.file(block)))


def _refined(
    job: RefineTask, places: list[int], images: Tensor, anchors: Tensor, device: torch.device
) -> Refined:
    config = job.config
    generators = [seeds.generator(job.seed, "views", place) for place in places]
    shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
    return refined(
        in_unit(images.to(device)),
        in_unit(anchors.to(device)),
        _eyes(job, device),
        config,
        job.factor,
        draw(config, shape, job.factor, generators),
    )


def _eyes(job: RefineTask, device: torch.device) -> list[FeatureExtractor]:
    seen = [observer.on(device, job.config.precision) for observer in job.observers]
    return [extractor_of(observer, job.config.layer_of(k)) for k, observer in enumerate(seen)]


@torch.no_grad()
def _seen(eyes: list[FeatureExtractor], pixels: Tensor) -> list[Tensor]:
    """The features of each extractor, on the CPU."""
    return [
        torch.cat([extractor.features(extractor.scaled(part)).float().cpu() for part in pixels.split(VIEWS)])
        for extractor in eyes
    ]
