"""A matching stage that Ctrl-C interrupts keeps the iteration it was at, and resumes with the same bits."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load

from rayddl.methods.matching.loop import ANCHOR
from rayddl.stages.match import stage as match
from rayddl.stages.match import worker as matcher
from rayddl.stages.runtime import cluster
from rayddl.storage import Folder

pytestmark = pytest.mark.ray


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Many looks at the loop, and no checkpoint but the one that an interrupt makes."""
    monkeypatch.setattr(match, "SLICE_SECONDS", 0.05)
    monkeypatch.setattr(matcher, "CHECKPOINT_SECONDS", 3600.0)


def interrupt_between(told, low, high):
    """A progress that Ctrl-C interrupts once the loop stands between two iterations."""

    def act(done, total):
        if low < done < high:
            raise KeyboardInterrupt

    return told(act)


def test_an_interrupted_loop_resumes_where_it_stood(stages, convex, mct, told, tmp_path):
    """The checkpoint is of the iteration that was reached, not of the anchor before it, and changes no bit."""
    with pytest.raises(KeyboardInterrupt):
        stages.match(convex, tmp_path, interrupt_between(told, ANCHOR, 2 * ANCHOR), iterations=60)
    saved = load((tmp_path / matcher.CHECKPOINT).read_bytes())
    done = len(saved["more.rows"])
    again = stages.match(convex, tmp_path, iterations=60)

    assert ANCHOR < done < 2 * ANCHOR
    assert int(saved["numbers"][0]) == done
    assert again.set_bytes == mct.set_bytes
    assert again.rows() == mct.rows()
    assert again.table("metrics.parquet")["seconds"][:done] == saved["more.rows"][:, -1].tolist()


def test_a_paused_run_that_diverges_is_restored_to_its_anchor(stages, convex, tmp_path):
    """The anchor is kept with the state: a resumed run that diverges goes back as far as one never paused."""
    config = stages.match_config(iterations=2 * ANCHOR)
    worker = loop_worker(stages, convex, config, tmp_path)
    worker.advance(ANCHOR + 7, float("inf"))
    anchor = worker._loop.anchor
    paused = worker.pause()
    resumed = loop_worker(stages, convex, config, tmp_path)._loop

    assert paused == ANCHOR + 7
    assert (resumed.state.iteration, resumed.anchor.iteration) == (ANCHOR + 7, ANCHOR)
    assert torch.equal(resumed.anchor.images, anchor.images)
    assert torch.equal(resumed.state.images, worker._loop.state.images)
    assert resumed.rows == worker._loop.rows


def loop_worker(stages, experts, config, folder):
    """The loop's worker, in this process."""
    context = stages._context("distill", folder, {"experts": experts.as_input()}, None)
    job, _ = match.prepared(config, context)
    threads = torch.get_num_threads()
    worker = matcher.MatchWorker(cluster.packed(job), [])
    torch.set_num_threads(threads)
    assert isinstance(job.out, Folder)
    return worker
