"""Some images of every class: different ones, in class order, and what happens where there are few."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from rayddl.data.sources.picking import per_class
from rayddl.seeds import generator
from tests.raising import raises

CLASSES = ("cat", "dog", "eel")
LABELS = torch.tensor([2, 0, 1, 1, 0, 2, 1, 0, 1, 1])  # 3 cats, 5 dogs, 2 eels


@given(seed=st.integers(0, 1000), ipc=st.integers(1, 6), short=st.sampled_from(["cap", "repeat"]))
def test_class_order_and_counts(seed: int, ipc: int, short: str) -> None:
    """Classes come in order, with ipc images each or, capped, as many as there are, none twice."""
    picked = per_class(LABELS, CLASSES, ipc, generator(seed), short)  # type: ignore[arg-type]  # drawn by name
    labels = LABELS[picked]

    assert torch.equal(labels, labels.sort().values)
    expected = [min(ipc, n) for n in (3, 5, 2)] if short == "cap" else [ipc] * 3
    assert torch.bincount(labels, minlength=3).tolist() == expected
    if short == "cap":
        assert len(set(picked.tolist())) == len(picked)
    assert torch.equal(picked, per_class(LABELS, CLASSES, ipc, generator(seed), short))  # type: ignore[arg-type]  # as above


@given(seed=st.integers(0, 1000), wanted=st.tuples(*[st.integers(0, 6)] * 3))
def test_each_class_may_have_a_number_of_its_own(seed: int, wanted: tuple[int, int, int]) -> None:
    """Of each class the first of those that the same number for all classes gives."""
    picked = per_class(LABELS, CLASSES, wanted, generator(seed))
    found = torch.bincount(LABELS[picked], minlength=3).tolist()

    assert found == [min(n, m) for n, m in zip(wanted, (3, 5, 2), strict=True)]
    even = per_class(LABELS, CLASSES, 6, generator(seed))
    assert picked.tolist() == [i for c, n in enumerate(found) for i in even[LABELS[even] == c][:n].tolist()]


def test_repeat_uses_all_before_any_twice() -> None:
    """Repeated images are spread evenly over those there are."""
    picked = per_class(LABELS, CLASSES, 5, generator(0), "repeat")
    counts = torch.bincount(picked, minlength=len(LABELS))

    assert sorted(counts[LABELS == 2].tolist()) == [2, 3]


def test_short_class_is_named() -> None:
    """By default a class with too few images is an error that names it and the two ways out."""
    with raises("class-too-small"):
        per_class(LABELS, CLASSES, 4, generator(0), "error")
