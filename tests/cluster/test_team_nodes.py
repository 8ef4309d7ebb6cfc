"""A team on several nodes, one of which is taken away for good."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file

from rayddl.stages.teacher.stage import PARTIAL

pytestmark = pytest.mark.ray

DEFINITION = """
name: nodes
source: {name: parquet, root: "ROOT"}
stages:
  teacher:
    {kind: teacher, net: {name: convnet, depth: 1, width: 8, norm: batch}, epochs: EPOCHS, lr: 0.01, augment: crop,
     allow_weak: true, compile: false, WORKERS resources: {num_cpus: 1}}
"""
APART = 1e-3
"""Two processes round differently from one, and a ReLU whose input is as small as that grows it: at this learning rate
to at most 1.2e-4 of the norm, whichever epoch the node is lost in, and at 0.05 to 2e-3. A step left out, a step of half
the images, or the momentum lost give at least 3e-3.
"""


def definition(workers: str, epochs: int = 60) -> str:
    return DEFINITION.replace("WORKERS", workers).replace("EPOCHS", str(epochs))


def test_a_team_goes_on_with_fewer_workers(bench, digits, tmp_path: Path) -> None:
    """Two train together until a node is lost; one goes on from their last epoch, to the result of one alone.

    What watches over the team is on the head, which outlives every other node.
    """

    def run(name: str, workers: str, address: str) -> object:
        return bench.Run(tmp_path / name, address, str(digits), definition(workers))

    with bench.Nodes.up(tmp_path / "log.txt", "CPU:1", "CPU:1") as nodes:
        team = run("team", "workers: 2, min_workers: 1,", nodes.address)
        process = team.start()
        partial = "runs/teacher-*/partial*"
        team.until(lambda: len(nodes.workers("ray::RayTrainWorker")) == 2, process)
        team.until(lambda: any(team.folder.glob(partial)), process)
        theirs = nodes.raylets("ray::RayTrainWorker")
        ours = nodes.raylets("ray::TeamLauncher", "ray::TrainController", "ray::_AutoscalingCoordinator")
        assert len(ours) == 1
        assert ours.isdisjoint(theirs)
        before = set(nodes.workers("ray::RayTrainWorker"))
        nodes.say("remove")
        team.until(lambda: len(set(nodes.workers("ray::RayTrainWorker")) - before) == 1, process)
        team.finish(process)
        alone = run("alone", "", nodes.address)
        alone.finish(alone.start())

    found, wanted = (load_file(one.file("teacher", "observer/observer.safetensors")) for one in (team, alone))
    assert {*found} == {*wanted}
    apart = {name: float((found[name] - wanted[name]).abs().max()) for name in wanted}
    norm, difference = (
        torch.cat([each.flatten() for each in of if each.is_floating_point()]).norm()
        for of in (wanted.values(), [found[name] - wanted[name] for name in wanted])
    )
    assert difference < APART * norm, (
        apart,
        sorted(path.name for path in team.folder.glob("runs/teacher-*/*")),
    )


def test_a_team_grows_with_the_cluster(bench, digits, tmp_path: Path) -> None:
    """One trains alone until there is a second node; two go on from its last epoch, and no epoch is trained twice."""
    with bench.Nodes.up(tmp_path / "log.txt", "CPU:1") as nodes:
        team = bench.Run(
            tmp_path / "team", nodes.address, str(digits), definition("workers: 2, min_workers: 1,", 10**5),
            environment={"RESIZE": "2"},
        )  # fmt: skip

        def seconds() -> list[float]:
            """Those of each epoch so far: wall times do not repeat."""
            saved = next(team.folder.glob(f"runs/teacher-*/{PARTIAL}"), None)
            return load(saved.read_bytes())["numbers.history"][:, -1].tolist() if saved else []

        process = team.start()
        team.until(lambda: bool(seconds()), process)
        assert len(nodes.workers("ray::RayTrainWorker")) == 1
        nodes.say("add CPU:1")
        team.until(lambda: len(nodes.workers("ray::RayTrainWorker")) == 2, process)
        before = seconds()
        team.until(lambda: len(seconds()) > len(before) + 2, process)
        after = seconds()
        assert len(nodes.workers("ray::RayTrainWorker")) == 2
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert after[: len(before)] == before
