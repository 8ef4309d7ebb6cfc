"""Running a plan: skipped stages, resumed stages, and the messages of failed ones."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rayddl.data.sources.summary import SourceSummary
from rayddl.errors import DivergedError, StageError
from rayddl.pipeline.browse.listing import listing
from rayddl.pipeline.display.base import Hidden
from rayddl.pipeline.runner import execute
from rayddl.pipeline.session import RaySession, ray_session
from rayddl.pipeline.stopwatch import Stopwatch
from rayddl.stages.context import Result
from rayddl.stages.kinds import KINDS
from rayddl.stages.runtime import large as large_splits
from rayddl.stages.runtime.capacity import Capacity
from rayddl.stages.runtime.room import Room
from rayddl.stages.settings import Ask, StageConfig
from rayddl.storage import Folder
from tests.raising import raises


def raising(error: BaseException) -> Any:
    """Work that ends with ``error``."""

    def work(config: Any, context: Any) -> Result:
        del config, context
        raise error

    return work


def record_of(lab: Any, name: str = "three") -> Any:
    """The run's record."""
    return json.loads((lab.out / f"{name}.run.json").read_text())


class TestRuns:
    def test_order_and_inputs(self, lab: Any, three: dict[str, Any]) -> None:
        """Each stage runs once, after what it reads, and is handed just that."""
        result = lab.run(three, ["seed=5"])

        assert lab.calls == ["first", "second", "page"]
        context = lab.contexts["second"]
        assert (context.stage, context.seed, context.source.name) == ("second", 5, "digits")
        assert context.inputs["first"].kind == "make"
        assert context.inputs["first"].config["count"] == 3
        assert context.inputs["first"].summary == {"stage": "first", "read": []}
        assert context.inputs["first"].folder.read("thing.txt") == b"first"
        assert list(lab.contexts["page"].inputs) == ["first", "second"]
        assert list(context.definition["stages"]) == ["first", "second", "page"]
        assert result.summaries["page"]["read"] == ["first", "second"]
        assert list(result.tables) == ["second"]

    def test_second_run(self, lab: Any, three: dict[str, Any]) -> None:
        """A second run of the same definition runs nothing and gives the same values."""
        first = lab.run(three)
        again = lab.run(three)

        assert lab.calls == ["first", "second", "page"]
        assert dict(again.endings) == {"first": "cached", "second": "cached", "page": "cached"}
        assert again.summaries == first.summaries
        assert again.tables == first.tables
        assert again.folders == first.folders

    def test_changed_key(self, lab: Any, three: dict[str, Any]) -> None:
        """A changed key runs its stage and the stages that depend on it, and no others."""
        lab.run(three)
        lab.run(three, ["second.needs=1"])

        assert lab.calls == ["first", "second", "page", "second", "page"]

    def test_resume(self, lab: Any, three: dict[str, Any]) -> None:
        """A failed stage continues from its own files; earlier stages are not run again."""

        def half(config: Any, context: Any) -> Result:
            del config
            if not context.out.has("half"):
                context.out.write("half", b"1")
                raise StageError("lost a worker", code="for-a-test")
            return Result({"went_on": True})

        lab.works["second"] = half
        with raises("for-a-test"):
            lab.run(three)
        assert [stage.state for stage in lab.plan(three).stages] == ["done", "partial", "new"]
        result = lab.run(three)

        assert lab.calls == ["first", "second", "second", "page"]
        assert result.summaries["second"] == {"went_on": True}

    def test_deleted_folder(self, lab: Any, three: dict[str, Any]) -> None:
        """A stage whose folder is gone runs again only if it is asked for, or read by one that runs."""
        result = lab.run(three)
        shutil.rmtree(result.folders["first"])
        again = lab.run(three)
        assert lab.calls == ["first", "second", "page"]
        assert dict(again.endings) == {"second": "cached", "page": "cached"}
        assert again.plan.unneeded == ("first",)
        assert "first: deleted" in str(again.plan)

        shutil.rmtree(result.folders["second"])
        lab.run({**three, "stages": {**three["stages"], "page": {"kind": "page", "of": ["second"]}}})
        assert lab.calls[3:] == ["first", "second", "page"]

    def test_altered_folder(self, lab: Any, three: dict[str, Any]) -> None:
        """An altered artifact is refused before anything runs."""
        result = lab.run(three)
        (Path(result.folders["first"]) / "thing.txt").write_text("longer than before")

        with raises("artifact-file-of-another-length"):
            lab.run(three, ["second.needs=1"])
        assert lab.calls == ["first", "second", "page"]

    def test_uri(self, lab: Any, three: dict[str, Any]) -> None:
        """--out may be a URI, and finds what was made under the path."""
        lab.run(three, out=f"file://{lab.out}")
        result = lab.run(three)

        assert lab.calls == ["first", "second", "page"]
        assert set(result.endings.values()) == {"cached"}

    def test_finished_by_another_command(self, lab: Any, three: dict[str, Any]) -> None:
        """A stage that another command finished since the plan was made is taken, not run again."""
        plan = lab.plan(three)
        lab.run(three)
        result = execute(plan)

        assert lab.calls == ["first", "second", "page"]
        assert set(result.endings.values()) == {"cached"}

    def test_credentials(self, lab: Any, three: dict[str, Any]) -> None:
        """Credentials in the definition reach the stage as settings, and no file and no provenance."""
        three["source"] = {"name": "parquet", "root": "s3://key:hush@bucket/x"}
        three["stages"]["first"]["label"] = "gs://me:hush@bucket"
        lab.run(three, ["source.root=s3://other:hush@bucket/y?secret_key=hush"])

        context = lab.contexts["second"]
        assert context.source.root == "s3://other:hush@bucket/y?secret_key=hush"
        assert context.definition["source"]["root"] == "s3://bucket/y"
        for path in lab.out.rglob("*.json"):
            assert "hush" not in path.read_text(), path


