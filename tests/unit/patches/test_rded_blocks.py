"""What comes back from RDED's stream is taken in by image, whatever blocks Ray makes of it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayddl.data.config import SourceConfig
from rayddl.data.sources.listing import Listing
from rayddl.methods.patches.select import Best, CropRows, best_of_class
from rayddl.stages.context import Context
from rayddl.stages.rded import selection as rded_select
from rayddl.stages.rded.selection import COLUMNS
from rayddl.stages.rded.settings import RdedConfig
from rayddl.stages.rded.worker import GPU_BATCH, Judge, images_a_call
from rayddl.stages.runtime.in_process import InProcess
from rayddl.storage import Folder
from tests.raising import raises

CLASSES, MOST = 3, 4


def outcome(count: int, seed: int) -> dict[str, np.ndarray]:
    """A row for each of ``count`` images, some of which cannot be read; scores collide."""
    draws = np.random.default_rng(seed)
    bad = np.where(draws.random(count) < 0.1, "no image", "").astype(object)
    return {
        "image": np.arange(count, dtype=np.int64),
        "label": draws.integers(0, CLASSES, count).astype(np.int32),
        "score": np.where(bad == "", draws.integers(0, 5, count), np.nan).astype(np.float32),
        "crop": draws.integers(0, 5, count).astype(np.int32),
        "box": draws.integers(0, 9, (count, 3)).astype(np.int32),
        "bad": bad,
    }


def rows(block: dict[str, np.ndarray]) -> CropRows:
    kept = block["bad"] == ""
    return CropRows(*(block[name][kept] for name in COLUMNS))


def fresh(count: int) -> rded_select._Seen:
    return rded_select._Seen(Best(MOST, CLASSES), np.zeros(count, bool), [])


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(0, 999), st.data())
def test_joined_split_repeated_and_shuffled_blocks_change_nothing(count: int, seed: int, data) -> None:
    """Blocks are any rows in any order, some of them twice or within one block twice: the winners are those of all
    rows once, every image counts as done, and an unreadable one is listed once.
    """
    whole = outcome(count, seed)
    twice = data.draw(st.lists(st.integers(0, count - 1), max_size=20))
    order = np.array(data.draw(st.permutations([*range(count), *twice])), dtype=np.int64)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(order)), max_size=8)))
    seen = fresh(count)
    names = pa.array([f"image {i}" for i in range(count)])
    for part in np.split(order, cuts):
        seen.take({name: column[part] for name, column in whole.items()}, names)
    expected = best_of_class(rows(whole), MOST)
    assert all(
        np.array_equal(a, b) for a, b in zip(seen.best.rows().columns(), expected.columns(), strict=True)
    )
    assert seen.done.all()
    assert seen.images == count
    assert sorted(seen.bad) == sorted(f"image {i}: no image" for i in np.flatnonzero(whole["bad"] != ""))


@settings(deadline=None)
@given(st.integers(2, 60), st.integers(0, 999), st.data())
def test_what_never_came_is_known(count: int, seed: int, data) -> None:
    """Images whose rows are missing are those that are not done, and the message names some of them."""
    whole = outcome(count, seed)
    came = np.array(sorted(data.draw(st.sets(st.integers(0, count - 1), max_size=count - 1))), dtype=np.int64)
    seen = fresh(count)
    names = pa.array([f"image {i}" for i in range(count)])
    seen.take({name: column[came] for name, column in whole.items()}, names)
    missing = sorted({*range(count)} - {*came.tolist()})
    assert np.flatnonzero(~seen.done).tolist() == missing
    text = rded_select._missing(seen, names)
    assert f"without {len(missing)} of {count} images: 'image {missing[0]}'" in text
    assert ("more" in text) == (len(missing) > 5)


def test_a_row_taken_in_twice_does_not_win_twice() -> None:
    """Without the check by image the best of a class would fill with itself."""
    whole = outcome(1, 3)
    whole["bad"][:] = ""
    seen = fresh(1)
    for _ in range(3):
        seen.take(whole, pa.array(["image 0"]))
    assert len(seen.best.rows()) == 1


def test_a_stream_that_loses_images_is_an_internal_error(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """It names what is missing, keeps what came, and the next attempt asks for the missing ones alone."""
    whole = outcome(6, 1)
    whole["bad"][:] = ""
    names = pa.array([f"image {i}" for i in range(6)])
    nothing = np.zeros(6, np.int64)
    listed = Listing(names, whole["label"], nothing.astype(np.int32), nothing, nothing, ("a", "b", "c"), None)
    config = SimpleNamespace(short_class="cap", ipc=1, factor=2, asks=None)
    job = SimpleNamespace(listing=listed, per_class=MOST, config=config)
    backend = InProcess()
    context = Context(
        "picked", SourceConfig(name="digits"), 0, Folder(str(tmp_path)), {}, {}, backend=backend
    )
    asked: list[list[int]] = []

    def lossy(positions, steps, asks, note):
        asked.append(positions.tolist())
        kept = positions if len(asked) > 1 else positions[positions != 4]
        yield {name: column[kept] for name, column in whole.items()}

    monkeypatch.setattr(InProcess, "stream", staticmethod(lossy))
    monkeypatch.setattr(rded_select, "steps", lambda job: None)
    with raises("images-missing"):
        rded_select.select(job, context)
    found, _, _ = rded_select.select(job, context)
    assert asked == [[0, 1, 2, 3, 4, 5], [4]]
    assert sorted(found.image.tolist()) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("images", "batches"), [(10, 1), (16_383, 1), (16_384, 2), (32_768, 4), (1_281_167, 4)]
)
def test_a_judge_takes_several_batches_a_call_if_there_are_enough(images: int, batches: int) -> None:
    """All batches of a call but the first are copied ahead; a small stream still has a call for each of many judges."""
    config = RdedConfig(kind="rded", teacher="teacher", ipc=1)
    assert images_a_call(config, images) == batches * (GPU_BATCH // config.candidates)


def test_a_judge_leaves_out_images_that_cannot_be_read() -> None:
    """The crops of the others are gathered before they are scored: each image has the score of its own crops."""
    draws = np.random.default_rng(0)
    patches = draws.integers(0, 256, (6, 2, 3, 4, 4), np.uint8)
    bad = np.array(["", "gone", "", "", "gone", ""], dtype=object)
    judge = Judge.__new__(Judge)
    judge._job = SimpleNamespace(config=SimpleNamespace(candidates=2))  # type: ignore[assignment]
    judge._scorer = lambda x, y: x.float().mean((1, 2, 3)) + 1000 * y  # type: ignore[assignment]
    judge._device = torch.device("cpu")
    block = {
        "image": np.arange(6), "label": np.arange(6, dtype=np.int32), "bad": bad, "patch": patches,
        "box": draws.integers(0, 9, (6, 2, 3)).astype(np.int32),
    }  # fmt: skip
    found = judge(block)
    means_of = patches.reshape(6, 2, -1).mean(2)
    for k in np.flatnonzero(bad == ""):
        assert found["score"][k] == pytest.approx(means_of[k].max() + 1000 * k, rel=1e-5)
        assert found["box"][k].tolist() == block["box"][k, means_of[k].argmax()].tolist()
    assert np.isnan(found["score"][[1, 4]]).all()
