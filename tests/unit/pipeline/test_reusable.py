"""Finished stages that differ only in the number of their units are found, and no others."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from rayddl.pipeline import artifacts
from rayddl.pipeline import plan as plans
from rayddl.pipeline.cautions import before
from rayddl.pipeline.definition import load as definition
from rayddl.pipeline.estimating import estimate
from rayddl.pipeline.plan import Plan
from rayddl.pipeline.records import Record
from rayddl.pipeline.reusable import reusable
from rayddl.stages.speed import STAGE


def planned(out: Path, seed: int = 0, **experts: Any) -> Plan:
    stages = {
        "experts": {"kind": "experts", "epochs": 5, **experts},
        "distill": {"kind": "match", "experts": "experts", "ipc": 1, "syn_steps": 2},
    }
    source = {"name": "digits"}
    return plans.make(
        definition.load({"name": "x", "source": source, "seed": seed, "stages": stages}), str(out)
    )


def finish(plan: Plan, stage: str = "experts") -> str:
    """Seal the stage's folder as a run does, with one file."""
    found = next(each for each in plan.stages if each.name == stage)
    found.folder.write("expert.bin", b"1")
    artifacts.seal(
        found.folder,
        {
            "stage": stage, "kind": found.stage.kind.name, "kind_version": 1, "fingerprint": found.fingerprint,
            "config": found.stage.config.model_dump(mode="json"), "inputs": {}, "seed": 0, "table": [], "seconds": 1.0,
            "source": {"config": {"name": "digits"}, "fingerprint": plan.source_fingerprint},
            "summary": {"count": found.stage.config.model_dump().get("count")},
        },
    )  # fmt: skip
    return found.folder_name


def found(plan: Plan, stage: str = "experts") -> list[str]:
    return sorted(
        each.folder.name for each in reusable(plan, next(p for p in plan.stages if p.name == stage))
    )


def test_stages_of_other_counts_are_found(tmp_path: Path) -> None:
    """Given or by default, smaller or larger."""
    names = [
        finish(planned(tmp_path, count=2)),
        finish(planned(tmp_path)),
        finish(planned(tmp_path, count=7)),
    ]
    assert found(planned(tmp_path, count=5)) == sorted(names)
    assert found(planned(tmp_path)) == sorted(names[::2])


@pytest.mark.parametrize(
    "other", [{"lr": 0.02}, {"epochs": 6}, {"seed": 1}, {"disk": "bfloat16"}, {"resources": {"num_cpus": 2}}]
)
def test_others_are_not(tmp_path: Path, other: dict[str, Any]) -> None:
    """Neither with another setting nor with another seed."""
    finish(planned(tmp_path, count=2, **other))
    assert found(planned(tmp_path, count=5)) == []


def test_what_is_not_finished_or_was_changed_is_not(tmp_path: Path) -> None:
    """A folder without a manifest, one with a damaged manifest, one whose file was changed; and a stage itself."""
    plan = planned(tmp_path, count=5)
    half, bad, longer, changed = (finish(planned(tmp_path, count=n)) for n in (2, 3, 4, 6))
    (tmp_path / half / "manifest.json").unlink()
    (tmp_path / bad / "manifest.json").write_text("{}")
    (tmp_path / longer / "expert.bin").write_bytes(b"22")
    (tmp_path / changed / "expert.bin").write_bytes(b"2")
    finish(plan)
    (tmp_path / "experts-of-mine").mkdir()
    assert found(plan) == []


def test_a_deleted_stage_is_not_expected_to_take_time(tmp_path: Path) -> None:
    """Neither estimated nor warned of, if what reads it is finished."""
    plan = planned(tmp_path, count=2, batch=1000)
    for stage in ("experts", "distill"):
        finish(plan, stage)
    shutil.rmtree(tmp_path / plan.stages[0].folder_name)
    whole = planned(tmp_path, count=2, batch=1000)
    left = whole.narrowed(())

    assert (list(estimate(whole).stages), list(estimate(left).stages)) == (["experts"], [])
    assert ("experts" in before(whole), before(left)) == (True, {})
    assert estimate(left).seconds == 0


def test_kinds_without_units_have_none(tmp_path: Path) -> None:
    """A match has no number that it grows by."""
    finish(planned(tmp_path, count=2), "distill")
    assert found(planned(tmp_path, count=5), "distill") == []


def seconds(plan: Plan) -> tuple[float, str]:
    """The time and the work of the experts that are left."""
    expected = estimate(plan).stages["experts"]
    assert expected is not None
    assert expected.seconds is not None
    return expected.seconds, expected.work


def test_units_that_are_there_take_no_time(tmp_path: Path) -> None:
    """As much as the others would take alone; nothing but a start where all are there."""
    long = {"epochs": 500, "resources": {"at_once": 1}}
    all_ten, fewer = (
        seconds(planned(tmp_path, count=10, **long))[0],
        seconds(planned(tmp_path, count=6, **long))[0],
    )
    finish(planned(tmp_path, count=4, **long))

    assert seconds(planned(tmp_path, count=10, **long)) == (fewer, "10 experts × 500 epochs, 4 made already")
    assert fewer < 0.7 * all_ten
    assert seconds(planned(tmp_path, count=2, **long)) == (STAGE, "2 experts × 500 epochs, 2 made already")


def test_a_partial_stage_takes_what_is_left(tmp_path: Path) -> None:
    """By the record of the run of that name; without one, or with that of another stage, the whole time."""
    plan = planned(tmp_path, count=10, epochs=500)
    whole, _ = seconds(plan)
    plan.stages[0].folder.write("expert.bin", b"1")
    plan = planned(tmp_path, count=10, epochs=500)
    assert plan.stages[0].state == "partial"
    assert seconds(plan) == (whole, "10 experts × 500 epochs")

    record = Record(plan)
    record.note_progress("experts", {"done": 7.5, "total": 10})
    record.write()
    left, work = seconds(plan)

    assert left == pytest.approx(STAGE + (whole - STAGE) / 4)
    assert work == "10 experts × 500 epochs, 7.5/10 done"
    other = planned(tmp_path, count=10, epochs=400)
    other.stages[0].folder.write("expert.bin", b"1")
    assert seconds(planned(tmp_path, count=10, epochs=400))[1] == "10 experts × 400 epochs"
