"""Selections from more features than memory holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor

from rayddl.data.config import SourceConfig
from rayddl.data.pixels import space
from rayddl.data.sources.summary import SourceSummary
from rayddl.methods.selection import rows, select
from rayddl.methods.selection.features import BATCH, Features
from rayddl.methods.selection.rows import FeatureRows
from rayddl.stages.coreset.estimate import FEATURES, estimate
from rayddl.stages.coreset.settings import CoresetConfig
from rayddl.stages.coreset.worker import _Gathered, kept
from rayddl.stages.estimates import PROCESS, Machine, Outlook


def noise(count: int, width: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0))


def collected(features: Tensor, held: int) -> Tensor:
    """The features, added in uneven parts."""
    into = FeatureRows(held)
    for part in features.split([1, 60, 0, len(features) - 61]):
        into.add(part)
    return into.joined()


@pytest.mark.parametrize("shape", [(100,), (100, 7)])
def test_rows_above_the_limit_are_in_a_file(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers, of which no part stays in memory; the file goes away with them."""
    features = noise(100, 7)[:, : shape[1]] if len(shape) > 1 else noise(100, 1)[:, 0]
    opened: list[Any] = []
    made = rows.tempfile.TemporaryFile
    monkeypatch.setattr(rows.tempfile, "TemporaryFile", lambda: opened.append(made()) or opened[-1])

    assert torch.equal(collected(features, features.nbytes), features)
    assert not opened
    found = collected(features, features.nbytes - 1)
    assert torch.equal(found, features)
    assert found.dtype == torch.float32
    assert [file.closed for file in opened] == [True]
    into = FeatureRows(10)
    into.add(features)
    assert [part.nbytes for part in into._parts] == [0]


def as_before(features: Tensor, count: int) -> list[int]:
    """``balanced`` with all rows in one tensor."""
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    patterns = min(max(1, count // 2), select.PATTERNS)
    with threadpool_limits(1):
        found = KMeans(patterns, n_init=3, random_state=0).fit(unit.numpy())
    pattern, centres = torch.from_numpy(found.labels_).long(), torch.from_numpy(found.cluster_centers_)
    far = (unit - centres[pattern]).square().sum(1)
    taken: list[int] = []
    for own, share in enumerate(select._shares(pattern.bincount(minlength=patterns).tolist(), count)):
        members = (pattern == own).nonzero().flatten()
        near = members[far[members].argsort(stable=True)].tolist()
        outliers = min(int(select.OUTLIERS * len(near)), len(near) - share)
        taken += near[: (share + 1) // 2] + near[len(near) - outliers - share // 2 : len(near) - outliers]
    return taken


def test_selections_from_a_file_are_those_from_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """In portions of a few rows; features stay as they are."""
    features = noise(700, 33).relu() + 1
    whole = {
        "herding": select.herding(features, 30),
        "k_center": select.k_center(features, 30),
        "balanced": as_before(features, 30),
    }
    mapped = collected(features, 0)
    monkeypatch.setattr(rows, "PORTION", 8 * 33 * 50 + 1)
    assert rows.portion(33, 4096) == 50

    assert select.herding(mapped, 30) == whole["herding"]
    assert select.k_center(mapped, 30) == whole["k_center"]
    assert select.balanced(mapped, 30, held=0) == select.balanced(features, 30) == whole["balanced"]
    assert torch.equal(mapped, features)


def test_patterns_do_not_depend_on_the_threads() -> None:
    """Not in the last bits of their centres."""
    features = noise(3000, 16)
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(select._clustered(features, 10, 4096, 2**28))
    assert torch.equal(found[0][1], found[1][1])


def test_a_class_whose_images_have_all_been_read_holds_none() -> None:
    """Unreadable ones count: the last batch is not kept until other classes have been read."""
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(256, (BATCH + 5, 1, 4, 4), generator=draws, dtype=torch.uint8)
    features = Features(space.fit("normalise", images).encode)
    gathered = _Gathered(features, kept("herding", 0), len(images) + 1)
    for place, image in enumerate(images):
        gathered.add(place, image, str(place))
    assert len(gathered._waiting) == 5
    gathered.add(len(images), "no image", "z")
    assert not gathered._waiting
    assert torch.equal(gathered.rows.joined(), features(images))
    assert gathered.bad == ["z: no image"]
    assert gathered.positions == list(range(len(images)))


def test_the_estimate_does_not_rise_with_the_split() -> None:
    """Of selections by features; scores are a number of each image."""
    assert FEATURES == rows.HELD

    def memory(method: str, train: int) -> int | None:
        config = CoresetConfig(kind="coreset", method=method, ipc=1)
        source_summary = SourceSummary((3, 64, 64), 10, train, 100)
        return estimate(
            config, {}, Outlook(SourceConfig(name="digits"), source_summary, Machine(4, 2**33, ()))
        ).memory

    assert memory("kcenter", 10**4) == memory("kcenter", 10**8) == PROCESS + 3 * rows.HELD
    assert memory("easiest", 10**6) == PROCESS + 8 * 10**6
