"""One local Ray for the whole folder, small stages to run on it, and a way to kill their workers."""

from __future__ import annotations

import importlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from rayddl import plugins
from rayddl.data.config import SourceConfig
from rayddl.data.dataset import Source
from rayddl.data.distilled import DistilledSet
from rayddl.data.pixels import space
from rayddl.data.sources import picking
from rayddl.data.sources import registry as sources
from rayddl.methods.matching.loop import Loop, Matcher
from rayddl.methods.matching.state import first_state
from rayddl.methods.training.steps import Steps, steps_for
from rayddl.methods.trajectories import files
from rayddl.methods.trajectories.expert import Images
from rayddl.seeds import derive, generator
from rayddl.stages import parquet as tables
from rayddl.stages.context import Context, Input, Progress, Result, Silent
from rayddl.stages.evaluate import stage as evaluate
from rayddl.stages.evaluate.settings import EvaluateConfig
from rayddl.stages.experts import stage as experts
from rayddl.stages.experts.settings import ExpertsConfig
from rayddl.stages.match import short_evaluations
from rayddl.stages.match import stage as match
from rayddl.stages.match.settings import MatchConfig
from rayddl.stages.runtime import cluster, driver, local
from rayddl.storage import Folder
from tests.finishing import finished

NET = {"name": "convnet", "depth": 1, "width": 8}
SEED = 5
STORE_BYTES = 100 * 2**20


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """Ray on this machine with two CPUs and a small object store; the tests' own torch has one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "store_bytes", lambda: STORE_BYTES)
        cluster.configure(num_cpus=2)
        cluster.start()
        yield
        cluster.stop()
        cluster.configure()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def kept_ray() -> Iterator[None]:
    """One Ray for all runs of a module, which none of them stops; the session's, if it runs, is away meanwhile."""
    threads, interrupted = torch.get_num_threads(), local._running is not None
    cluster.stop()
    local.start(cluster.WORKER_ENV, 2)
    yield
    local.stop()
    if interrupted:
        cluster.configure(num_cpus=2)
        cluster.start()
    torch.set_num_threads(threads)
    plugins.activate(())


