"""The displays of a run for terminals, logs and programs."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
from rich.console import Console

from rayddl.errors import StageError
from rayddl.pipeline.display import pace
from rayddl.pipeline.display.base import Closing
from rayddl.pipeline.display.jsonl import JsonLines
from rayddl.pipeline.display.live import Terminal, _Lines, squeezed
from rayddl.pipeline.display.pace import Pace
from rayddl.pipeline.display.plain import Plain
from rayddl.pipeline.tables import as_text, rows_table
from rayddl.stages.context import Result


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class TestFigures:
    @pytest.mark.parametrize(
        ("seconds", "expected"),
        [
            (0.04, "0.0 s"),
            (9.94, "9.9 s"),
            (9.96, "10 s"),
            (59.4, "59 s"),
            (59.6, "1 min 00 s"),
            (200, "3 min 20 s"),
            (3599.7, "1 h 00 min"),
            (7500, "2 h 05 min"),
        ],
    )
    def test_duration(self, seconds: float, expected: str) -> None:
        """Durations are rounded to what a person wants to know."""
        assert pace.duration(seconds) == expected

    @pytest.mark.parametrize(
        ("rate", "expected"),
        [
            (1234.4, "1,234/s"),
            (12.0, "12/s"),
            (3.21, "3.2/s"),
            (0.5, "2.0 s each"),
            (0.01, "1 min 40 s each"),
        ],
    )
    def test_speed(self, rate: float, expected: str) -> None:
        """Fast work is shown in units per second, slow work in time per unit."""
        assert pace.speed(rate) == expected

    @pytest.mark.parametrize(
        ("done", "total", "expected"), [(3, 20, "3/20"), (2.5, 20, "2.5/20"), (1200, 5000, "1,200/5,000")]
    )
    def test_count(self, done: float, total: float, expected: str) -> None:
        """Parts of units are shown only where there are any."""
        assert pace.count(done, total) == expected

    @pytest.mark.parametrize(
        ("number", "expected"),
        [
            (0, "0 B"),
            (999, "999 B"),
            (1400, "1.4 kB"),
            (99_600, "100 kB"),
            (2e9, "2.0 GB"),
            (5e13, "50.0 TB"),
        ],
    )
    def test_size(self, number: float, expected: str) -> None:
        """Bytes are shown with two or three digits."""
        assert pace.size(number) == expected


class TestPace:
    def test_rate_and_time_left(self) -> None:
        """The time left follows from the rate, and counts down between updates."""
        clock = Clock()
        meter = Pace(clock)
        meter.update(0, 20)
        clock.now += 30
        meter.update(1, 20)
        assert (meter.rate, meter.left) == (None, None)
        clock.now += 8
        meter.update(5, 20)

        assert meter.rate == pytest.approx(0.5)
        assert meter.left == pytest.approx(30)
        clock.now += 4
        assert meter.left == pytest.approx(26)
        clock.now += 100
        assert meter.left == 0

    def test_resumed(self) -> None:
        """What was done in an earlier attempt does not count as speed."""
        clock = Clock()
        meter = Pace(clock)
        clock.now += 1
        meter.update(900, 1000)
        clock.now += 30
        meter.update(901, 1000)
        assert meter.rate is None, "a resumed stage compiles again"
        clock.now += 9
        meter.update(910, 1000)

        assert meter.rate == pytest.approx(1)
        assert meter.left == pytest.approx(90)

    @pytest.mark.parametrize("total", [10, 20, 300])
    def test_compiling(self, total: int) -> None:
        """The first unit, which includes compiling, gives no rate, however few there are; those after it do."""
        clock = Clock()
        meter = Pace(clock)
        meter.update(0, total)
        clock.now += 40
        meter.update(1, total)
        assert (meter.rate, meter.left) == (None, None)
        clock.now += 2
        meter.update(9, total)

        assert meter.rate == pytest.approx(4)
        assert meter.left == pytest.approx((total - 9) / 4)

    def test_units_finished_together(self) -> None:
        """Two workers that finish a unit almost at once are no rate from which the remaining time is estimated."""
        clock = Clock()
        meter = Pace(clock)
        meter.update(0, 20)
        found = []
        for done in range(1, 21, 2):
            for more, seconds in enumerate((20, 0.5)):
                clock.now += seconds
                meter.update(done + more, 20)
                found.append((meter.left, 305 - clock.now))

        assert [left for left, _ in found[:2]] == [None, None]
        for left, actual in found[2:]:
            assert left is not None
            assert left >= 0.6 * actual

    @pytest.mark.parametrize("apart", [10, 61, 150])
    def test_units_of_minutes(self, apart: int) -> None:
        """Two workers whose units take six minutes, of which a report is made each second: the rate is that of several
        units, not of the one in the last minute.
        """
        clock = Clock()
        meter = Pace(clock)
        ends = sorted(360 * pair + apart * worker for pair in range(1, 11) for worker in range(2))
        known = []
        for second in range(ends[-1]):
            clock.now = 100.0 + second
            meter.update(sum(end <= second for end in ends), 20)
            if meter.left is not None and second > 2 * 360:
                known.append((meter.left, ends[-1] - second))

        assert known
        assert all(actual / 2 - 360 < left < 2 * actual + 360 for left, actual in known)
        assert meter.rate == pytest.approx(2 / 360, rel=0.2)

    def test_units_that_take_longer_than_before(self) -> None:
        """The rate falls while nothing ends."""
        clock = Clock()
        meter = Pace(clock)
        for done in range(11):
            clock.now += 10
            meter.update(done, 20)
        clock.now += 500
        meter.update(10, 20)

        assert meter.rate == pytest.approx((8 + 1) / (80 + 500))

    def test_recent(self) -> None:
        """The rate is that of the recent past."""
        clock = Clock()
        meter = Pace(clock)
        done = 0
        for seconds_each in (10, 1):
            for _ in range(80):
                clock.now += seconds_each
                done += 1
                meter.update(done, 1000)

        assert meter.rate == pytest.approx(1)

    def test_start_over(self) -> None:
        """A count that decreases starts a new rate."""
        clock = Clock()
        meter = Pace(clock)
        for done in (0, 10, 2, 3):
            clock.now += 10
            meter.update(done, 20)
        assert meter.rate is None
        clock.now += 10
        meter.update(4, 20)

        assert meter.rate == pytest.approx(0.1)


def busy(clock: Clock) -> Any:
    """Work of 30 units, a second each, with a note half-way."""

    def work(config: Any, context: Any) -> Result:
        del config
        for done in range(30):
            clock.now += 1
            context.progress.update(done + 1, 30, f"loss {1 - done / 30:.2f}")
            if done == 15:
                context.progress.note("a worker died; its unit was tried again")
        return Result({})

    return work


class TestPlain:
    def test_lines(self, lab: Any, three: dict[str, Any]) -> None:
        """A stage has a line when it starts, one every ten seconds, and one at its end."""
        clock, stream = Clock(), io.StringIO()
        lab.works["first"] = busy(clock)
        lab.run(three, display=Plain(stream, clock=clock))
        text = stream.getvalue()
        lines = [line for line in text.splitlines() if line.startswith("first:")]

        assert lines[:-1] == [
            "first: started",
            "first: 10/30, 1.0/s, 20 s left, loss 0.70",
            "first: a worker died; its unit was tried again",
            "first: 20/30, 1.0/s, 10 s left, loss 0.37",
            "first: 30/30, 1.0/s, loss 0.03",
        ]
        assert re.fullmatch(r"first: done after \d\.\d s, 30/30, loss 0\.03", lines[-1])
        assert "\x1b" not in text
        assert "\r" not in text

    def test_plan_first_and_places_last(self, lab: Any, three: dict[str, Any]) -> None:
        """The plan comes first and the paths of results last; nothing is cut off."""
        stream = io.StringIO()
        result = lab.run(three, display=Plain(stream))
        lines = stream.getvalue().splitlines()

        assert lines[0].startswith("three  seed 0  source digits (normalise)  out ")
        assert lines[1].split() == ["stage", "kind", "reads", "state", "folder"]
        assert lines[3].split() == ["first", "make", "new", result.folders["first"].split("/")[-1]]
        assert lines[-1] == f"record  {result.record}"
        assert "what       accuracy" in stream.getvalue()

    def test_cached(self, lab: Any, three: dict[str, Any]) -> None:
        """A skipped stage is one line."""
        lab.run(three)
        stream = io.StringIO()
        lab.run(three, display=Plain(stream))

        assert "\nfirst: cached\nsecond: cached\npage: cached\n" in stream.getvalue()

    def test_failed(self, lab: Any, three: dict[str, Any]) -> None:
        """A failed stage says so, and so does each that needs it."""
        stream = io.StringIO()
        lab.works["first"] = lambda config, context: 1 / 0
        with pytest.raises(StageError):
            lab.run(three, display=Plain(stream))

        end = r"\nfirst: failed after \d\.\d s\nsecond: not run, needs first\npage: not run, needs first, second\n$"
        assert re.search(end, stream.getvalue())

    def test_quiet(self, lab: Any, three: dict[str, Any]) -> None:
        """Quiet leaves the result."""
        stream = io.StringIO()
        result = lab.run(three, display=Plain(stream, quiet=True))

        assert stream.getvalue() == (
            f"\nsecond\nwhat       accuracy\n{'─' * 19}\nsecond   61.2 ± 0.4\n\nrecord  {result.record}\n"
        )


class TestJson:
    def test_events(self, lab: Any, three: dict[str, Any]) -> None:
        """Every line is an event; progress comes at most once a second and at the end."""
        clock, stream = Clock(), io.StringIO()
        lab.works["first"] = busy(clock)
        lab.run(three, display=JsonLines(stream, clock))
        events = [json.loads(line) for line in stream.getvalue().splitlines()]

        kinds = [event["event"] for event in events]
        assert kinds[0] == "plan"
        assert kinds[-1] == "result"
        assert set(kinds) == {"plan", "progress", "note", "stage_done", "result"}
        first = [event for event in events if event.get("stage") == "first" and event["event"] == "progress"]
        assert len(first) == 30
        assert first[9] == {
            "event": "progress",
            "run": "three",
            "stage": "first",
            "done": 10,
            "total": 30,
            "rate": 1.0,
            "left_s": 20.0,
            "metric": "loss 0.70",
        }
        done = [event for event in events if event["event"] == "stage_done"]
        assert [(event["stage"], event["state"]) for event in done] == [
            ("first", "done"),
            ("second", "done"),
            ("page", "done"),
        ]
        assert events[-1]["tables"] == {"second": [{"what": "second", "accuracy": "61.2 ± 0.4"}]}
        assert set(events[-1]["places"]) == {"record"}

    def test_progress_is_thinned_out(self) -> None:
        """Many updates within a second are one event, and the last is never left out."""
        clock, stream = Clock(), io.StringIO()
        line = JsonLines(stream, clock).begin("s")
        for done in range(1000):
            clock.now += 0.001
            line.update(done + 1, 1000)

        assert [json.loads(text)["done"] for text in stream.getvalue().splitlines()] == [1, 1000]

    def test_error(self) -> None:
        """An error is an event with its class, code, message and exit code, without credentials."""
        stream = io.StringIO()
        told = JsonLines(stream).error(StageError("x", code="for-a-test"), "lost s3://key:hush@bucket/x", 1)

        assert told
        assert json.loads(stream.getvalue()) == {
            "event": "error",
            "error": "StageError",
            "code": "for-a-test",
            "message": "lost s3://bucket/x",
            "exit_code": 1,
        }


def terminal(width: int = 100, encoding: str = "utf-8") -> tuple[Console, io.TextIOWrapper]:
    """A console that believes to be a terminal, and what it writes to."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    console = Console(
        file=stream,
        force_terminal=True,
        width=width,
        color_system=None,
        highlight=False,
        legacy_windows=False,
    )
    return console, stream


