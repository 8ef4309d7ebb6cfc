"""The worker functions of the stream of images: every row in and out is one image."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache

from rayddl.data.sources import listing
from rayddl.stages.rded.worker import Job, Judge, cut_images, images_a_call
from rayddl.stages.runtime import cluster, devices
from rayddl.stages.runtime.streams import Block, Steps


def steps(job: Job) -> Steps:
    """The steps of the stream: cut crops from the images of ``job``'s listing, and score them."""
    import ray

    config = job.config
    return Steps(
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


def _job(sent: bytes) -> Job:
    import ray

    job: Job = ray.get(cluster.unpacked(sent))
    return job


@lru_cache(maxsize=1)
def _opened(sent: bytes) -> tuple[Job, Callable[[], Judge]]:
    """The job, and a function that returns its judge; both are created once per process."""
    job = _job(sent)
    devices.enter(job.threads, unit="rded cut")
    return job, cache(lambda: Judge(job))