class TestRecord:
    def test_finished(self, lab: Any, three: dict[str, Any]) -> None:
        """The record has the definition, the overrides, the folders and the results."""
        result = lab.run(three, ["first.count=4"])
        record = record_of(lab)

        assert result.record == str(lab.out / "three.run.json")
        assert record["definition"]["stages"]["first"] == {"kind": "make", "count": 4}
        assert record["overrides"] == ["first.count=4"]
        assert record["order"] == ["first", "second", "page"]
        assert record["stages"]["second"]["state"] == "done"
        assert record["stages"]["second"]["table"] == [{"what": "second", "accuracy": "61.2 ± 0.4"}]
        assert lab.out / record["stages"]["first"]["folder"] == Path(result.folders["first"])

    def test_replaced(self, lab: Any, three: dict[str, Any]) -> None:
        """A run with other settings under the same name says whose record it replaces; the same run says nothing."""
        heard: list[str] = []

        class Told(Hidden):
            def note(self, text: str) -> None:
                heard.append(text)

        first = lab.run(three, display=Told())
        lab.run(three, display=Told())
        assert heard == []
        lab.run(three, ["second.needs=1", "name=other"], display=Told())
        assert heard == []
        lab.run(three, ["second.needs=1"], display=Told())
        (text,) = heard
        stay = [Path(first.folders[name]).name for name in ("second", "page")]
        assert "three.run.json was of a run with other settings" in text
        assert f"stay in {', '.join(stay)}; give --set name=NAME" in text

    def test_failed(self, lab: Any, three: dict[str, Any]) -> None:
        """The record of a run that failed says where and why."""
        lab.works["second"] = raising(StageError("lost a worker", code="for-a-test"))
        with pytest.raises(StageError):
            lab.run(three)

        stages = record_of(lab)["stages"]
        assert {name: stage["state"] for name, stage in stages.items()} == {
            "first": "done",
            "second": "failed",
            "page": "waiting",
        }
        assert stages["second"]["error"] == "stage 'second': lost a worker"