def drawn(stream: io.TextIOWrapper) -> str:
    """What was written, without control codes."""
    stream.seek(0)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", stream.read())


KEYED = "s3://AKID:hidden@bucket/photos"
"""A root with a key, as a message may quote it."""


def test_no_display_shows_a_key() -> None:
    """Neither lines, notes, figures nor warnings, in a pipe or a terminal."""
    stream = io.StringIO()
    console, drawn_on = terminal(width=100)
    for display in (Plain(stream, clock=(clock := Clock())), Terminal(console, clock)):
        with display.status(f"listing {KEYED}"):
            pass
        display.note(f"{KEYED} has no files")
        line = display.begin("rded")
        clock.now += 60
        line.update(1, 2, KEYED)
        line.note(f"{KEYED} answers slowly")
        display.end("rded", "failed", 60, {})
        display.result(Closing({"rded": []}, {}, warnings=[f"{KEYED} is small"]))
        display.close()

    for text in (stream.getvalue(), drawn(drawn_on)):
        assert "hidden" not in text
        assert "AKID" not in text
        assert text.count("s3://bucket/photos") >= 3


class TestTerminal:
    def test_finished_lines(self, lab: Any, three: dict[str, Any]) -> None:
        """A finished stage leaves one dim line; notes stay above it."""
        clock = Clock()
        console, stream = terminal()
        lab.works["first"] = busy(clock)
        lab.run(three)
        (lab.plan(three).stages[2].folder.local / "manifest.json").unlink()
        lab.works["page"] = busy(clock)
        lab.run(three, display=Terminal(console, clock))
        text = drawn(stream)

        assert re.search(r"✓ first   cached *\n✓ second  cached *\n", text)
        assert "  a worker died; its unit was tried again\n" in text
        assert re.search(r"✓ page    \d\.\d s +loss 0\.03 *\n", text)

    def test_live_line(self) -> None:
        """The live line has a bar, the count, the rate, the time left and the last figure."""
        clock = Clock()
        console, _ = terminal()
        display = Terminal(console, clock)
        line = display.begin("experts")
        line.update(0, 20)
        clock.now += 10
        line.update(1, 20, "test 31 %")
        clock.now += 8
        line.update(5, 20, "test 61 %")
        display.close()
        with console.capture() as captured:
            console.print(_Lines({"experts": line}))
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", captured.get()).rstrip()

        assert re.fullmatch(r". experts  ━━━━━[━╸╺ ]{15}  5/20  2\.0 s each  30 s left  test 61 %", text)

    def test_a_long_first_step(self) -> None:
        """Before there is a speed, the line says after ten seconds how long it has taken so far."""
        clock = Clock()
        console, _ = terminal()
        display = Terminal(console, clock)
        line = display.begin("distill")
        line.update(0, 300, "compiling the steps")
        texts = []
        for _ in range(2):
            clock.now += 6
            with console.capture() as captured:
                console.print(_Lines({"distill": line}))
            texts.append(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", captured.get()).rstrip())
        display.close()

        assert texts[0].endswith("  0/300  compiling the steps")
        assert texts[1].endswith("  0/300  12 s  compiling the steps")

    def test_long_notes_are_indented_as_a_whole(self) -> None:
        """A note that needs several lines keeps its distance from the stages' lines in all of them."""
        console, stream = terminal(width=40)
        Terminal(console, Clock()).note("a worker died, and its unit of work was tried again")

        lines = [line.rstrip() for line in drawn(stream).splitlines()]
        assert lines == ["  a worker died, and its unit of work", "  was tried again"]

    def test_narrow(self) -> None:
        """In a narrow window the bar goes and the line is cut, not wrapped."""
        clock = Clock()
        console, _ = terminal(width=40)
        display = Terminal(console, clock)
        line = display.begin("experts")
        line.update(5, 20, "a figure that is much too long to be shown here")
        display.close()
        with console.capture() as captured:
            console.print(_Lines({"experts": line}))

        assert "━" not in captured.get()
        assert captured.get().count("\n") == 1

    @pytest.mark.parametrize("width", [80, 100])
    def test_names_shrink_before_figures(self, width: int) -> None:
        """At 80 columns long names are shortened, and count, rate, time left and the last figure are whole."""
        clock = Clock()
        console, _ = terminal(width=width)
        display = Terminal(console, clock)
        line = display.begin("evaluate-everything")
        line.update(0, 2000)
        for done in (100, 200):
            clock.now += 60
            line.update(done, 2000, "distilled convnet-d3-w128-batch seed 3: 88.1 %")
        display.close()
        with console.capture() as captured:
            console.print(_Lines({"evaluate-everything": line}))
        text = captured.get().rstrip()

        assert max(map(len, text.splitlines())) <= width
        for figure in ("200/2,000", "1.7/s", "18 min 00 s left", "3: 88.1 %"):
            assert figure in text
        assert re.search("evaluate-\\S*…", text)

    def test_a_finished_line_keeps_its_figure(self) -> None:
        """Words of the last metric are cut before its figure."""
        console, stream = terminal(width=50)
        display = Terminal(console, Clock())
        display.begin("evaluate").update(1, 2, "distilled convnet-d3-w128-batch seed 3: 88.1 %")
        display.end("evaluate", "done", 12, {})

        assert drawn(stream).rstrip().endswith("3: 88.1 %")

    def test_cursor_comes_back(self, lab: Any, three: dict[str, Any]) -> None:
        """However a run ends, the cursor is shown again."""
        console, stream = terminal()
        lab.works["first"] = lambda config, context: (_ for _ in ()).throw(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            lab.run(three, display=Terminal(console))
        stream.seek(0)
        text = stream.read()

        assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l") > -1
        assert "■ first   interrupted after" in drawn(stream)

    def test_ascii(self, lab: Any, three: dict[str, Any]) -> None:
        """A terminal without Unicode gets plain characters."""
        console, stream = terminal(encoding="ascii")
        lab.works["first"] = busy(Clock())
        lab.works["second"] = lambda config, context: Result({})
        lab.run(three, display=Terminal(console))

        assert "ok first " in drawn(stream)

    def test_status(self) -> None:
        """A status is shown while something starts, and leaves no line."""
        console, stream = terminal()
        display = Terminal(console)
        with display.status("starting Ray"):
            pass
        display.result(Closing({}, {"set": "/x"}))

        text = drawn(stream)
        assert "starting Ray" in text
        assert text.rstrip().endswith("set  /x")


def test_words_are_cut_before_parts_and_parts_before_figures() -> None:
    """The longest words lose letters first; then the last parts go; then words lose all but a letter."""
    text = "loss 0.345  lr 0.0123  accuracy 61.2 %"

    assert squeezed(text, 38) == text
    assert squeezed(text, 36) == "loss 0.345  lr 0.0123  accur… 61.2 %"
    assert squeezed(text, 30) == "loss 0.345  lr 0.0123"
    assert squeezed(text, 12) == "loss 0.345"
    assert squeezed("accuracy 61.2 %", 9) == "a… 61.2 %"
    assert squeezed("12 of 40 files", 14, "...") == "12 of 40 files"


@pytest.mark.parametrize("width", [80, 100])
def test_texts_shrink_before_figures(width: int) -> None:
    """In a narrow terminal the texts of a closing table are wrapped, and numbers stay on one line each."""
    row = {
        "data": "distilled (distill), own labels", "images": "10", "net": "convnet-d2-w32-batch",
        "accuracy %": "75.0 ± 2.8", "seeds": "77.4  74.4  77.2  69.9  76.3",
    }  # fmt: skip
    lines = as_text(rows_table([row], "evaluate"), width).splitlines()

    assert max(map(len, lines)) <= width
    assert any("75.0 ± 2.8   77.4  74.4  77.2  69.9  76.3" in line for line in lines)
    words = [line.split()[0] for line in lines[3:] if line.split()]
    assert words[0] == "distilled"
    many = {"seed": "  ".join(f"{i}.0" for i in range(60)), "net": "mlp"}
    assert "59.0" in as_text(rows_table([many]), width)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_warning_stands_once_in_succession(terminal: bool) -> None:
    """The end of a run repeats it, unless nothing is between."""
    rows = {"e": [{"accuracy": "50 %"}]}
    for tables, quiet, times in (({}, False, 1), (rows, False, 2), ({}, True, 1)):
        stream = io.StringIO()
        console = Console(file=stream, width=100)
        display = Terminal(console, Clock()) if terminal else Plain(stream, quiet=quiet)
        display.end("e", "done", 1.0, {})
        display.note("warning: e: weak")
        display.result(Closing(tables, {}, {}, ("e: weak",)))
        assert stream.getvalue().count("warning: e: weak") == times
