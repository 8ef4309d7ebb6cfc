"""Several Ray nodes on this machine, and runs on them whose workers and nodes are taken away."""

from __future__ import annotations

import importlib
import io
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from rayddl.data.config import SourceConfig
from rayddl.data.dataset import ImageDataset
from rayddl.data.sources import registry as sources
from tests import warm

HERE = Path(__file__).parent
MARK = "RAYDDL_TEST_NODES"
"""The environment variable that the processes of one cluster have in common."""
PATIENCE = 280.0 * max(1.0, int(os.environ.get("RAYDDL_TEST_STREAM", "0")) / 5000)
"""Seconds in which a run has to reach any point, on a busy machine too; more for a longer stream."""
DEFINITION = """
name: nodes
source: {name: parquet, root: "ROOT"}
stages:
  experts:
    {kind: experts, net: {name: convnet, depth: 1, width: 8}, count: 5, epochs: 16, batch: 64, lr: 0.05,
     augment: flip_color, compile: false, resources: {num_cpus: 1}}
  distill:
    {kind: match, experts: experts, ipc: 1, iterations: 30, syn_steps: 4, expert_epochs: 2, max_start_epoch: 4,
     lr_image: 20, lr_student: 0.05, augment: flip_color, compile: false, resources: {num_cpus: 1}}
  evaluate:
    {kind: evaluate, set: distill, seeds: 2, epochs: 30, augment: flip_color, compile: false, together: false,
     random: false}
  teacher:
    {kind: teacher, net: {name: convnet, depth: 1, width: 8, norm: batch}, epochs: 2, augment: crop,
     allow_weak: true, compile: false, resources: {num_cpus: 1}}
  picked: {kind: rded, teacher: teacher, ipc: 1, factor: 1, mipc: 60, num_crops: 60, precision: fp32}
  report: {kind: report}
"""


