"""Stages that run at the same time: which ones, in which order, and what a failed or interrupted one does to others."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from rich.console import Console

from rayddl.errors import DivergedError, StageError
from rayddl.pipeline.display.base import Display, Hidden
from rayddl.pipeline.display.jsonl import JsonLines
from rayddl.pipeline.display.live import Terminal
from rayddl.pipeline.display.plain import Plain
from rayddl.pipeline.results import RunResult
from rayddl.pipeline.runner import execute
from rayddl.pipeline.session import RaySession
from rayddl.stages.context import Result
from rayddl.stages.runtime import room
from rayddl.stages.runtime.capacity import Capacity
from rayddl.stages.runtime.room import Room
from tests.raising import raises

PATIENCE = 30.0
"""Seconds in which stages that should run at the same time have to meet."""
FOUR = {
    "name": "four",
    "source": {"name": "digits"},
    "stages": {
        "one": {"kind": "make"},
        "two": {"kind": "make"},
        "after": {"kind": "use", "make": "one"},
        "page": {"kind": "page"},
    },
}


class FakeCluster:
    """A fake of the module that starts Ray, with nodes of these resources."""

    def __init__(self, *nodes: Mapping[str, float]) -> None:
        self.nodes = nodes

    def configure(self, **options: Any) -> None:
        pass

    def start(self) -> None:
        pass

    def require(self, asks: Any) -> None:
        pass

    def observe(self, run: str, stage: str, progress: Any) -> None:
        pass

    def room(self) -> Room:
        return Room(lambda: Capacity(self.nodes))

    def stop(self) -> None:
        pass


Run = Callable[..., RunResult]


@pytest.fixture
def on(lab: Any) -> Run:
    """Runs a definition whose stages all need Ray, on a cluster of the given nodes."""

    def run(
        definition: Any, *nodes: Mapping[str, float], display: Display | None = None, stages: Any = ()
    ) -> RunResult:
        plan = lab.plan(definition).narrowed(stages)
        for planned in plan.stages:
            object.__setattr__(planned.stage.kind, "needs_ray", True)
        ray = RaySession(Hidden(), load=lambda: FakeCluster(*nodes))  # type: ignore[arg-type, return-value]
        return execute(plan, display, ray)

    return run


def record_of(lab: Any) -> Any:
    """The states in the run's record."""
    record = json.loads((lab.out / "four.run.json").read_text())
    return {name: entry["state"] for name, entry in record["stages"].items()}


def meeting(*names: str) -> dict[str, Any]:
    """Work of stages that only ends if all of them run at the same time."""
    together = threading.Barrier(len(names))

    def work(config: Any, context: Any) -> Result:
        del config
        together.wait(PATIENCE)
        context.out.write("thing.txt", context.stage.encode())
        return Result({})

    return dict.fromkeys(names, work)


class Counting:
    """Work that records how many stages run at the same time."""

    def __init__(self) -> None:
        self.most = self._now = 0
        self._lock = threading.Lock()

    def __call__(self, config: Any, context: Any) -> Result:
        del config, context
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(0.2)
        with self._lock:
            self._now -= 1
        return Result({})


