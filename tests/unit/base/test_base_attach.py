"""What a run takes along to a cluster, and what is said of one that cannot be used."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

import rayddl
from rayddl.stages.runtime import attach
from tests.raising import raises

HOME = str(Path(rayddl.__file__).parent)


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch):
    """Makes this process the driver of a job that was submitted with a runtime environment."""

    def make(**environment: object) -> None:
        monkeypatch.setenv(attach.JOB, json.dumps({"runtime_env": environment, "metadata": {}}))

    monkeypatch.delenv(attach.JOB, raising=False)
    return make


@pytest.mark.usefixtures("job")
def test_the_package_travels() -> None:
    """Outside a job the package's own folder is sent, without what Python leaves there."""
    made = attach.environment({"A": "1"})

    assert made["py_modules"] == [HOME]
    assert "__pycache__" in made["excludes"]
    assert made["env_vars"]["A"] == "1"


@pytest.mark.parametrize(
    "brought", [{"working_dir": "gcs://_ray_pkg_1.zip"}, {"py_modules": ["gcs://_ray_pkg_2.zip"]}]
)
def test_a_job_has_brought_it(job, brought: dict[str, object]) -> None:
    """Inside a job that brought the package nothing is added: Ray refuses to merge two."""
    job(**brought, env_vars={"PYTHONUNBUFFERED": "1"})

    assert set(attach.environment({"A": "1"})) == {"env_vars"}


def test_a_job_on_an_image(job) -> None:
    """A job that brought no files still gets the package, and keeps the variables that it sets itself."""
    job(env_vars={"A": "of the job"})
    made = attach.environment({"A": "1", "B": "2"})

    assert made["py_modules"] == [HOME]
    assert "A" not in made["env_vars"]
    assert made["env_vars"]["B"] == "2"


def test_the_shipped_copy_is_the_one_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker runs first imports the package from what was shipped, not from an older folder."""
    shipped = tmp_path / "py_modules_files" / "_ray_pkg_1"
    for place, version in ((shipped, "new"), (tmp_path / "older", "old")):
        (place / "rayddl").mkdir(parents=True)
        (place / "rayddl" / "__init__.py").write_text(f"VERSION = {version!r}\n")
    for name in [name for name in sys.modules if name.split(".")[0] == "rayddl"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "older"), *sys.path])
    monkeypatch.setenv("PYTHONPATH", str(shipped))
    attach.environment({})["worker_process_setup_hook"]()
    found = sys.modules["rayddl"]
    monkeypatch.delitem(sys.modules, "rayddl")

    assert found.VERSION == "new"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Version mismatch: The cluster was started with: Ray: 2.59.0"),
        RuntimeError("RPC error: InvalidAuthToken: Authentication token is missing"),
        ConnectionError("Could not find any running Ray instance"),
    ],
)
def test_a_cluster_that_cannot_be_used(error: Exception, monkeypatch: pytest.MonkeyPatch, job) -> None:
    """What keeps this process from a cluster is said with what to do, whatever Ray wraps it in."""
    ray = pytest.importorskip("ray")
    wait, seen = attach._ATTEMPTS, []

    def refuse(**asked: object) -> None:
        seen.append(os.environ.get(wait))
        raise ConnectionError("Failed to connect to Ray cluster") from error

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.delenv(wait, raising=False)
    with raises("attach-failed"):
        attach.start("auto", {})
    assert (seen, os.environ.get(wait)) == ([attach.ATTEMPTS], None)
