"""The other verbs as a user types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import rayddl as package
from rayddl.data.distilled import DistilledSet
from rayddl.data.pixels import space
from rayddl.storage import Folder
from tests import warm

FAKE = Path(__file__).with_name("fake_rayddl.py")
DEFINITION = """\
name: demo
source: {name: digits}
stages:
  first: {kind: make}
  second: {kind: use, make: first}
"""

Rayddl = Callable[..., "subprocess.CompletedProcess[str]"]


def command(
    folder: Path, *words: str, program: tuple[str, ...] = (str(FAKE),)
) -> subprocess.CompletedProcess[str]:
    """Run the command in ``folder``."""
    return warm.run(
        [sys.executable, *program, *words],
        cwd=folder,
        env={**os.environ, "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which ``demo`` has run."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "demo.yaml").write_text(DEFINITION)
    assert command(folder, "run", "demo.yaml", "--quiet").returncode == 0
    return folder


class TestEntry:
    def test_version(self, tmp_path: Path) -> None:
        """--version is one line; the package also runs as a module."""
        ended = command(tmp_path, "--version", program=("-m", "rayddl"))

        assert (ended.returncode, ended.stdout) == (0, f"rayddl {package.__version__}\n")

    def test_help_of_a_verb_shows_examples_as_they_are_typed(self, tmp_path: Path) -> None:
        """Each example has its own line, and no control code is spelt out."""
        told = command(tmp_path, "run", "--help").stdout

        assert "\n  rayddl run quickstart\n" in told
        assert "\\b" not in told

    def test_help_names_every_verb(self, tmp_path: Path) -> None:
        """--help lists the verbs, each with a whole sentence."""
        ended = command(tmp_path, "--help")

        for verb in (
            "init",
            "run",
            "plan",
            "show",
            "list",
            "evaluate",
            "export",
            "explain",
            "schema",
            "doctor",
            "submit",
            "status",
            "logs",
            "stop",
        ):
            assert f"\n  {verb} " in ended.stdout
        assert "..." not in ended.stdout.split("Commands:")[1]
        assert "rayddl run quickstart" in ended.stdout

    def test_help_imports_little(self, tmp_path: Path) -> None:
        """--help imports neither pyarrow nor NumPy, let alone torch or Ray."""
        code = (
            "import sys\nfrom rayddl.cli import main\n"
            "try: main(['run', '--help'])\n"
            "except SystemExit: print(sorted({'pyarrow', 'numpy', 'torch', 'ray', 'rich'} & set(sys.modules)))"
        )
        # Not forked, which would import them.
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

        assert ended.stdout.splitlines()[-1] == "[]"

    def test_unknown_verb(self, tmp_path: Path) -> None:
        """An unknown verb is exit code 2 with the nearest one."""
        ended = command(tmp_path, "rnu")

        assert ended.returncode == 2
        assert "Did you mean 'run'?" in ended.stderr
        assert "Traceback" not in ended.stderr


class TestPlan:
    def test_table(self, finished: Path) -> None:
        """A plan is a table, and says what is there already."""
        ended = command(finished, "plan", "demo.yaml", "--set", "second.make=first", "--set", "first.count=9")
        states = [line.split()[-2:][0] for line in ended.stdout.splitlines()[3:]]

        assert ended.returncode == 0
        assert states == ["new", "new"]
        assert command(finished, "plan", "demo.yaml").stdout.count(" done ") == 2

    def test_json(self, finished: Path) -> None:
        """A plan is JSON, too."""
        value = json.loads(command(finished, "plan", "demo.yaml", "--json").stdout)

        assert [stage["state"] for stage in value["stages"]] == ["done", "done"]
        assert value["stages"][1]["reads"] == ["first"]
        assert value["stages"][1]["estimate"] is None

    def test_writes_nothing(self, tmp_path: Path) -> None:
        """Planning leaves no trace."""
        (tmp_path / "demo.yaml").write_text(DEFINITION)
        command(tmp_path, "plan", "demo.yaml")

        assert [path.name for path in tmp_path.iterdir()] == ["demo.yaml"]


class TestListAndShow:
    def test_list(self, finished: Path) -> None:
        """Runs first, then folders."""
        lines = command(finished, "list").stdout.splitlines()

        assert lines[2].split()[:5] == ["demo", "done", "2", "of", "2"]
        assert [line.split()[1:3] for line in lines[-2:]] == [["make", "done"], ["use", "done"]]
        assert len(json.loads(command(finished, "list", "--json").stdout)["folders"]) == 2

    def test_show(self, finished: Path, tmp_path: Path) -> None:
        """A run by name, a stage with its hashes verified, and a set."""
        (stage,) = (finished / "runs").glob("second-*")
        images = torch.arange(2 * 64).reshape(2, 1, 8, 8).to(torch.uint8)
        fitted = space.fit("normalise", images)
        made = DistilledSet(fitted.encode(images), torch.tensor([0, 1]), 0.01, ("cat", "dog"), fitted, {})
        made.save(Folder(str(tmp_path / "set")))

        assert "the run demo\n" in command(finished, "show", "demo").stdout
        assert "all hashes match" in command(finished, "show", str(stage), "--verify").stdout
        assert "classes  cat, dog" in command(finished, "show", str(tmp_path / "set")).stdout
        assert json.loads(command(finished, "show", str(stage), "--json").stdout)["kind"] == "use"

    def test_show_nothing(self, finished: Path) -> None:
        """Where there is nothing, the message says what was looked for; exit code 2."""
        ended = command(finished, "show", "nothing")

        assert ended.returncode == 2
        assert ended.stderr.startswith("error: nothing to show at 'nothing': looked for manifest.json")


class TestEvaluate:
    def test_table(self, finished: Path) -> None:
        """The options reach the stage, Ray is started and stopped, and the table is shown."""
        ended = command(
            finished,
            "evaluate",
            "demo",
            "--net",
            "convnet",
            "--net",
            "mlp",
            "--seeds",
            "2",
            "--num-cpus",
            "1",
        )

        assert ended.returncode == 0
        assert "nets=('convnet', 'mlp'), seeds=2, epochs=None, root=None" in ended.stdout
        assert ended.stdout.splitlines()[0] == "starting Ray"
        assert ended.stderr == "cluster: configure None 1 start\n"

    def test_json(self, finished: Path) -> None:
        """--json gives events that end with the result."""
        ended = command(finished, "evaluate", "demo", "--json")
        events = [json.loads(line) for line in ended.stdout.splitlines()]

        assert [event["event"] for event in events] == ["note", "progress", "stage_done", "result"]

    def test_no_set(self, tmp_path: Path) -> None:
        """A place without a set is refused before Ray is started."""
        ended = command(tmp_path, "evaluate", "nowhere")

        assert ended.returncode == 2
        assert ended.stderr == (
            "error: no distilled set at 'nowhere': looked for set.json and set/set.json there, and for a run of "
            "that name in 'runs'; rayddl list shows what there is\n"
        )


class TestExport:
    def test_incomplete(self, finished: Path) -> None:
        """A set whose document is none is refused; exit code 2."""
        ended = command(finished, "export", "demo", "--to", "x")

        assert ended.returncode == 2
        assert "does not describe a distilled set" in ended.stderr

    def test_unknown_format(self, finished: Path) -> None:
        """An unknown format answers with the known ones."""
        ended = command(finished, "export", "demo", "--to", "x", "--format", "zip")

        assert ended.returncode == 2
        assert "'imagefolder', 'parquet'" in ended.stderr


class TestDoctor:
    def test_json(self, tmp_path: Path) -> None:
        """The doctor looks at everything that a run needs; its exit code says whether something fails."""
        ended = command(tmp_path, "doctor", "--json")
        findings = {finding["name"]: finding for finding in json.loads(ended.stdout)}

        assert {"Python", "torch", "CPUs", "memory", "shared memory", "temporary folder"} <= set(findings)
        fails = any(finding["state"] == "fails" for finding in findings.values())
        assert ended.returncode == int(fails)
        assert all(finding["advice"] for finding in findings.values() if finding["state"] != "fine")

    def test_failing(self, tmp_path: Path) -> None:
        """Something that will fail is exit code 1, with what to do."""
        (tmp_path / "taken").write_text("x")
        ended = command(tmp_path, "doctor", "--out", "taken/runs")

        assert ended.returncode == 1
        assert "choose another folder with --out" in ended.stdout
