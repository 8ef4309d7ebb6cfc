"""``list`` and ``show``, which read the artifacts only."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from rayddl.errors import ArtifactError, StageError, UserError
from rayddl.pipeline.browse.listing import age, listing
from rayddl.pipeline.browse.show import inspect
from rayddl.pipeline.sets import find_set
from rayddl.pipeline.tables import as_text
from rayddl.stages.context import Result
from tests.raising import raises


def text_of(parts: list[Any]) -> str:
    """The drawn text."""
    return "\n".join(as_text(part) for part in parts)


def write_set(config: Any, context: Any) -> Result:
    """Work that leaves a set."""
    del config
    space = {"kind": "normalise", "shape": [1, 8, 8], "fingerprint": "f"}
    context.out.write_json(
        "set/set.json", {"classes": ["cat", "dog"], "space": space, "info": {"method": "MCT"}}
    )
    return Result({})


class TestList:
    def test_nothing(self, tmp_path: Path) -> None:
        """An empty folder, or none, says how to start."""
        told = text_of(listing(str(tmp_path / "none")).parts())

        assert told == f"nothing under {tmp_path}/none; start with: rayddl run quickstart"

    def test_states(self, lab: Any, three: dict[str, Any]) -> None:
        """Runs and folders are listed with what became of them."""
        lab.run(three)
        lab.works["second"] = lambda config, context: 1 / 0
        with pytest.raises(StageError):
            lab.run({**three, "name": "other"}, ["second.needs=1"])
        found = listing(str(lab.out))

        assert [(run.name, run.state, run.stages) for run in found.runs] == [
            ("other", "failed", "1 of 3"),
            ("three", "done", "3 of 3"),
        ]
        by_stage = sorted((f.folder.split("-")[0], f.kind, f.state) for f in found.folders)
        assert by_stage == [
            ("first", "make", "done"),
            ("page", "page", "done"),
            ("second", "use", "done"),
            ("second", "use", "failed"),
        ]
        assert all(f.written is not None for f in found.folders)

    @pytest.mark.parametrize(
        "text", ["[" * 100_000, "9" * 5000, '{"format": 1}', "", "null", '{"format": 1, "stages": 3}']
    )
    def test_a_bad_document_hides_no_other(self, lab: Any, three: dict[str, Any], text: str) -> None:
        """Only the folder and the run that it is of are marked; `show` refuses them with one sentence."""
        lab.run(three)
        lab.run({**three, "name": "other"}, ["second.needs=1"])
        bad = next(lab.out.glob("first-*"))
        (bad / "manifest.json").write_text(text)
        (lab.out / "other.run.json").write_text(text)
        found = listing(str(lab.out))

        assert [(run.name, run.state) for run in found.runs] == [
            ("other", "unreadable"),
            ("three", "partial"),
        ]
        states = {folder.folder.split("-")[0]: folder.state for folder in found.folders}
        assert states["first"] == "altered"
        assert states["second"] == states["page"] == "done"
        assert text_of(found.parts())
        for where in (str(bad), "other"):
            with pytest.raises(ArtifactError) as caught:
                inspect(where, str(lab.out))
            assert caught.value.code in ("document-not-json", "document-malformed")

    def test_altered_and_partial(self, lab: Any, three: dict[str, Any]) -> None:
        """Folders that cannot be trusted, or are not finished, are called that."""
        folders = lab.run(three).folders
        (Path(folders["first"]) / "thing.txt").unlink()
        (Path(folders["second"]) / "manifest.json").unlink()
        states = {f.folder.split("-")[0]: f.state for f in listing(str(lab.out)).folders}

        assert states == {"first": "altered", "second": "partial", "page": "done"}
        assert listing(str(lab.out)).runs[0].state == "partial"

    def test_other_things_are_left_out(self, lab: Any, three: dict[str, Any]) -> None:
        """What rayddl did not make is not listed; a broken record is called unreadable."""
        lab.run(three)
        (lab.out / "holiday-pictures").mkdir()
        (lab.out / "broken.run.json").write_text("{")
        found = listing(str(lab.out))

        assert len(found.folders) == 3
        assert [(run.name, run.state) for run in found.runs] == [("broken", "unreadable"), ("three", "done")]

    def test_kept_evaluations_are_counted(self, tmp_path: Path) -> None:
        """Results of `rayddl evaluate` are mentioned with their folder."""
        (tmp_path / "evaluations").mkdir()
        for name in ("one.json", "two.json"):
            (tmp_path / "evaluations" / name).write_text("{}")
        found = listing(str(tmp_path))

        assert text_of(found.parts()).strip() == f"2 kept by `rayddl evaluate` in {tmp_path}/evaluations"
        assert found.to_json()["evaluations"] == 2

    def test_json(self, lab: Any, three: dict[str, Any]) -> None:
        """The listing is JSON, too."""
        lab.run(three)
        value = json.loads(json.dumps(listing(str(lab.out)).to_json()))

        assert value["runs"][0]["state"] == "done"
        assert {folder["state"] for folder in value["folders"]} == {"done"}

    def test_unknown_scheme(self) -> None:
        """A place that no filesystem opens is refused."""
        with raises("out-unreadable"):
            listing("ftp://x")

    @pytest.mark.parametrize(
        ("seconds", "expected"),
        [(-5, "0 s"), (89, "89 s"), (90, "1 min"), (5399, "89 min"), (5400, "1 h"), (200_000, "2 days")],
    )
    def test_age(self, seconds: int, expected: str) -> None:
        """Ages are shown in one unit."""
        now = datetime(2030, 1, 1, tzinfo=timezone.utc)

        assert age(now - timedelta(seconds=seconds), now) == expected
        assert age(None, now) == ""


class TestShow:
    def test_stage(self, lab: Any, three: dict[str, Any]) -> None:
        """A stage is shown with its settings, inputs, files, summary and table."""
        folders = lab.run(three).folders
        told = text_of(inspect(folders["second"], str(lab.out), verify=True).parts())

        assert told.startswith(f"second: a stage of kind use\nfolder       {folders['second']}\n")
        assert f"reads        first ({folders['first'][-12:]})" in told
        assert "files        2 files, 11 B, all hashes match" in told
        assert "\n  make: first\n" in told
        assert "resources" not in told
        assert "second   61.2 ± 0.4" in told

    def test_run(self, lab: Any, three: dict[str, Any]) -> None:
        """A run is shown by its name or its record, with the definition and where its stages are."""
        lab.run(three, ["first.count=4"])
        by_name = inspect("three", str(lab.out))
        by_file = inspect(str(lab.out / "three.run.json"), "elsewhere")
        told = text_of(by_name.parts())

        assert by_name == by_file
        assert "overrides  first.count=4" in told
        assert "    first: {kind: make, count: 4}" in told
        assert "second   61.2 ± 0.4" in told

    def test_failed_run(self, lab: Any, three: dict[str, Any]) -> None:
        """A run that failed is shown with its error."""
        lab.works["second"] = lambda config, context: (_ for _ in ()).throw(
            StageError("lost a worker", code="for-a-test")
        )
        with pytest.raises(StageError):
            lab.run(three)
        told = text_of(inspect("three", str(lab.out)).parts())

        assert "second: 'stage ''second'': lost a worker'" in told
        assert "failed" in told

    def test_set(self, lab: Any, three: dict[str, Any]) -> None:
        """A set is shown with its classes and how it was made."""
        lab.works["second"] = write_set
        folder = lab.run(three).folders["second"]
        told = text_of(inspect(f"{folder}/set", str(lab.out)).parts())

        assert "classes  cat, dog" in told
        assert "method: MCT" in told

    def test_altered_set(self, tmp_path: Path) -> None:
        """With --verify a set's own hashes are checked, and both values named."""
        (tmp_path / "set.safetensors").write_bytes(b"x")
        space = {"kind": "normalise", "shape": [1, 8, 8], "fingerprint": "f"}
        meta = {"classes": [], "space": space, "info": {}, "files": {"set.safetensors": {"sha256": "00"}}}
        (tmp_path / "set.json").write_text(json.dumps(meta))

        inspect(str(tmp_path), "runs")
        with raises("set-file-altered"):
            inspect(str(tmp_path), "runs", verify=True)

    def test_nothing_there(self, tmp_path: Path) -> None:
        """A place without anything says what was looked for."""
        with pytest.raises(ArtifactError) as error:
            inspect(str(tmp_path), "runs")

        assert str(error.value) == (
            f"nothing to show at '{tmp_path}': looked for manifest.json, set.json and a run of that name "
            "in 'runs'; rayddl list shows what there is"
        )

    def test_failed_stage(self, lab: Any, three: dict[str, Any]) -> None:
        """A stage that stopped on an error points to it."""
        lab.works["first"] = lambda config, context: 1 / 0
        with pytest.raises(StageError):
            lab.run(three)
        folder = str(lab.plan(three).stages[0].folder)

        with raises("stage-failed"):
            inspect(folder, str(lab.out))

    def test_newer_record(self, lab: Any, three: dict[str, Any]) -> None:
        """A record from a newer format is refused with both versions."""
        lab.run(three)
        path = lab.out / "three.run.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "format": 7}))

        with raises("run-record-too-new"):
            inspect("three", str(lab.out))