@dataclass
class Told:
    """A :class:`Progress` that keeps what it is told, and may act on it."""

    act: Callable[[float, float], None] = lambda done, total: None
    updates: list[tuple[float, float, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def update(self, done: float, total: float, metric: str = "") -> None:
        self.updates.append((done, total, metric))
        self.act(done, total)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def under_way(self) -> bool:
        """Whether something, but not everything, was done when this was last told."""
        return bool(self.updates) and 0 < self.updates[-1][0] < self.updates[-1][1]


class Cut(Exception):
    """Raised by a test's progress where the driver is to end."""


@dataclass(frozen=True)
class Made:
    """A stage that ran: where it wrote, and what it handed back."""

    out: Folder
    result: Result
    stage: str
    kind: str
    config: Mapping[str, Any]

    @property
    def summary(self) -> dict[str, Any]:
        """The summary, as it is read back from a manifest."""
        read: dict[str, Any] = json.loads(json.dumps(dict(self.result.summary), allow_nan=False))
        return read

    def as_input(self, **changes: Any) -> Input:
        """The stage as another one reads it, with keys of its summary changed."""
        return Input(self.stage, self.kind, self.out, self.config, {**self.summary, **changes})

    def table(self, name: str) -> dict[str, list[Any]]:
        """A Parquet table by column."""
        return tables.read(self.out, name)

    def rows(self) -> list[tuple[float, ...]]:
        """What a matching stage recorded of every iteration, but for its wall time."""
        table = self.table("metrics.parquet")
        return list(zip(*(table[c] for c in table if c != "seconds"), strict=True))

    @property
    def distilled(self) -> DistilledSet:
        """The set that the stage wrote."""
        return DistilledSet.load(self.out.child("set"))

    @property
    def set_bytes(self) -> bytes:
        """The file that holds the set's tensors."""
        return self.out.child("set").read("set.safetensors")

    def expert(self, index: int) -> dict[str, Tensor]:
        """The tensors of an expert's file, without its wall times."""
        return without_times(self.out.read(f"expert-{index:04d}.safetensors"))


def without_times(data: bytes) -> dict[str, Tensor]:
    """The tensors of an expert's file; its history loses the last column, which holds seconds."""
    tensors = load(data)
    tensors["history"] = tensors["history"][:, :-1].nan_to_num(nan=-1.0)
    return tensors


@dataclass(frozen=True)
class Stages:
    """Runs the three stages on the digits, small enough for a test."""

    seed: int = SEED
    source_config: SourceConfig = SourceConfig(name="digits")  # noqa: RUF009 - frozen

    def experts(self, out: Path, progress: Progress | None = None, **changes: Any) -> Made:
        config = self.experts_config(**changes)
        context = self._context("experts", out, {}, progress)
        result = experts.run(config, context)
        return Made(context.out, result, "experts", "experts", config.model_dump(mode="json"))

    def experts_config(self, **changes: Any) -> ExpertsConfig:
        base = {"net": NET, "count": 3, "epochs": 5, "batch": 256, "lr": 0.05, "momentum": 0.5}
        more = {"kind": "experts", "augment": "flip_color", "compile": False}
        return ExpertsConfig.model_validate({**base, **more, **changes})

    def match(
        self,
        of: Made | Input,
        out: Path,
        progress: Progress | None = None,
        start: Made | Input | None = None,
        **changes: Any,
    ) -> Made:
        read = {"experts": of if isinstance(of, Input) else of.as_input()}
        if start is not None:
            read["start"] = start if isinstance(start, Input) else start.as_input()
            changes["start_set"] = "start"
        config = self.match_config(**changes)
        context = self._context("distill", out, read, progress)
        result = finished(match.run, config, context)
        return Made(context.out, result, "distill", "match", config.model_dump(mode="json"))

    def match_config(self, **changes: Any) -> MatchConfig:
        base = {"kind": "match", "experts": "experts", "ipc": 1, "iterations": 4, "syn_steps": 4}
        window = {"expert_epochs": 1, "max_start_epoch": 3}
        rates = {"lr_image": 20.0, "lr_lr": 1e-4, "lr_student": 0.05}
        more = {"augment": "flip_color", "compile": False, "resources": {"num_cpus": 1}}
        return MatchConfig.model_validate({**base, **window, **rates, **more, **changes})

    def plain_loop(self, of: Made, **changes: Any) -> Loop:
        """The same matching without Ray: the loop of floor 1 on the experts' files, in this process."""
        config, seed = self.match_config(**changes), derive(self.seed, "distill")
        train, names = self.splits[0], self.source.train.classes
        picked = picking.per_class(train.y, names, config.ipc, generator(seed, "images"))
        opened = [
            files.open_trajectory(of.out, files.file_name(i), config.trajectory, config.waypoints)
            for i in range(of.summary["count"])
        ]
        cpu = torch.device("cpu")
        fixed = Matcher(self.steps, config, opened, train.y[picked], len(names), seed, cpu)
        loop = Loop.begin(fixed, first_state(train.x[picked], None, config))
        for _ in range(config.iterations):
            loop.step()
        return loop

    def evaluate(self, of: Made | Input, out: Path, progress: Progress | None = None, **changes: Any) -> Made:
        read = of if isinstance(of, Input) else of.as_input()
        base = {"kind": "evaluate", "set": "distill", "seeds": 2, "epochs": 10, "augment": "flip_color"}
        config = EvaluateConfig.model_validate({**base, "compile": False, **changes})
        context = self._context("evaluate", out, {"distill": read}, progress)
        result = finished(evaluate.run, config, context)
        return Made(context.out, result, "evaluate", "evaluate", config.model_dump(mode="json"))

    def _context(
        self, stage: str, out: Path, inputs: Mapping[str, Input], progress: Progress | None
    ) -> Context:
        definition = {"name": "test", "source": self.source_config.model_dump(mode="json")}
        return Context(
            stage, self.source_config, self.seed, Folder(str(out)), inputs, definition, progress or Silent()
        )

    @cached_property
    def source(self) -> Source:
        """The real images."""
        return sources.load(self.source_config)

    @cached_property
    def splits(self) -> tuple[Images, Images]:
        """Train and test images in model space."""
        fitted = space.fit("normalise", self.source.train.images)
        parts = (self.source.train, self.source.test)
        train, test = (Images(fitted.encode(part.images), part.labels) for part in parts)
        return train, test

    @cached_property
    def steps(self) -> Steps:
        """The step functions of the network that the stages train."""
        net = self.experts_config().net
        return steps_for(net, tuple(self.source.train.images.shape[1:]), 10, "fp32", False)


@pytest.fixture(scope="session")
def stages(local_ray: None) -> Stages:
    """The three stages, on the session's Ray."""
    return Stages()


@pytest.fixture(scope="session")
def whole(stages: Stages, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Three experts with all their snapshots."""
    return stages.experts(tmp_path_factory.mktemp("whole"), keep="all")


@pytest.fixture(scope="session")
def convex(stages: Stages, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The same experts, convexified."""
    return stages.experts(tmp_path_factory.mktemp("convex"))


@dataclass(frozen=True)
class Run:
    """A finished matching stage, and what it told meanwhile."""

    made: Made
    told: Told
    settings: Mapping[str, Any]


@pytest.fixture(scope="session")
def mct_run(stages: Stages, convex: Made, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """MCT past two anchors, with short evaluations beside it, while nothing goes wrong."""
    settings = {"iterations": 60, "evaluate_every": 24, "evaluate_seeds": 2, "evaluate_epochs": 20}
    progress = Told()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(match, "SLICE_SECONDS", 0.1)
        patch.setattr(short_evaluations, "GRACE_SECONDS", 300.0)
        made = stages.match(convex, tmp_path_factory.mktemp("mct"), progress, **settings)
    return Run(made, progress, settings)


@pytest.fixture(scope="session")
def mct(mct_run: Run) -> Made:
    """The stage that :func:`mct_run` ran."""
    return mct_run.made


@pytest.fixture
def told() -> Callable[..., Told]:
    """Makes a progress that remembers."""
    return Told


@pytest.fixture
def cut_when() -> Callable[[Callable[[], bool]], Told]:
    """Makes a progress that ends the driver, by :class:`Cut`, when told something while a condition holds."""

    def make(condition: Callable[[], bool]) -> Told:
        def act(done: float, total: float) -> None:
            if condition():
                raise Cut

        return Told(act)

    return make


@pytest.fixture
def cut() -> type[Cut]:
    """What :func:`cut_when`'s progress raises."""
    return Cut


@pytest.fixture
def killing() -> Callable[..., Any]:
    """Kills the first worker whose process has a title, with SIGKILL, as soon as a condition holds.

    Used as ``with killing("ray::expert", when) as killed``; ``killed`` holds the process id.
    """

    @contextmanager
    def kill(title: str, when: Callable[[], bool]) -> Iterator[list[int]]:
        killed: list[int] = []
        over = threading.Event()

        def watch() -> None:
            worker = None
            while not over.wait(0.01):
                # It is sought beforehand: on a busy machine that takes longer than the condition may hold.
                if worker is None or not _titled(worker, title):
                    worker = _worker(title)
                elif when():
                    os.kill(worker.pid, signal.SIGKILL)
                    killed.append(worker.pid)
                    return

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield killed
        finally:
            over.set()
            thread.join()

    return kill


def _worker(title: str) -> Any:
    """A process of the local Ray that has the title; ``None`` if there is none now."""
    psutil = importlib.import_module("psutil")  # comes with Ray, which is running
    running = local._running
    assert running is not None
    # A forked worker is no child of this process.
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # it may just have ended
            if _titled(process, title) and process.environ().get(driver.MARK) == running.mark:
                return process
    return None


def _titled(process: Any, title: str) -> bool:
    psutil = importlib.import_module("psutil")
    with suppress(psutil.Error):
        return " ".join(process.cmdline()).startswith(title)
    return False