@dataclass
class Nodes:
    """A cluster of nodes under a head without CPUs."""

    process: subprocess.Popen[str]
    address: str
    mark: str
    """What its processes have in the environment."""

    def workers(self, *titles: str) -> list[int]:
        """The ids of its workers whose titles begin with one of ``titles``."""
        importlib.import_module("ray")  # brings psutil along
        psutil = importlib.import_module("psutil")
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                words = " ".join(process.cmdline())
                if words.startswith(titles) and process.environ().get(MARK) == self.mark:
                    found.append(int(process.pid))
        return sorted(found)

    def raylets(self, *titles: str) -> set[str]:
        """The raylets, one on each node, of these workers."""
        psutil = importlib.import_module("psutil")
        return {psutil.Process(pid).environ()["RAY_RAYLET_PID"] for pid in self.workers(*titles)}

    def say(self, line: str) -> None:
        """``add CPU:1``, ``remove`` the oldest node, or ``remove CPU:1`` the oldest of that kind."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "ok\n"

    @classmethod
    @contextmanager
    def up(cls, log: Path, *nodes: str, **environment: str) -> Iterator[Nodes]:
        """The cluster, with ``nodes`` such as ``CPU:2,GPU:2``; what Ray prints goes to ``log``."""
        with log.open("w") as printed:
            mark = secrets.token_hex(8)
            # The titles of workers would otherwise overwrite the mark.
            more = {MARK: mark, "SPT_NOENV": "1", **environment}
            process = warm.Popen(
                [sys.executable, str(HERE / "nodes.py"), *nodes], env={**os.environ, **more},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=printed, text=True,
            )  # fmt: skip
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield cls(process, process.stdout.readline().strip(), mark)
        finally:
            process.stdin.close()
            process.wait(60)


@pytest.fixture(scope="session")
def bench() -> SimpleNamespace:
    """What brings up nodes, and what runs a definition on them."""
    return SimpleNamespace(Nodes=Nodes, Run=Run)


@pytest.fixture(scope="session")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """The cluster, with one node."""
    with Nodes.up(tmp_path_factory.mktemp("nodes") / "log.txt", "CPU:1") as cluster:
        yield cluster


@dataclass
class Run:
    """The definition run on a cluster, each unit of work written down as a worker begins it."""

    folder: Path
    address: str
    """Empty: a local Ray."""
    source: str
    """The folder or URI of the images."""
    definition: str = DEFINITION
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "nodes.yaml").write_text(self.definition.replace("ROOT", self.source))

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """Start the command."""
        command = [sys.executable, str(HERE / "counted.py"), "run", "nodes.yaml"]
        command += ["--address", self.address] if self.address else ["--num-cpus", "2"]
        with (self.folder / "log.txt").open("a") as log:
            return warm.Popen(
                [*command, *options], cwd=self.folder, stdout=log, stderr=log,
                env={**os.environ, "COUNTED": str(self.folder / "begun.txt"), **self.environment},
            )  # fmt: skip

    def finish(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for its end, which must be a good one."""
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(self.log[-3000:]) from None
        assert code == 0, self.log[-3000:]

    def until(self, condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
        """Wait for a condition while the run goes on."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert process.poll() is None, self.log[-3000:]
            assert time.monotonic() < deadline, self.log[-3000:]
            time.sleep(0.02)

    @property
    def log(self) -> str:
        """What it printed."""
        return (self.folder / "log.txt").read_text()

    @property
    def begun(self) -> Counter[str]:
        """How often each unit of work was begun."""
        with suppress(FileNotFoundError):
            return Counter((self.folder / "begun.txt").read_text().splitlines())
        return Counter()

    def units(self, kind: str) -> int:
        """Units of a kind that were begun at least once."""
        return sum(name.startswith(kind) for name in self.begun)

    @property
    def repeated(self) -> int:
        """Units begun more than once, each as often as it was begun again."""
        return sum(count - 1 for count in self.begun.values())

    def file(self, stage: str, name: str) -> Path:
        """A file of a stage's folder."""
        (found,) = self.folder.glob(f"runs/{stage}-*/{name}")
        return found

    def outcome(self) -> dict[str, object]:
        """Everything that the run found out, without wall times."""
        experts = {
            path.name: {k: v.tolist() for k, v in load_file(path).items() if k != "history"}
            for path in sorted(self.folder.glob("runs/experts-*/expert-*.safetensors"))
        }
        students = pq.read_table(self.file("evaluate", "students.parquet")).to_pydict()
        sets = {s: self.file(s, "set/set.safetensors").read_bytes() for s in ("distill", "picked")}
        return {
            "experts": experts,
            "loss": pq.read_table(self.file("distill", "metrics.parquet")).to_pydict()["loss"],
            "students": sorted(zip(*(students[c] for c in ("data", "seed", "accuracy")), strict=True)),
            "winners": pq.read_table(self.file("picked", "winners.parquet")).to_pydict(),
            **sets,
        }


def _table(part: ImageDataset) -> bytes:
    def png(image: Tensor) -> bytes:
        sink = io.BytesIO()
        Image.fromarray(image[0].numpy()).save(sink, "PNG")
        return sink.getvalue()

    names = [part.classes[label] for label in part.labels[:600]]
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": [png(image) for image in part.images[:600]], "label": names}), sink)
    return sink.getvalue()


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the bundled digits as Parquet files."""
    folder = tmp_path_factory.mktemp("digits")
    source = sources.load(SourceConfig(name="digits"))
    for name, part in (("train", source.train), ("test", source.test)):
        (folder / f"{name}-00000.parquet").write_bytes(_table(part))
    return folder


@pytest.fixture(scope="session")
def undisturbed(nodes: Nodes, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run on one node, while nothing happens to it."""
    run = Run(tmp_path_factory.mktemp("undisturbed"), nodes.address, str(digits))
    run.finish(run.start())
    return run


class Killer:
    """Kills workers of a run with SIGKILL, one after another, at moments that a seed draws."""

    TITLES = ("ray::expert", "ray::student", "ray::MatchWorker", "ray::MapBatches")

    def __init__(self, nodes: Nodes, run: Run, process: subprocess.Popen[bytes], seed: int) -> None:
        self.nodes, self.run, self.process, self.killed = nodes, run, process, 0
        self._draws = random.Random(seed)

    def kill(self, times: int) -> None:
        """Kill so many workers, or as many as there are moments for before the run ends."""
        while self.killed < times and self.process.poll() is None:
            # A unit that was not begun before begins between two kills: they are spread over the run, and a slow
            # machine does more than start workers.
            goal = len(self.run.begun) + 1
            self._wait(lambda goal=goal: len(self.run.begun) >= goal)
            time.sleep(self._draws.uniform(0.0, 0.5))
            worker = self._worker()
            if worker is not None:
                with suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
                    self.killed += 1

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition() and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)

    def _worker(self) -> int | None:
        found = self.nodes.workers(*self.TITLES)
        return self._draws.choice(found) if found else None


@pytest.fixture
def killer(nodes: Nodes) -> Callable[[Run, subprocess.Popen[bytes], int], Killer]:
    """Makes what kills a run's workers."""

    def make(run: Run, process: subprocess.Popen[bytes], seed: int) -> Killer:
        return Killer(nodes, run, process, seed)

    return make


@pytest.fixture
def run_on(nodes: Nodes, digits: Path, tmp_path: Path) -> Callable[..., Run]:
    """Makes a run on the cluster."""

    def make(source: str | None = None) -> Run:
        return Run(tmp_path / "run", nodes.address, source or str(digits))

    return make
