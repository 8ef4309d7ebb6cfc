"""The listing through cutters and judges as a Ray Data job: a row is an image, on its way in and out."""

from __future__ import annotations

import inspect
import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayddl.data.sources import listing
from rayddl.stages.context import Progress
from rayddl.stages.rded.worker import GPU_BATCH, Block, Job, Judge, cut_images
from rayddl.stages.runtime import cluster, devices, failures, workers
from rayddl.stages.runtime.sizes import Share

SILENCE_SECONDS = 60.0
"""Time without a finished image after which the stream says what it waits for."""
CHUNKS_A_BLOCK = 8
"""What one task works on at most. Between two tasks a worker stands still for a fifth of a second."""
BLOCKS_A_WORKER = 8
"""Tasks for each worker at least, where there are chunks enough: a lost one then repeats little, and the last
ones end together.
"""


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


def stream(
    job: Job,
    positions: NDArray[np.int64],
    judges: Share,
    cutters: Share | None,
    progress: Progress,
) -> Iterator[Block]:
    """The outcome of the images at ``positions``, which rise, in the order in which they finish.

    The stream's rows are images, so nothing depends on how Ray joins or splits blocks. Without ``cutters`` every judge
    cuts for itself. Ray Data starts as many of both as the cluster has room for at any time; what a lost worker was at
    is done again.
    """
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # A reference, packed, so that every task does not carry the listing.
    sent = cluster.packed(ray.put(job))
    size = images_a_block(len(positions), (cutters or judges).at_once)
    tables = [pa.table({"image": positions[i : i + size]}) for i in range(0, len(positions), size)]
    data: ray.data.Dataset = ray.data.from_arrow(tables)
    config = job.config
    if cutters is None:
        data = _tasks(data, rded_cut_and_judge, sent, judges, config.resources.at_once)
    else:
        data = _tasks(data, rded_cut, sent, cutters, config.decoders.at_once).map_batches(
            RdedJudge,
            fn_constructor_args=(sent,),
            # As many images as are scored in one go; Ray Data joins blocks to that.
            batch_size=max(1, (config.batch or GPU_BATCH) // config.num_crops),
            compute=ActorPoolStrategy(min_size=1, max_size=config.resources.at_once),
            **_asked(judges),
            **_bounded(),
        )
    with _watchdog(progress, judges, cutters) as alive:
        try:
            for batch in data.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1):
                alive()
                yield batch
        except ray.exceptions.RayError as error:
            failures.explain(error, "the stream of images")


def _bounded() -> dict[str, int]:
    """Limits for a judge that is lost again and again, such as one that never fits into memory: Ray Data restarts it
    without end. Empty for a Ray Data that takes none.
    """
    from ray.data import Dataset

    takes = inspect.signature(Dataset.map_batches).parameters.values()
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in takes):
        return {}
    # Ray says that it will give these limits another form.
    warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
    return {"max_restarts": workers.RETRIES, "max_task_retries": workers.RETRIES}


def images_a_block(images: int, workers: int) -> int:
    """How many of ``images`` a task of ``workers`` at once works on: some chunks."""
    chunks = -(-images // listing.CHUNK)
    return listing.CHUNK * min(CHUNKS_A_BLOCK, max(1, chunks // (workers * BLOCKS_A_WORKER)))


def _tasks(data: Any, function: Callable[..., Any], sent: bytes, share: Share, at_once: int | None) -> Any:
    """``function`` over all images of ``data``, as tasks that are done again when their worker is lost."""
    return data.map_batches(
        function, fn_kwargs={"sent": sent}, batch_size=listing.CHUNK, concurrency=at_once, **_asked(share)
    )


def _asked(share: Share) -> dict[str, Any]:
    return {name: value for name, value in share.options.items() if value}


@contextmanager
def _watchdog(progress: Progress, judges: Share, cutters: Share | None) -> Iterator[Any]:
    """Says once what the stream waits for when nothing has finished for a minute."""
    last, ended = time.monotonic(), threading.Event()

    def alive() -> None:
        nonlocal last
        last = time.monotonic()

    def watch() -> None:
        told = False
        while not ended.wait(1.0):
            silent = time.monotonic() - last > SILENCE_SECONDS
            if silent and not told:
                progress.note(_waiting_for(judges, cutters))
            told = silent

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield alive
    finally:
        ended.set()
        thread.join()


def _waiting_for(judges: Share, cutters: Share | None) -> str:
    import ray

    free, have = ray.available_resources(), ray.cluster_resources()
    asked = [f"a scoring worker needs {judges.num_cpus:g} CPU, {judges.num_gpus:g} GPU"]
    if cutters is not None:
        asked.append(f"a decoding worker {cutters.num_cpus:g} CPU")
    state = ", ".join(f"{free.get(k, 0):g} of {have[k]:g} {k} free" for k in ("CPU", "GPU") if k in have)
    return f"no image for {SILENCE_SECONDS:.0f} s: {'; '.join(asked)}; {state}"