class TestFindSet:
    def test_everywhere(self, lab: Any, three: dict[str, Any]) -> None:
        """A set is found by its folder, its stage's folder, the run's record and the run's name."""
        lab.works["second"] = write_set
        folder = lab.run(three).folders["second"]
        ways = [f"{folder}/set", folder, f"file://{folder}", str(lab.out / "three.run.json"), "three"]

        assert {find_set(way, str(lab.out)).local for way in ways} == {Path(folder) / "set"}

    def test_a_set_and_its_evaluation_are_one(self, lab: Any, three: dict[str, Any]) -> None:
        """Of a set and the copy of the stage that read it, the copy is meant."""
        lab.works |= {"first": write_set, "second": write_set}
        folders = lab.run(three).folders

        assert find_set("three", str(lab.out)).local == Path(folders["second"]) / "set"

    def test_several_are_asked_about(self, lab: Any, three: dict[str, Any]) -> None:
        """Of two sets of a run none is guessed: the refusal names them, and the option that chooses."""
        three["stages"]["other"] = {"kind": "make"}
        lab.works |= {"first": write_set, "second": write_set, "other": write_set}
        folders = lab.run(three).folders
        out = str(lab.out)

        with pytest.raises(UserError) as error:
            find_set("three", out)
        assert (
            str(error.value) == "three has 2 sets: second, other; name one with --stage (in Python stage=…)"
        )
        for name in ("other", "second"):
            assert find_set("three", out, name).local == Path(folders[name]) / "set"
        with raises("no-set-of-stage"):
            find_set("three", out, "first")

    def test_a_folder_of_sets(self, tmp_path: Path) -> None:
        """One set in a folder's folders is found, of several one has to be named."""
        (tmp_path / "other").mkdir()
        (tmp_path / "a" / "set").mkdir(parents=True)
        (tmp_path / "a" / "set" / "set.json").write_text("{}")
        assert find_set(str(tmp_path)).local == tmp_path / "a" / "set"
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "set.json").write_text("{}")

        with raises("several-sets"):
            find_set(str(tmp_path))
        assert find_set(str(tmp_path), stage="b").local == tmp_path / "b"

    def test_none(self, lab: Any, three: dict[str, Any]) -> None:
        """If there is none, the message says what was searched."""
        lab.run(three)
        with raises("run-without-set"):
            find_set("three", str(lab.out))
        with raises("no-such-set"):
            find_set("nowhere", str(lab.out))
        with raises("no-such-set") as caught:
            find_set("thre", str(lab.out))
        assert "; did you mean 'three'? rayddl list shows" in str(caught.value)
        with raises("place-unreadable"):
            find_set("ftp://x", str(lab.out))