class TestErrors:
    def test_own_errors_keep_their_kind(self, lab: Any, three: dict[str, Any]) -> None:
        """An error that a stage raises on purpose keeps its class, and names the stage."""
        lab.works["first"] = raising(DivergedError("loss is nan at iteration 12", code="for-a-test"))
        with pytest.raises(DivergedError) as error:
            lab.run(three)

        assert str(error.value) == "stage 'first': loss is nan at iteration 12"

    def test_wrapped_by_ray(self, lab: Any, three: dict[str, Any]) -> None:
        """An error of a Ray task is shown without the remote traceback."""

        class Wrapped(StageError):
            cause = DivergedError("loss is nan", code="for-a-test")

        lab.works["first"] = raising(Wrapped("remote traceback ...", code="for-a-test"))
        with pytest.raises(DivergedError) as error:
            lab.run(three)

        assert str(error.value) == "stage 'first': loss is nan"

    def test_unforeseen(self, lab: Any, three: dict[str, Any]) -> None:
        """The message of an unexpected error has the stage, the text, and the path of the traceback."""
        lab.works["second"] = raising(ZeroDivisionError("s3://key:hush@bucket/x by zero"))
        with pytest.raises(StageError) as error:
            lab.run(three)

        folder = lab.plan(three).stages[1].folder
        assert error.value.exit_code == 1
        assert str(error.value) == (
            "stage 'second' stopped on an unexpected error: "
            "ZeroDivisionError: s3://bucket/x by zero\n"
            f"  its traceback is in {folder}/error.txt; "
            "what was done so far is kept, and the same command continues from there"
        )
        text = folder.read("error.txt").decode()
        assert text.startswith("Traceback (most recent call last):")
        assert "hush" not in text

    def test_error_is_gone_after_success(self, lab: Any, three: dict[str, Any]) -> None:
        """The traceback of an earlier attempt is deleted when the stage begins again, for lists."""
        lab.works["second"] = raising(ZeroDivisionError("by zero"))
        with pytest.raises(StageError):
            lab.run(three)
        seen = []

        def again(config: Any, context: Any) -> Result:
            del config
            context.progress.update(1, 2)
            os.utime(Path(str(context.out)) / ".lock", (0, 0))
            seen.extend((folder.state, folder.written) for folder in listing(str(lab.out)).folders)
            return Result({})

        lab.works["second"] = again
        folder = lab.plan(three).stages[1].folder
        assert folder.has("error.txt")
        result = lab.run(three)

        (running,) = (written for state, written in seen if state == "running")
        assert running.year > 2000
        assert not (Path(result.folders["second"]) / "error.txt").exists()

    @pytest.mark.parametrize(
        "error",
        [
            OSError(errno.ENOSPC, "No space left on device"),
            OSError(errno.EDQUOT, "Disk quota exceeded"),
            RuntimeError("I/O error: No space left on device (os error 28)"),
        ],
    )
    def test_disk_full(self, lab: Any, three: dict[str, Any], error: Exception) -> None:
        """A full disk is called that, wherever the error came from."""
        lab.works["second"] = raising(error)
        with pytest.raises(StageError) as told:
            lab.run(three)

        folder = lab.plan(three).stages[1].folder
        assert str(told.value) == (
            f"stage 'second': no space left while writing {folder} ({type(error).__name__}: {error}); free some: "
            "what was done so far is kept, and the same command continues from there"
        )
        assert lab.plan(three).stages[0].state == "done"

    def test_not_allowed(self, lab: Any, three: dict[str, Any]) -> None:
        """A folder that cannot be written is called that."""
        lab.works["first"] = raising(PermissionError(errno.EACCES, "Permission denied", "/x"))
        with raises("write-not-permitted"):
            lab.run(three)

    def test_out_is_a_file(self, lab: Any, three: dict[str, Any]) -> None:
        """An --out that cannot be written is refused before anything starts."""
        lab.out.parent.mkdir(parents=True, exist_ok=True)
        (lab.out.parent / "taken").write_text("x")
        with raises("out-not-writable"):
            lab.run(three, out=str(lab.out.parent / "taken" / "runs"))

        assert lab.calls == []

    def test_out_of_an_unknown_scheme(self, lab: Any, three: dict[str, Any]) -> None:
        """An --out that no filesystem opens is refused before anything starts."""
        with raises("out-unreadable"):
            lab.plan(three, out="ftp://x/y")

    def test_summary_that_is_not_json(self, lab: Any, three: dict[str, Any]) -> None:
        """A stage that hands back NaN has not finished."""
        lab.works["first"] = lambda config, context: Result({"loss": float("nan")})
        with raises("unexpected-error"):
            lab.run(three)

        assert lab.plan(three).stages[0].state == "new"