class TestOrder:
    def test_at_the_same_time(self, lab: Any, on: Run) -> None:
        """Stages whose inputs are there run at the same time; a result lists stages in the order of the plan."""
        lab.works = meeting("one", "two")
        result = on(FOUR, {"CPU": 2.0})

        assert list(result.artifacts) == ["one", "two", "after", "page"]
        assert set(result.endings.values()) == {"done"}
        assert set(lab.calls[:2]) == {"one", "two"}
        assert lab.calls[-1] == "page"

    def test_a_stage_starts_before_the_ones_that_it_does_not_need_have_ended(self, lab: Any, on: Run) -> None:
        """`after` reads `one`, and runs while `two`, which started earlier, still does."""
        lab.works = meeting("two", "after")
        on(FOUR, {"CPU": 2.0})

    def test_one_after_the_other_where_one_fits(self, lab: Any, on: Run) -> None:
        """On one CPU, stages run one at a time, in the order of the plan."""
        counting = Counting()
        lab.works = dict.fromkeys(FOUR["stages"], counting)
        on(FOUR, {"CPU": 1.0})

        assert counting.most == 1
        assert lab.calls == ["one", "two", "after", "page"]

    def test_a_stage_that_does_not_fit_lets_smaller_ones_pass(self, lab: Any, on: Run) -> None:
        """`two` needs the whole node: `third` runs next to `one`, and `two` when both have ended."""
        stages = {
            "one": {"kind": "make"},
            "two": {"kind": "make", "resources": {"num_cpus": 2}},
            "third": {"kind": "make"},
        }
        lab.works = meeting("one", "third")
        on({**FOUR, "stages": stages}, {"CPU": 2.0})
        assert lab.calls[-1] == "two"

    def test_a_stage_that_all_others_wait_for_runs_in_the_main_thread(self, lab: Any, on: Run) -> None:
        """There a signal interrupts calls into Ray at once; others run in threads of their own."""
        threads: dict[str, bool] = {}

        def work(config: Any, context: Any) -> Result:
            threads[context.stage] = threading.current_thread() is threading.main_thread()
            context.out.write("thing.txt", context.stage.encode())
            return Result({})

        chain = {"first": {"kind": "make"}, "next": {"kind": "use", "make": "first"}}
        lab.works = dict.fromkeys((*chain, "one", "two", "after"), work)
        on({**FOUR, "stages": chain}, {"CPU": 2.0})
        on({**FOUR, "stages": {name: FOUR["stages"][name] for name in ("one", "two", "after")}}, {"CPU": 2.0})

        del threads["after"]
        assert threads == {"first": True, "next": True, "one": False, "two": False}

    def test_without_ray_one_at_a_time(self, lab: Any) -> None:
        """Stages that compute in this process do not run at the same time."""
        counting = Counting()
        lab.works = dict.fromkeys(FOUR["stages"], counting)
        execute(lab.plan(FOUR))
        assert counting.most == 1
        assert lab.calls == ["one", "two", "after", "page"]

    def test_kinds_that_share_something_run_in_turn(
        self, lab: Any, on: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Stages of a kind that runs one at a time do so however large the cluster is; others run next to them."""
        counting = Counting()
        for planned in lab.plan(FOUR).stages[:1]:
            monkeypatch.setattr(type(planned.stage.config), "one_at_a_time", "a library")
        lab.works = dict.fromkeys(("one", "two"), counting)
        on(FOUR, {"CPU": 8.0})
        assert counting.most == 1

    def test_stages_have_their_own_leases(self, lab: Any, on: Run) -> None:
        """Two stages of many units share the CPUs, and the one that is left takes them all."""
        lab.works = meeting("one", "two")
        found: dict[str, int] = {}
        meet = lab.works["one"]

        def work(config: Any, context: Any) -> Result:
            limit = room.limit()
            found[context.stage] = limit()
            result = meet(config, context)
            if context.stage == "two":
                while limit() < 3:
                    time.sleep(0.01)
            return result

        lab.works = {"one": work, "two": work}
        on({**FOUR, "stages": {"one": {"kind": "make"}, "two": {"kind": "make"}}}, {"CPU": 4.0})
        assert found == {"one": 2, "two": 2}


class TestFailures:
    def test_others_go_on(self, lab: Any, on: Run) -> None:
        """A failed stage does not stop one that does not need it; those that need it are named at the end."""
        failed = threading.Event()

        def one(config: Any, context: Any) -> Result:
            failed.set()
            raise DivergedError("loss is nan", code="for-a-test")

        def two(config: Any, context: Any) -> Result:
            assert failed.wait(PATIENCE)
            time.sleep(0.1)
            return Result({})

        lab.works = {"one": one, "two": two}
        stream = io.StringIO()
        with pytest.raises(DivergedError) as error:
            on(FOUR, {"CPU": 2.0}, display=Plain(stream))

        assert str(error.value) == "stage 'one': loss is nan"
        assert error.value.exit_code == 1
        assert record_of(lab) == {"one": "failed", "two": "done", "after": "waiting", "page": "waiting"}
        assert stream.getvalue().endswith("\nafter: not run, needs one\npage: not run, needs one, after\n")
        # The reason is shown at once, since the others may run for long.
        lines = stream.getvalue().splitlines()
        ends = [k for k, line in enumerate(lines) if line.startswith("two: done")]
        assert lines.index("stage 'one': loss is nan") < ends[0]

        del lab.works["one"]
        on(FOUR, {"CPU": 2.0})
        assert sorted(lab.calls) == ["after", "one", "one", "page", "two"]

    def test_several(self, lab: Any, on: Run) -> None:
        """All errors are in the message, in the order of the plan; class and code are the first one's."""
        together = threading.Barrier(2)

        def work(config: Any, context: Any) -> Result:
            together.wait(PATIENCE)
            time.sleep(0.2 * (context.stage == "one"))
            raise StageError(f"{context.stage} broke", code="for-a-test")

        lab.works = dict.fromkeys(("one", "two"), work)
        with raises("for-a-test") as error:
            on(FOUR, {"CPU": 2.0})
        assert str(error.value) == "2 stages failed:\nstage 'one': one broke\nstage 'two': two broke"

    def test_json(self, lab: Any, on: Run) -> None:
        """Programs get an event for each stage that did not run."""
        lab.works["one"] = lambda config, context: 1 / 0
        stream = io.StringIO()
        with pytest.raises(StageError):
            on(FOUR, {"CPU": 2.0}, display=JsonLines(stream))
        events = [json.loads(line) for line in stream.getvalue().splitlines()]
        missing = [event for event in events if event["event"] == "stage_missing"]
        assert [(event["stage"], event["needs"]) for event in missing] == [
            ("after", ["one"]),
            ("page", ["one", "after"]),
        ]

    def test_a_closed_output_ends_all(self, lab: Any, on: Run) -> None:
        """An error that is not a stage's own, such as that of a display, interrupts the other stages."""
        lab.works = meeting("one", "two")
        ended = threading.Event()
        meet = lab.works["two"]

        def two(config: Any, context: Any) -> Result:
            meet(config, context)
            try:
                while True:
                    time.sleep(0.01)
            finally:
                ended.set()

        class Closed(Display):
            def end(self, stage: str, *more: Any) -> None:
                if stage == "one":
                    raise BrokenPipeError

        lab.works["two"] = two
        with pytest.raises(BrokenPipeError):
            on(FOUR, {"CPU": 2.0}, display=Closed())
        assert ended.is_set()


class TestInterrupt:
    def test_all_running_stages(self, lab: Any, on: Run) -> None:
        """An interrupt of one stage is one of the run: every running stage ends, and is recorded as interrupted."""
        lab.works = meeting("one", "two")
        meet, inside, cleaned = lab.works["two"], threading.Event(), threading.Event()

        def one(config: Any, context: Any) -> Result:
            meet(config, context)
            inside.wait(PATIENCE)
            raise KeyboardInterrupt

        def two(config: Any, context: Any) -> Result:
            meet(config, context)
            try:
                inside.set()
                while True:
                    time.sleep(0.01)
            finally:
                cleaned.set()

        lab.works = {"one": one, "two": two}
        with pytest.raises(KeyboardInterrupt):
            on(FOUR, {"CPU": 2.0})
        assert cleaned.is_set()
        assert record_of(lab) == {
            "one": "interrupted",
            "two": "interrupted",
            "after": "waiting",
            "page": "waiting",
        }
        lab.works = {}
        on(FOUR, {"CPU": 2.0})
        assert set(record_of(lab).values()) == {"done"}


class TestChosen:
    def test_a_stage_and_what_it_needs(self, lab: Any, on: Run) -> None:
        """Other stages neither run nor appear in the result; the record keeps what they have done."""
        result = on(FOUR, {"CPU": 2.0}, stages=("after",))
        assert sorted(lab.calls) == ["after", "one"]
        assert list(result.artifacts) == ["one", "after"]
        assert record_of(lab) == {"one": "done", "two": "waiting", "after": "done", "page": "waiting"}

        on(FOUR, {"CPU": 2.0})
        assert sorted(lab.calls) == ["after", "one", "page", "two"]
        on(FOUR, {"CPU": 2.0}, stages=("one",))
        assert set(record_of(lab).values()) == {"cached"}

    def test_shown(self, lab: Any) -> None:
        """The plan that is shown, and that of `--json`, have the stages that are run."""
        plan = lab.plan(FOUR).narrowed(("after", "two"))
        assert [stage["stage"] for stage in plan.to_json()["stages"]] == ["one", "two", "after"]
        assert "page" not in str(plan)

    def test_an_unknown_name(self, lab: Any) -> None:
        """A name that is no stage is refused, with the nearest one."""
        with raises("stage-not-in-plan"):
            lab.plan(FOUR).narrowed(("aftr",))


@pytest.mark.parametrize("width", [80, 120])
def test_a_live_line_for_each_running_stage(lab: Any, on: Run, width: int) -> None:
    """While two stages run, a frame has a line for each, with aligned columns; when one ends, its line goes."""
    console = Console(
        file=io.StringIO(), force_terminal=True, width=width, color_system=None, legacy_windows=False
    )
    frames: list[list[str]] = []
    display = Terminal(console)
    meet = meeting("one", "two")["one"]
    ended = threading.Event()

    def drawn() -> list[str]:
        probe = Console(
            file=io.StringIO(), force_terminal=True, width=width, color_system=None, legacy_windows=False
        )
        with probe.capture() as captured:
            probe.print(display._lines)
        return [line.rstrip() for line in captured.get().splitlines()]

    def one(config: Any, context: Any) -> Result:
        context.progress.update(
            5, 2000, "loss 0.913  lr 0.0123  accuracy 55.1 %, and a figure that goes on and on" * 2
        )
        return meet(config, context)

    def two(config: Any, context: Any) -> Result:
        context.progress.update(10, 20, "test 61 %")
        result = meet(config, context)
        time.sleep(0.2)
        frames.append(drawn())
        return result

    def page(config: Any, context: Any) -> Result:
        frames.append(drawn())
        ended.set()
        return Result({})

    lab.works = {"one": one, "two": two, "page": page}
    stages = {"one": {"kind": "make"}, "two": {"kind": "make"}, "page": {"kind": "page"}}
    slow = lab.works["one"]

    def waits(config: Any, context: Any) -> Result:
        result = slow(config, context)
        while not frames:
            time.sleep(0.01)
        return result

    lab.works["one"] = waits
    on({**FOUR, "stages": stages}, {"CPU": 2.0}, display=display)
    both, last = frames
    assert [line.split()[1] for line in both] == ["one", "two"]
    assert both[0].index("5/2,000") == both[1].index("10/20")
    assert both[0].index("loss 0.913") == both[1].index("test 61 %")
    # Of a text that does not fit, words are shortened and last parts left out, and no figure is cut.
    assert "lr 0.0123" in both[0]
    assert len(both[0]) <= width
    assert ("55.1 %" in both[0]) == (width == 120)
    assert both[0].count("━") < both[1].count("━")
    names = [line.split()[1] for line in last]
    assert names[-1] == "page"
    assert "one" not in names or "two" not in names
