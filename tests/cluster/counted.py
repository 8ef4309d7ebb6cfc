"""The command `rayddl`, which also writes down every unit of work that a worker begins: `python counted.py run …`.

One line a unit, in the file that COUNTED names. CHUNK, where it is set, is how many images are read together; RESIZE is
how often, in seconds, a team looks for room to grow.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from rayddl.cli import main
from rayddl.data.sources import listing
from rayddl.stages.evaluate import worker as students
from rayddl.stages.experts import stage as experts
from rayddl.stages.rded import selection as rded_select
from rayddl.stages.runtime import teams


def counted(function: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
    """``function``, which says what it begins with."""
    log = os.environ["COUNTED"]

    def begun(*args: Any, **kwargs: Any) -> Any:
        # A line at once: several processes append to the same file.
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{name(*args, **kwargs)}\n")
        return function(*args, **kwargs)

    # The name that its process goes by; wrapped whole, it would be sent as the module's own.
    begun.__name__ = begun.__qualname__ = function.__name__
    return begun


if __name__ == "__main__":
    teams.RESIZE_SECONDS = float(os.environ.get("RESIZE", teams.RESIZE_SECONDS))
    listing.CHUNK = int(os.environ.get("CHUNK", listing.CHUNK))
    experts.train_some = counted(experts.train_some, lambda job, indices, counter: f"expert {indices[0]}")
    students.train_one = counted(students.train_one, lambda shared, data, student: f"student {student.file}")
    rded_select.rded_cut_and_judge = counted(
        rded_select.rded_cut_and_judge, lambda block, sent: f"chunk {int(block['image'][0])}"
    )
    rded_select.rded_cut = counted(rded_select.rded_cut, lambda block, sent: f"cut {int(block['image'][0])}")
    main()
