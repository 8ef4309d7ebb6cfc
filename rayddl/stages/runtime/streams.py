"""A Ray Data pipeline of two steps: crop and score."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayddl.stages.runtime import failures
from rayddl.stages.runtime.sizes import Share

Block = dict[str, NDArray[Any]]
"""Columns of a batch, in Ray Data's format."""

SILENCE_SECONDS = 60.0
"""Seconds without a finished row after which the stream notes what it waits for."""
ENDING_SECONDS = 0.5
"""Seconds between the last row that is wanted of a stream which ends early, and its end."""
CHUNKS_A_BLOCK = 8
"""Most chunks of one task. Between two tasks a worker is idle for a fifth of a second."""
BLOCKS_A_WORKER = 8
"""Least number of tasks per worker, if there are enough chunks: a lost task then repeats little work, and the
workers end at about the same time.
"""


@dataclass(frozen=True)
class StreamSteps:
    """The functions that process rows. They are module-level, since the dashboard shows their names."""

    column: str
    """The column of a block that contains the rows' numbers."""
    sent: bytes
    """Bytes that are sent with each block."""
    cut: Callable[[Block, bytes], Block]
    judge: Callable[[bytes], Callable[[Block], Block]]
    """The class of the scoring actor."""
    both: Callable[[Block, bytes], Block]
    """Crops and scores in one process."""
    chunk: int
    """Rows per call of the cropping step."""
    judged: int
    """Rows per call of the scoring step, if it has separate workers."""
    judges_at_once: int | None = None
    cutters_at_once: int | None = None


def in_turn(rows: NDArray[np.int64], steps: StreamSteps) -> Iterator[Block]:
    """The results of ``rows``, computed in this process, chunk by chunk."""
    for start in range(0, len(rows), steps.chunk):
        yield steps.both({steps.column: rows[start : start + steps.chunk]}, steps.sent)


def stream(
    rows: NDArray[np.int64],
    steps: StreamSteps,
    judges: Share,
    cutters: Share | None,
    note: Callable[[str], None],
) -> Iterator[Block]:
    """The results of ascending ``rows``, in the order in which they finish.

    Results do not depend on how Ray joins or splits blocks. Without ``cutters`` scoring workers crop too. Ray Data
    starts as many workers as fit on the cluster at any time; a lost worker's tasks are repeated.
    """
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Otherwise it is inside one of Ray Data's, without its type.
    context.raise_original_map_exception = True
    size = rows_a_block(len(rows), (cutters or judges).at_once, steps.chunk)
    tables = [pa.table({steps.column: rows[i : i + size]}) for i in range(0, len(rows), size)]
    # Unlike from_arrow, it starts no task for each block.
    data: ray.data.Dataset = ray.data.from_blocks(tables)
    if cutters is None:
        data = _tasks(data, steps, steps.both, judges, steps.judges_at_once)
    else:
        data = _tasks(data, steps, steps.cut, cutters, steps.cutters_at_once).map_batches(
            steps.judge,
            fn_constructor_args=(steps.sent,),
            # Ray Data joins blocks to this size.
            batch_size=steps.judged,
            compute=ActorPoolStrategy(min_size=1, max_size=steps.judges_at_once),
            **_asked(judges),
        )
    with _watchdog(note, judges, cutters) as alive:
        try:
            for batch in data.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1):
                alive()
                yield batch
        except ray.exceptions.RayError as error:
            failures.explain(error, "the stream of images")
        except BaseException:
            # Ray Data cancels its tasks now, the ones that began together with the last one among them: see
            # `workers.cancel`.
            time.sleep(ENDING_SECONDS)
            raise


def rows_a_block(rows: int, workers: int, chunk: int) -> int:
    """The number of rows per task, a multiple of ``chunk``, for ``workers`` concurrent tasks."""
    chunks = -(-rows // chunk)
    return chunk * min(CHUNKS_A_BLOCK, max(1, chunks // (workers * BLOCKS_A_WORKER)))


def _tasks(
    data: Any, steps: StreamSteps, function: Callable[..., Any], share: Share, at_once: int | None
) -> Any:
    """Map ``function`` over all rows of ``data``, as tasks that are retried when their worker is lost."""
    return data.map_batches(
        function, fn_kwargs={"sent": steps.sent}, batch_size=steps.chunk, concurrency=at_once, **_asked(share)
    )


def _asked(share: Share) -> dict[str, Any]:
    # Ray Data asks for one CPU where none is named.
    return {name: value for name, value in share.options.items() if value or name == "num_cpus"}


@contextmanager
def _watchdog(note: Callable[[str], None], judges: Share, cutters: Share | None) -> Iterator[Any]:
    """Note once what the stream waits for, when no row has finished for :data:`SILENCE_SECONDS`."""
    last, ended = time.monotonic(), threading.Event()

    def alive() -> None:
        nonlocal last
        last = time.monotonic()

    def watch() -> None:
        noted = False
        while not ended.wait(1.0):
            silent = time.monotonic() - last > SILENCE_SECONDS
            if silent and not noted:
                note(_waiting_for(judges, cutters))
            noted = silent

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
