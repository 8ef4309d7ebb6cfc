"""Ray's object store when it is full."""

from __future__ import annotations

import numpy as np
import pytest

pytestmark = pytest.mark.ray


def test_a_full_object_store_spills_and_the_stage_goes_on(stages, tmp_path):
    """With half as much again held as fits, the stage's own objects still find room, and the held ones are read."""
    import ray

    each = 30 * 2**20
    held = [ray.put(np.full(each, k, np.uint8)) for k in range(5)]
    made = stages.experts(tmp_path, count=1, epochs=1)
    assert made.summary["count"] == 1
    assert [int(ray.get(ref)[-1]) for ref in held] == list(range(5))
