"""The steps of a part, computed together, against single steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rayddl.data.config import AUGMENTATIONS
from rayddl.data.pixels import augment
from rayddl.methods.matching import augmented
from rayddl.methods.matching.gradient import MODES
from tests.unit.matching.test_matching_gradient import PARTS, SHAPE, problem


@given(
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=12),
    parameters=st.integers(1, 100),
    most=st.integers(0, 4000),
)
def test_parts_are_all_steps_in_order_of_one_length_and_within_the_limit(
    lengths: list[int], parameters: int, most: int
) -> None:
    found = augmented.parts(lengths, 10, parameters, most)

    assert [k for part in found for k in range(len(lengths))[part]] == list(range(len(lengths)))
    for part in found:
        own = lengths[part]
        assert len(set(own)) == 1
        assert len(own) == 1 or len(own) * 4 * (own[0] * 10 + parameters) <= most


def test_parts_have_about_equal_length() -> None:
    """A graph is recorded for each length, so that 30 steps of which 20 fit are two parts of 15."""
    assert [part.stop - part.start for part in augmented.parts([5] * 30, 10, 50, 20 * 400)] == [15, 15]
    assert [part.stop - part.start for part in augmented.parts([5] * 7, 10, 50, 0)] == [1] * 7


def test_a_part_has_the_batches_of_its_steps() -> None:
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(9, *SHAPE, generator=draws, dtype=torch.float64)
    picks = [torch.randint(9, (4,), generator=draws) for _ in range(12)]
    drawn = [augment.draw(AUGMENTATIONS, (4, *SHAPE), draws) for _ in picks]
    assert len({each.name for each in drawn if each is not None}) > 2
    drawn[3] = None

    found = augmented.batches_of(images, picks, drawn)

    for batch, picked, each in zip(found.batches, picks, drawn, strict=True):
        torch.testing.assert_close(batch, augment.apply(images[picked], each), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["exact", "truncated"])
@pytest.mark.parametrize("augmentations", [AUGMENTATIONS, ()], ids=["augmented", "plain"])
def test_steps_in_parts_give_the_gradient_of_single_steps(
    mode: str, augmentations: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches that repeat images, of two sizes, and a part boundary within those of one size."""
    steps, run, start, target = problem(batch=5, count=11, augmentations=augmentations)
    smaller = run.picks[3][:2], None if (drawn := run.draws[3]) is None else drawn.of(slice(0, 2))
    run = replace(
        run,
        picks=[*run.picks[:3], smaller[0], *run.picks[4:]],
        draws=[*run.draws[:3], smaller[1], *run.draws[4:]],
    )
    single = MODES[mode](steps, run, start, target)
    room = 4 * 4 * (5 * run.images[0].numel() + len(start))
    monkeypatch.setattr(augmented, "limit", lambda images: room)
    lengths: list[int] = []
    ahead = steps.ahead
    steps = replace(steps, ahead=lambda *given: lengths.append(len(given[2])) or ahead(*given))
    together = MODES[mode](steps, run, start, target)

    assert lengths == [3, 1, 4, 3]
    for part in PARTS:
        torch.testing.assert_close(getattr(together, part), getattr(single, part), rtol=1e-10, atol=1e-13)


def test_a_cpu_computes_single_steps() -> None:
    """There, a part's batches would leave the cache."""
    assert augmented.limit(torch.zeros(1)) == 0
