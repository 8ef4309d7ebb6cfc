"""DATM's initial images and labels against loops written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rayddl.data.config import SourceConfig
from rayddl.methods.matching.correct import chosen, masked_mean
from rayddl.stages.experts.settings import ADAPTIVE, ExpertsConfig
from rayddl.stages.match.settings import LAST_EPOCH, MatchConfig
from tests.raising import raises

LABELS = torch.arange(3).repeat(40)
IMAGES = torch.randn(120, 2, generator=torch.Generator().manual_seed(0))
"""Stand-ins for images: what a network makes of them is all that counts."""


def expert(right: Tensor) -> object:
    """A network that classifies the images of the mask ``right`` correctly, and no others."""
    known = {tuple(image.tolist()): bool(ok) for image, ok in zip(IMAGES, right, strict=True)}
    labels = {tuple(image.tolist()): int(label) for image, label in zip(IMAGES, LABELS, strict=True)}

    def logits(images: Tensor) -> Tensor:
        keys = [tuple(image.tolist()) for image in images]
        said = [labels[k] if known[k] else (labels[k] + 1) % 3 for k in keys]
        return torch.nn.functional.one_hot(torch.tensor(said), 3).float()

    return logits


def test_initial_images_are_those_that_experts_classify_correctly() -> None:
    """``ipc`` of each class in class order; those of the first expert before the second's; drawn by the seed."""
    first = torch.zeros(120, dtype=torch.bool)
    first[:30] = True  # ten of each class
    second = torch.zeros(120, dtype=torch.bool)
    second[60:90] = True
    experts = [expert(first), expert(second)]
    few = chosen(experts, IMAGES, LABELS, "abc", 4, 1)  # type: ignore[arg-type]
    assert LABELS[few].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert bool(first[few].all())
    assert len(set(few.tolist())) == 12
    assert few.tolist() != chosen(experts, IMAGES, LABELS, "abc", 4, 2).tolist()  # type: ignore[arg-type]

    more = chosen(experts, IMAGES, LABELS, "abc", 15, 1).view(3, 15)  # type: ignore[arg-type]
    assert all(bool(first[row[:10]].all()) and bool(second[row[10:]].all()) for row in more)
    with raises("too-few-correct-images"):
        chosen(experts, IMAGES, LABELS, "abc", 21, 1)  # type: ignore[arg-type]


def test_labels_are_the_mean_of_the_experts_that_are_right() -> None:
    """For each image by itself; of all experts if none is right."""
    logits = torch.randn(6, 20, 4, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(20) % 4
    logits[:, 0, 0] = -9  # no expert is right about the first image
    found = masked_mean(logits, labels)
    for n, label in enumerate(labels.tolist()):
        right = [row[n] for row in logits if int(row[n].argmax()) == label]
        torch.testing.assert_close(found[n], torch.stack(right or list(logits[:, n])).mean(0))
    assert not torch.allclose(found, logits.mean(0))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "MCT"),
        ({"trajectory": "snapshots"}, "MTT"),
        ({"trajectory": "snapshots", "labels": "learned"}, "DATM"),
        ({"trajectory": "snapshots", "labels": "learned", "start_from": "correct"}, "DATM"),
        ({"labels": "learned", "start_from": "correct"}, "MCT+DATM"),
    ],
)
def test_datm_has_its_own_name(changes: dict[str, str], name: str) -> None:
    """With learned labels; its starting images have no use for another initial set."""
    base = {
        "kind": "match",
        "experts": "e",
        "ipc": 1,
        "syn_steps": 1,
        "expert_epochs": 1,
        "max_start_epoch": 2,
    }
    assert MatchConfig.model_validate({**base, **changes}).method_name() == name
    with pytest.raises(ValueError, match="start_set"):
        MatchConfig.model_validate({**base, "start_from": "correct", "start_set": "s"})


BASE = {"kind": "match", "experts": "e", "ipc": 1, "syn_steps": 1, "expert_epochs": 1, "max_start_epoch": 20}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"first_start_epoch": 10}, "set both or neither"),
        ({"grow_iterations": 10}, "set both or neither"),
        ({"first_start_epoch": 48, "grow_iterations": 10}, "max_start_epoch"),
        ({"first_start_epoch": 2, "grow_iterations": 10, "min_start_epoch": 5}, "min_start_epoch"),
        ({"skip_layers": 1, "depth_ratio": 0.5}, "leave one of the two out"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, float], said: str) -> None:
    """A growing range has a beginning and a length, and stays between the least and the latest start epoch."""
    with pytest.raises(ValueError, match=said):
        MatchConfig.model_validate({**BASE, **changes})
    fine = {"first_start_epoch": 20, "grow_iterations": 10, "min_start_epoch": 5}
    assert MatchConfig.model_validate({**BASE, **fine}).upper(0) == 20


def test_results_by_experts_of_the_last_epoch_are_a_revision() -> None:
    """Of labels that begin as the experts', and of images that these classify; flat experts have one of their own."""
    source = SourceConfig(name="digits")

    def revised(**changes: str) -> bool:
        return LAST_EPOCH in MatchConfig.model_validate({**BASE, **changes}).revisions(source)

    assert revised(labels="learned")
    assert revised(start_from="correct")
    assert not revised()
    assert not revised(labels="expert")
    experts = [ExpertsConfig.model_validate({"kind": "experts", "flat_rho": rho}) for rho in (0, 0.01)]
    assert [ADAPTIVE in each.revisions(source) for each in experts] == [False, True]
