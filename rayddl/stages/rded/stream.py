"""What the stream of images runs in its workers: a row is an image, on its way in and out."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache

from rayddl.data.sources import listing
from rayddl.stages.rded.worker import GPU_BATCH, Job, Judge, cut_images
from rayddl.stages.runtime import cluster, devices
from rayddl.stages.runtime.streams import Block, Steps


def steps(job: Job) -> Steps:
    """Cutting and judging the images of ``job``'s listing."""
    import ray

    config = job.config
    return Steps(
        "image",
        # A reference, packed, so that every task does not carry the listing.
        cluster.packed(ray.put(job)),
        rded_cut,
        RdedJudge,
        rded_cut_and_judge,
        chunk=listing.CHUNK,
        # As many images as are scored in one go.
        judged=max(1, (config.batch or GPU_BATCH) // config.num_crops),
        judges_at_once=config.resources.at_once,
        cutters_at_once=config.decoders.at_once,
    )


class RdedJudge:
    """Scores what cutters cut: an actor, because a GPU task would start CUDA anew each time."""

    def __init__(self, sent: bytes) -> None:
        self._judge = Judge(_job(sent))

    def __call__(self, block: Block) -> Block:
        return self._judge(block)


def rded_cut(block: Block, sent: bytes) -> Block:
    """The crops of some images."""
    return cut_images(_opened(sent)[0], block["image"])


def rded_cut_and_judge(block: Block, sent: bytes) -> Block:
    """Cuts and scores some images in one process, so that crops never leave it."""
    job, judge = _opened(sent)
    return judge()(cut_images(job, block["image"]))


def _job(sent: bytes) -> Job:
    import ray

    job: Job = ray.get(cluster.unpacked(sent))
    return job


@lru_cache(maxsize=1)
def _opened(sent: bytes) -> tuple[Job, Callable[[], Judge]]:
    """The job and its judge, fetched and made once per process."""
    job = _job(sent)
    devices.enter(job.threads, unit="rded cut")
    return job, cache(lambda: Judge(job))