class TestInterrupt:
    def test_ctrl_c(self, lab: Any, three: dict[str, Any]) -> None:
        """Ctrl-C passes through, and the record says that the stage was interrupted."""
        lab.works["second"] = raising(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            lab.run(three)

        states = {name: stage["state"] for name, stage in record_of(lab)["stages"].items()}
        assert states == {"first": "done", "second": "interrupted", "page": "waiting"}
        del lab.works["second"]
        lab.run(three)
        assert lab.calls == ["first", "second", "second", "page"]


class FakeCluster:
    """A fake of the module that starts Ray."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.refuses = ""
        self.nodes = ({"CPU": 2.0},)

    def configure(
        self, *, address: str | None, num_cpus: int | None, grows: Sequence[str], note: Callable[[str], None]
    ) -> None:
        del note
        self.calls.append(f"configure {address} {num_cpus} {grows}")

    def require(self, asks: Mapping[str, Sequence[Ask]]) -> None:
        self.calls.append(f"require {' '.join(asks)}")
        if self.refuses in asks:
            raise StageError(f"stage {self.refuses!r}: too large", code="for-a-test")

    def start(self) -> None:
        self.calls.append("start")

    def reach(self, places: Mapping[str, str]) -> None:
        self.calls.append(f"reach {' '.join(places)}")

    def observe(self, run: str, stage: str, progress: Mapping[str, Any]) -> None:
        self.calls.append(f"{run} {stage} {progress['done']}")

    def room(self) -> Room:
        return Room(lambda: Capacity(self.nodes))

    def stop(self) -> None:
        self.calls.append("stop")


class TestRay:
    def run(self, lab: Any, three: dict[str, Any], **options: Any) -> list[str]:
        """The calls to the cluster in a run in which every kind needs Ray."""
        cluster = FakeCluster()
        plan = lab.plan(three)
        for stage in plan.stages:
            object.__setattr__(stage.stage.kind, "needs_ray", True)
        ray = RaySession(Hidden(), load=lambda: cluster, **options)
        try:
            execute(plan, None, ray)
        finally:
            ray.stop()
        return cluster.calls

    def test_started_once(self, lab: Any, three: dict[str, Any]) -> None:
        """Ray is started when the first stage needs it, once, and stopped at the end."""
        told = ["configure None None ()", "start", "require first second page", "stop"]
        assert self.run(lab, three) == told

    def test_configured(self, lab: Any, three: dict[str, Any]) -> None:
        """An address and a number of CPUs are passed on before the start."""
        calls = self.run(lab, three, address="auto", num_cpus=3, grows=("2xCPU:4",))
        assert calls[:2] == ["configure auto 3 ('2xCPU:4',)", "start"]

    def test_nodes_see_the_folders(self, lab: Any, three: dict[str, Any]) -> None:
        """On a cluster every node has to see --out before anything runs, and whenever a stage begins: nodes may
        have come.
        """
        calls = self.run(lab, three, address="auto")
        assert calls[2:] == ["reach --out", "require first second page", *["reach --out"] * 3, "stop"]

    @pytest.mark.parametrize("large", [False, True])
    def test_nodes_see_the_source(
        self, lab: Any, three: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool
    ) -> None:
        """Files that workers read themselves have to be seen by every node, until the last stage that reads them: of
        splits that the driver does not hold, that is the last one on Ray.
        """
        plan = lab.plan(three)
        second = plan.stages[1].stage.config
        monkeypatch.setattr(StageConfig, "reads_source", property(lambda config: config is second))
        monkeypatch.setattr(
            large_splits,
            "source_summary",
            lambda _: SourceSummary((3, 224, 224), 2, 2000 if large else 200, 10),
        )
        source = plan.definition.source.model_copy(update={"name": "imagefolder", "root": str(tmp_path)})
        object.__setattr__(plan.definition, "source", source)
        for stage in plan.stages:
            object.__setattr__(stage.stage.kind, "needs_ray", True)
        cluster = FakeCluster()
        execute(plan, None, RaySession(Hidden(), address="auto", load=lambda: cluster))

        reached = [call for call in cluster.calls if call.startswith("reach")]
        assert reached == ["reach --out source.root"] * 3 + [
            "reach --out source.root" if large else "reach --out"
        ]

    def test_nodes_see_the_buffers_that_workers_import(
        self, lab: Any, three: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Files of other codes are read by workers, too; the last stage here reads none."""
        plan = lab.plan(three)
        second = plan.stages[1].stage.config
        told = property(lambda config: {"replay": "buffers"} if config is second else {})
        monkeypatch.setattr(StageConfig, "read_by_workers", told)
        for stage in plan.stages:
            object.__setattr__(stage.stage.kind, "needs_ray", True)
        cluster = FakeCluster()
        execute(plan, None, RaySession(Hidden(), address="auto", load=lambda: cluster))
        reached = [call for call in cluster.calls if call.startswith("reach")]
        assert reached == ["reach --out second.replay"] * 3 + ["reach --out"]
        experts = KINDS["experts"].config
        assert experts.model_validate({"kind": "experts", "replay": "b"}).read_by_workers == {"replay": "b"}
        assert not experts.model_validate({"kind": "experts"}).read_by_workers

    def test_which_kinds_read_the_source(self) -> None:
        """RDED's stream, selections by a teacher's features, random images of students of soft labels, and searches
        over these.
        """
        given = {
            "rded": {"teacher": "t", "ipc": 1},
            "coreset": {"method": "random", "ipc": 1},
            "evaluate": {"set": "s"},
        }
        configs = {
            kind: KINDS[kind].config.model_validate({"kind": kind, **more}) for kind, more in given.items()
        }
        assert [config.reads_source for config in configs.values()] == [True, False, False]
        more = {"coreset": {"method": "balanced", "features": "t"}, "evaluate": {"observer": "t"}}
        for kind, changes in more.items():
            values = {"kind": kind, **given[kind], **changes}
            assert KINDS[kind].config.model_validate(values).reads_source
        quiet = {"kind": "evaluate", "set": "s", "observer": "t", "random": False}
        assert not KINDS["evaluate"].config.model_validate(quiet).reads_source

    def test_what_does_not_fit_is_refused_before_anything_runs(self, lab: Any, three: dict[str, Any]) -> None:
        """A cluster that cannot hold the last stage says so before the first one starts."""
        cluster = FakeCluster()
        cluster.refuses = "page"
        plan = lab.plan(three)
        for stage in plan.stages:
            object.__setattr__(stage.stage.kind, "needs_ray", True)
        with raises("for-a-test"):
            execute(plan, None, RaySession(Hidden(), load=lambda: cluster))
        assert lab.calls == []

    def test_never_for_cached_stages(self, lab: Any, three: dict[str, Any]) -> None:
        """A run of finished stages does not even import the module that starts Ray."""
        lab.run(three)

        assert self.run(lab, three) == []

    def test_stopped_after_failure(self, lab: Any, three: dict[str, Any]) -> None:
        """Ray is stopped however the run ends."""
        lab.works["first"] = raising(KeyboardInterrupt())
        cluster = FakeCluster()

        def interrupted() -> None:
            with ray_session(Hidden(), load=lambda: cluster) as ray:
                ray.need()
                lab.run(three, ray=ray)

        with pytest.raises(KeyboardInterrupt):
            interrupted()

        assert cluster.calls == ["configure None None ()", "start", "stop"]


class TestPlaces:
    def finish(self, *files: str) -> Any:
        """Work that leaves files."""

        def work(config: Any, context: Any) -> Result:
            del config
            for name in files:
                context.out.write(name, b"{}")
            return Result({})

        return work

    def test_set_and_report(self, lab: Any, three: dict[str, Any]) -> None:
        """The last set in a chain and the report are named at the end."""
        lab.works = {
            "first": self.finish("set/set.json"),
            "second": self.finish("set/set.json"),
            "page": self.finish("report.html"),
        }
        result = lab.run(three)

        assert result.closing().places == {
            "set": f"{result.folders['second']}/set",
            "report": f"{result.folders['page']}/report.html",
            "record": str(lab.out / "three.run.json"),
        }

    def test_two_sets(self, lab: Any, three: dict[str, Any]) -> None:
        """Sets that have nothing to do with each other are both named, by stage."""
        three["stages"]["beside"] = {"kind": "make"}
        lab.works = {name: self.finish("set/set.json") for name in ("second", "beside")}
        result = lab.run(three)

        assert list(result.closing().places) == ["set (second)", "set (beside)", "record"]
        assert result.report is None


def test_sets_before_a_deleted_one_are_not_listed(lab: Any, three: dict[str, Any]) -> None:
    """The last set alone is the result, with what lies between deleted and without."""
    three["stages"]["third"] = {"kind": "use", "make": "first", "other": "second"}
    three["stages"]["last"] = {"kind": "use", "make": "first", "other": "third"}
    del three["stages"]["page"]
    work = TestPlaces().finish("set/set.json")
    lab.works = dict.fromkeys(("first", "second", "third", "last"), work)
    assert list(lab.run(three).sets) == ["last"]
    for folder in lab.out.glob("third-*"):
        shutil.rmtree(folder)

    again = lab.run(three)
    assert again.plan.unneeded == ("third",)
    assert list(again.sets) == ["last"]


def test_a_stage_is_told_what_was_spent_on_what_it_reads(lab: Any, three: dict[str, Any]) -> None:
    """Seconds of every stage behind an input, each once, also where it was there already."""
    first = lab.run(three)
    told = lab.contexts["page"].inputs["second"].spent
    assert told == {name: first.artifacts[name].seconds for name in ("first", "second")}
    assert set(lab.contexts["second"].inputs["first"].spent) == {"first"}

    lab.run(
        {**three, "stages": {**three["stages"], "more": {"kind": "use", "make": "first", "other": "second"}}}
    )
    assert set(lab.contexts["more"].inputs["second"].spent) == {"first", "second"}


@pytest.mark.parametrize("error", [StageError("lost a worker", code="for-a-test"), KeyboardInterrupt()])
def test_the_time_of_a_stage_is_that_of_all_attempts(
    lab: Any, three: dict[str, Any], error: BaseException
) -> None:
    """Of one that failed or was interrupted, and of one that was killed, as of its last progress."""

    def ended(config: Any, context: Any) -> Result:
        del config
        context.progress.update(1, 2)
        assert context.out.read_json("spent.json")["seconds"] >= 0
        raise error

    lab.works["second"] = ended
    with pytest.raises(type(error)):
        lab.run(three)
    folder = lab.plan(three).stages[1].folder
    assert folder.read_json("spent.json")["seconds"] >= 0
    folder.write_json("spent.json", {"seconds": 5000})
    lab.works["second"] = lambda config, context: Result({"seconds": 7.0}, earlier=20)
    made = lab.run(three).artifacts["second"]

    assert 5020 <= made.seconds < 5100
    assert made.summary["seconds"] == 5007
    assert not folder.has("spent.json")
    assert "spent.json" not in made.manifest["files"]


def test_a_stopwatch_goes_on_where_it_was_kept(tmp_path: Path) -> None:
    """It begins at 0 where nothing was kept, or nothing that can be read."""
    now, folder = 100.0, Folder(str(tmp_path))
    first = Stopwatch(folder, lambda: now)
    now = 130.0
    first.keep()
    second = Stopwatch(folder, lambda: now)
    now = 131.0
    assert (first.seconds, second.before, second.seconds) == (31.0, 30.0, 31.0)
    for damaged in (b"", b"[]", b'{"seconds": null}', b'{"seconds": -5}', b"{}"):
        folder.write("spent.json", damaged)
        assert Stopwatch(folder).before == 0.0


def test_what_was_spent_is_unknown_if_a_deleted_stage_is_not_made_again(
    lab: Any, three: dict[str, Any]
) -> None:
    """A stage that reads only finished ones runs, whatever became of those that these had read."""
    three["stages"]["page"]["of"] = ["second"]
    lab.run(three)
    for name in ("first", "page"):
        (folder,) = lab.out.glob(f"{name}-*")
        shutil.rmtree(folder)

    lab.run(three)
    assert lab.calls[3:] == ["page"]
    assert lab.contexts["page"].inputs["second"].spent == {}
