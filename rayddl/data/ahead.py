"""Calls that wait for storage or compress images, made by threads ahead of the use of their results."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import lru_cache
from typing import TypeVar

_T = TypeVar("_T")

THREADS = 32
"""Most calls at the same time in one process. With 60 ms for each this is 500 a second."""
WINDOW = 64
"""Most calls that are made or have a result that is not used yet."""
WINDOW_BYTES = 256 * 2**20
"""Likewise the most bytes, where they are known; one call may have more."""


def ahead(
    calls: Iterable[tuple[Callable[[], _T], int]],
    *,
    threaded: bool,
    window: int = WINDOW,
    finish: bool = False,
) -> Generator[_T, None, None]:
    """The results of ``calls``, each given with the bytes of its result, in their order.

    With ``threaded``, threads make them ahead of their use; else each is made when it is asked for. An error of a call
    is raised in its place. With ``finish``, closing the iterator waits for the calls that are being made.
    """
    if not threaded:
        yield from (call() for call, _ in calls)
        return
    waiting: deque[tuple[Future[_T], int]] = deque()
    held = 0
    try:
        for call, size in calls:
            while waiting and (len(waiting) >= window or held + size > WINDOW_BYTES):
                first, its_size = waiting.popleft()
                held -= its_size
                yield first.result()
            waiting.append((_pool().submit(call), size))
            held += size
        while waiting:
            yield waiting.popleft()[0].result()
    finally:
        running = [future for future, _ in waiting if not future.cancel()]
        if finish:
            wait(running)


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, thread_name_prefix="ahead")


# A fork has no threads but its own.
os.register_at_fork(after_in_child=_pool.cache_clear)
