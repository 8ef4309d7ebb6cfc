"""The cores of the machine that this process may use."""

from __future__ import annotations

import os
from contextlib import suppress

TASKS = "/proc/self/task"


def cores() -> frozenset[int] | None:
    """Cores that this process may use; None where the system does not say, as on macOS.

    Those of all its threads together, because one of them may be kept on a core of its own.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    found = frozenset(os.sched_getaffinity(0))
    for thread in threads():
        with suppress(OSError):  # it has ended
            found |= os.sched_getaffinity(thread)
    return found


def threads() -> list[int]:
    """Native identifiers of this process's threads; empty without Linux's ``/proc``."""
    with suppress(OSError):
        return [int(name) for name in os.listdir(TASKS)]
    return []
