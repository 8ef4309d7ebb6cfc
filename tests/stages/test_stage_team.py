"""Workers that train together, by Ray Train on the local Ray, one of them killed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from PIL import Image
from safetensors.torch import load

from rayddl.data.config import SourceConfig
from rayddl.stages import parquet as tables
from rayddl.stages.context import Context
from rayddl.stages.runtime import shards, teams
from rayddl.stages.runtime.in_process import InProcess
from rayddl.stages.runtime.shards import Shards
from rayddl.stages.runtime.sizes import Share
from rayddl.stages.runtime.sources import publish
from rayddl.stages.teacher import stage as teacher
from rayddl.stages.teacher.settings import TeacherConfig
from rayddl.storage import Folder

pytestmark = pytest.mark.ray

NET = {"name": "convnet", "depth": 1, "width": 8, "norm": "instance"}
SOURCE = SourceConfig(name="digits")
EPOCHS = 40


def settings(**changes: Any) -> TeacherConfig:
    base = {"kind": "teacher", "net": NET, "epochs": EPOCHS, "compile": False, "augment": "crop"}
    return TeacherConfig.model_validate({**base, **changes})


def context(out: Path, progress: Any, **more: Any) -> Context:
    return Context("teacher", SOURCE, 5, Folder(str(out)), {}, {}, progress, **more)


def test_a_team_that_loses_a_worker_goes_on(
    local_ray: None,
    tmp_path: Path,
    told: Callable[..., Any],
    killing: Callable[..., Any],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """From its last epochs' end, to the result that one worker has, with progress, and nothing printed or left."""
    progress = told()
    where = context(tmp_path / "team", progress)
    seen: list[bytes] = []

    def when() -> bool:
        if where.out.has(teacher.PARTIAL):
            seen[:] = [where.out.read(teacher.PARTIAL)]
        return bool(seen)

    home = set(Path.home().glob("ray_results*"))
    with killing("ray::RayTrainWorker", when) as killed:
        result = teacher.run(settings(workers=2), where)
    assert killed
    before = load(seen[0])["numbers.history"]
    curve = tables.read(where.out, "metrics.parquet")
    assert curve["epoch"] == list(range(1, EPOCHS + 1))
    # An epoch that was trained again would have other seconds.
    assert curve["seconds"][: len(before)] == before[:, -1].tolist()
    assert 0 < len(before) < EPOCHS
    assert any(0 < done < total for done, total, _ in progress.updates)
    assert where.out.names() == ["checked.json", "metrics.parquet"]
    assert set(Path.home().glob("ray_results*")) == home
    assert "ray" not in capfd.readouterr().err.lower()

    alone = context(tmp_path / "alone", told(), backend=InProcess())
    expected = teacher.run(settings(), alone)
    losses = tables.read(alone.out, "metrics.parquet")["train_loss"]
    assert curve["train_loss"][:5] == pytest.approx(losses[:5], rel=1e-3)
    assert result.summary["accuracy"] == pytest.approx(expected.summary["accuracy"], abs=0.03)


def test_a_team_that_loses_a_worker_at_its_end_gives_everything_back(local_ray: None) -> None:
    """Ray Train begins another team, and what that one reserves was not known yet when the first had ended."""

    def work() -> None:
        import os
        import signal
        import time

        from rayddl.methods.training.team import Team

        if not Team.here().first:
            time.sleep(0.5)  # the first worker has ended by then
            os.kill(os.getpid(), signal.SIGKILL)

    share = Share(num_cpus=1, num_gpus=0, memory=None, at_once=2, team=True)
    team = teams.Teams(share)
    ray.get(team.begin((work,), "short"))
    known, until = set[str](), time.monotonic() + 60
    while time.monotonic() < until:
        held = {group.id.hex() for group in ray.get(team._coach.held.remote())}
        known |= held
        if teams.unclaimed(dict(share.needs)) - known:
            break
    assert known
    assert time.monotonic() < until
    team.close()
    assert not teams.unclaimed(dict(share.needs))


@pytest.mark.timeout(120)
def test_a_team_that_ends_does_not_wait_for_another_stages(
    local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose placement group is not its own."""
    monkeypatch.setattr(teams, "CLOSE_SECONDS", 3600.0)

    def work(seconds: float) -> None:
        import time

        time.sleep(seconds)

    share = Share(num_cpus=1, num_gpus=0, memory=None, at_once=1, team=True)
    one, other = teams.Teams(share), teams.Teams(share)
    other.begin((work, 3600.0), "long")
    while not ray.get(other._coach.held.remote()):
        time.sleep(0.1)
    ray.get(one.begin((work, 0.0), "short"))
    one.close()
    assert len(teams.unclaimed(dict(share.needs))) == 1
    other.close()
    assert not teams.unclaimed(dict(share.needs))


def test_a_team_reads_a_large_train_split_from_shards(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits as from memory: the images' moments, their order, and the images."""
    draws = torch.Generator().manual_seed(0)
    for split, count in (("train", 30), ("test", 6)):
        for name in ("a", "b"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for k in range(count):
                pixels = torch.randint(0, 256, (8, 8, 3), generator=draws, dtype=torch.uint8).numpy()
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{k}.png")
    source = SourceConfig(name="imagefolder", root=str(tmp_path / "images"))
    monkeypatch.setattr("rayddl.stages.runtime.sizes.WHOLE_BYTES", 0)
    monkeypatch.setattr(shards, "SHARD_BYTES", 3 * 8 * 8 * 7)
    found = []
    for workers in (2, 1):
        out = Folder(str(tmp_path / str(workers)))
        where = Context("teacher", source, 5, out, {}, {}, backend=InProcess())
        teacher.run(settings(workers=workers, epochs=2, batch=8, allow_weak=True), where)
        found.append(load(out.child("observer").read("observer.safetensors")))
    assert isinstance(publish(source).refs[0], Shards)
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items())
