"""Hints know the field's other words for kinds and keys."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from rayddl.data.config import SourceConfig
from rayddl.errors import DefinitionError
from rayddl.pipeline.definition import load as definitions
from rayddl.pipeline.definition import vocabulary
from rayddl.pipeline.definition.load import Top
from rayddl.stages.kinds import KINDS


def _problem(stages: dict[str, Any], **source: Any) -> str:
    whole = {"name": "d", "source": {"name": "digits", **source}, "stages": stages}
    with pytest.raises(DefinitionError) as caught:
        definitions.load(whole)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "hint"),
    [
        ("mtt", "kind: match with trajectory: snapshots"),
        ("MCT", "kind: match with trajectory: convex"),
        ("datm", "labels: learned"),
        ("dsa", "not part of rayddl"),
        ("buffer", "kind: experts"),
        ("k-center", "kind: coreset"),
    ],
)
def test_methods_by_their_names_in_the_literature(kind: str, hint: str) -> None:
    """Spelling alone would say ``match`` or nothing, without the setting that makes it this method."""
    assert hint in _problem({"a": {"kind": kind}})


@pytest.mark.parametrize(
    ("stage", "key", "hint"),
    [
        ({"kind": "match"}, "images_per_class", "did you mean 'ipc'?"),
        ({"kind": "match"}, "lr_img", "did you mean 'lr_image'?"),
        ({"kind": "match"}, "lr_teacher", "did you mean 'lr_student'?"),
        ({"kind": "match"}, "dsa_strategy", "did you mean 'augment'?"),
        ({"kind": "match"}, "zca", "did you mean source.space: zca?"),
        ({"kind": "evaluate"}, "teacher", "did you mean 'observer'?"),
        ({"kind": "evaluate"}, "num_eval", "did you mean 'seeds'?"),
        ({"kind": "evaluate"}, "epoch_eval_train", "did you mean 'epochs'?"),
        ({"kind": "experts"}, "num_experts", "did you mean 'count'?"),
        ({"kind": "experts"}, "lr_teacher", "did you mean 'lr'?"),
        ({"kind": "experts"}, "Batch-Size", "did you mean 'batch'?"),
        ({"kind": "rded"}, "num_crop", "did you mean 'num_crops'?"),
        ({"kind": "teacher"}, "resolution", "did you mean 'size'?"),
        ({"kind": "report"}, "img_size", "did you mean source.size?"),
    ],
)
def test_keys_by_their_names_in_other_codes(stage: dict[str, Any], key: str, hint: str) -> None:
    """The key of this stage, or the place where it is."""
    assert f"{key}: unknown key; {hint}" in _problem({"a": {**stage, key: 1}})


def test_keys_of_a_source() -> None:
    """Where the images are, and what is held out."""
    text = _problem({"a": {"kind": "report"}}, data_path="x", val_split=0.1, resolution=8)
    assert "did you mean 'root'?" in text
    assert "did you mean 'holdout'?" in text
    assert "did you mean 'size'?" in text


def test_every_hint_names_what_exists() -> None:
    """No word leads to a key that no settings have, and none is itself a key where it is explained."""
    models: list[type[BaseModel]] = [Top, SourceConfig, *(kind.config for kind in KINDS.values())]
    known = {name for model in models for name in model.model_fields}
    known |= {"width", "num_gpus", "num_cpus"}
    for word, candidates in vocabulary._KEYS.items():
        for candidate in candidates:
            named = candidate.replace(" at the top level", "").split(" and ")
            for name in named:
                assert name.split(":")[0].split(".")[-1] in known, (word, candidate)
    for text in vocabulary._KINDS.values():
        kind = text.removeprefix("kind: ").split(" ")[0]
        assert kind in KINDS or "not part of rayddl" in text, text
