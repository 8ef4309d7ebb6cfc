"""Selections of plugins: what they may return, and how what they get wrong is reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rayddl import plugins
from rayddl.plugins import Plugin
from rayddl.stages.coreset.settings import CoresetConfig
from rayddl.stages.coreset.worker import CoresetTask, _selected
from rayddl.storage import Folder
from tests.raising import raises

FEATURES = torch.arange(12.0).reshape(6, 2)
Select = Callable[[Tensor, int], Any]


@pytest.fixture(autouse=True)
def _none_active() -> Iterator[None]:
    yield
    plugins.activate([])


def selected(select: Any) -> list[int]:
    """Three of six images of the class ``two`` by a plugin's selection."""
    plugins.activate([Plugin("mine", selections={"own": select})])
    config = CoresetConfig(kind="coreset", method="own", ipc=3)
    listing: Any = SimpleNamespace(classes=("one", "two"))
    return _selected(CoresetTask(config, listing, (1, 2, 1), None, Folder("."), 0, 1), 1, FEATURES)


@pytest.mark.parametrize(
    "found",
    [[5, 0, 2], (5, 0, 2), np.array([5, 0, 2]), torch.tensor([5, 0, 2]), torch.tensor([5, 0, 2]).byte()],
)
def test_indices_in_any_container(found: Any) -> None:
    """Lists, arrays and tensors of whole numbers, in the order of selection."""
    assert selected(lambda features, count: found) == [5, 0, 2]


@pytest.mark.parametrize(
    "select",
    [
        lambda features, count: features.norm(dim=1).topk(count).values,
        lambda features, count: torch.arange(count) + 0.7,
        lambda features, count: torch.arange(count)[:, None],
        lambda features, count: features.norm(dim=1) > 10,
        lambda features, count: features[:count],
        lambda features, count: [0, 0, 1],
        lambda features, count: [0, 1, 6],
        lambda features, count: [-1, 0, 1],
        lambda features, count: [0, 1],
        lambda features, count: 3,
    ],
    ids=["values", "floats", "column", "mask", "rows", "twice", "beyond", "negative", "few", "number"],
)
def test_what_is_no_selection_is_refused(select: Select) -> None:
    """Also what would become valid indices if its numbers were rounded, or its shape ignored."""
    with raises("plugin-selection-output") as caught:
        selected(select)
    assert "of class 'two'; expected 3 different indices, whole numbers from 0 to 5" in str(caught.value)


def failing(features: Tensor, count: int) -> Tensor:
    """Raises where torch does."""
    return features.reshape(count, 5)


@pytest.mark.parametrize(
    ("select", "says"),
    [
        (
            failing,
            f"at line {failing.__code__.co_firstlineno + 2} of test_coreset_plugin.py: RuntimeError: shape",
        ),
        (lambda features: features, "for 3 of 6 images of class 'two': TypeError: "),
        (lambda features, count: None, "for 3 of 6 images of class 'two': RuntimeError: "),
        (lambda features, count: "012", "for 3 of 6 images of class 'two': TypeError: "),
    ],
    ids=["raises", "one argument", "nothing", "text"],
)
def test_a_selection_that_fails_is_named(select: Any, says: str) -> None:
    """With its plugin, what it was called for, and the line of its own file."""
    with raises("plugin-failed") as caught:
        selected(select)
    assert "selection 'own' of plugin mine failed for " in str(caught.value)
    assert says in str(caught.value)
