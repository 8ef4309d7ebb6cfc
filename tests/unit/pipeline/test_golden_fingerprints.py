"""Finished runs of the shipped definitions are found again by this version."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayddl.pipeline import plan as plans
from rayddl.pipeline.definition import load as definition

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = json.loads((ROOT / "tests/golden/fingerprints.json").read_text(encoding="utf-8"))
PIPELINES = sorted((ROOT / "pipelines").glob("*.yaml"))


def test_every_shipped_definition_is_pinned() -> None:
    """A new definition is added to the golden file with it."""
    assert {path.stem for path in PIPELINES} == set(GOLDEN)


@pytest.mark.parametrize("path", PIPELINES, ids=lambda p: p.stem)
def test_fingerprints_stay_what_they_are(path: Path, tmp_path: Path) -> None:
    """A changed fingerprint makes finished folders of that stage and of all that depend on it useless.

    Where a result changes on purpose, the kind's version is raised and the golden file written anew.
    """
    made = plans.make(definition.load(str(path)), str(tmp_path), lambda source: "images")
    assert {stage.name: stage.fingerprint[:16] for stage in made.stages} == GOLDEN[path.stem]
