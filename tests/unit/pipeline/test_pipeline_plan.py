"""A plan: the stages that are chosen of it, its text, and the listing of files that it is made with."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest

from rayddl.data.sources import known
from rayddl.data.sources.known import Known
from rayddl.errors import UserError
from rayddl.pipeline import plan as plans
from rayddl.pipeline import records
from rayddl.pipeline.records import Outcome, Record
from tests.raising import raises

DIAMOND: dict[str, Any] = {
    "name": "d",
    "source": {"name": "digits"},
    "stages": {
        "one": {"kind": "make"},
        "two": {"kind": "make"},
        "left": {"kind": "use", "make": "one"},
        "last": {"kind": "use", "make": "one", "other": "left"},
    },
}


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ((), ["one", "two", "left", "last"]),
        (("two",), ["two"]),
        (("last",), ["one", "left", "last"]),
        (("left", "two"), ["one", "two", "left"]),
    ],
)
def test_a_narrowed_plan_has_the_stages_and_all_that_they_need(
    lab: Any, names: tuple[str, ...], chosen: list[str]
) -> None:
    """In the order they run, and those alone are shown; without names all of them."""
    plan = lab.plan(DIAMOND).narrowed(names)
    assert sorted(stage.name for stage in plan.chosen) == sorted(chosen)
    assert [stage.name for stage in plan.chosen] == [s.name for s in plan.stages if s.name in chosen]
    assert [
        line.split()[0] for line in str(plan).splitlines()[2:] if line.split()[0] in DIAMOND["stages"]
    ] == [stage.name for stage in plan.chosen]
    assert plan.chosen[0].folder_name in str(plan)


def test_stages_that_are_not_of_the_plan_cannot_be_chosen(lab: Any) -> None:
    """The first of them is named."""
    with raises("stage-not-in-plan") as caught:
        lab.plan(DIAMOND).narrowed(("one", "on"))
    assert "'on'" in str(caught.value)


def test_a_plan_equals_one_made_again(lab: Any) -> None:
    """Whatever was found out about the source for it."""
    assert lab.plan(DIAMOND) == lab.plan(DIAMOND)
    assert lab.plan(DIAMOND) != lab.plan(DIAMOND, ["seed=1"])


@pytest.mark.parametrize("changes", [[], ["seed=1"]], ids=["this", "another"])
@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("state", ["running", "interrupted", "failed"])
def test_a_run_in_progress_keeps_its_listing(
    lab: Any, monkeypatch: pytest.MonkeyPatch, state: Outcome, finished: bool, changes: list[str]
) -> None:
    """Of files that changed since. One that failed or is finished lists them anew, and so does another definition."""
    kept, lab.source = Known(), "listed before"
    with kept.used():
        known.once("files", lambda: lab.source)
    begun = lab.plan(DIAMOND, changes)
    if finished:
        lab.run(DIAMOND, changes)
    record = Record(begun)
    record.note("one", state)
    record.write()
    monkeypatch.setattr(known, "read", lambda out, config: kept)
    plan = plans.make(lab.load(DIAMOND), str(lab.out), lambda _: known.once("files", lambda: "listed now"))

    same = state != "failed" and not finished and not changes
    assert (plan.known is kept) == same
    assert plan.source_fingerprint == ("listed before" if same else "listed now")


def test_a_record_of_a_file_whose_name_is_not_utf_8(lab: Any) -> None:
    """It is read again."""
    begun = lab.plan(DIAMOND)
    record = Record(replace(begun, definition=replace(begun.definition, file="caf\udce9.yaml")))
    record.write()
    assert records.read(begun.out, record.file)["file"] == "caf\\xe9.yaml"


def test_a_record_that_cannot_be_read_is_none(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are listed anew."""
    lab.out.mkdir(parents=True)
    (lab.out / "d.run.json").write_text("{")
    monkeypatch.setattr(known, "read", lambda out, config: Known())
    assert lab.plan(DIAMOND).source_fingerprint == lab.source


def test_a_place_that_cannot_be_read_has_no_plan(lab: Any) -> None:
    """Before anything is asked about the source."""
    with raises("out-unreadable"):
        lab.plan(DIAMOND, out="ftp://x/y")


@pytest.mark.parametrize("refused", [os.W_OK, os.X_OK])
def test_a_folder_must_allow_writing_and_entering(
    lab: Any, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    """Of a folder that is to be made, the one above it; nothing is written once all stages are done."""
    lab.out.parent.mkdir(parents=True, exist_ok=True)
    with monkeypatch.context() as patch:
        patch.setattr(plans.os, "access", lambda place, mode: not mode & refused)
        with pytest.raises(UserError) as caught:
            lab.plan(DIAMOND)
    assert caught.value.code == "out-not-writable"
    lab.run(DIAMOND)
    monkeypatch.setattr(plans.os, "access", lambda place, mode: False)
    assert {stage.state for stage in lab.plan(DIAMOND).stages} == {"done"}
