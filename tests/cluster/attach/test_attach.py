"""`--address`: the package travels with the run, and folders that a node does not see are refused."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.ray

DEFINITION = """
name: small
source: {name: digits}
stages:
  experts:
    {kind: experts, net: {name: convnet, depth: 1, width: 8}, count: 2, epochs: 1, batch: 64, lr: 0.05,
     augment: flip_color, compile: false}
"""
PLUGIN = """
import rayddl

def line(num_classes, channels, size):
    from torch import nn

    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, num_classes))

plugin = rayddl.Plugin(name="own", nets={"line": line})
"""
CORESET = """
name: small
source: {name: digits}
stages:
  picked: {kind: coreset, method: random, ipc: 1}
"""


@pytest.fixture
def definition(tmp_path: Path) -> Path:
    """The folder in which a small definition lies."""
    (tmp_path / "small.yaml").write_text(DEFINITION)
    return tmp_path


def test_nodes_without_the_package(make_cluster, bare_python, definition) -> None:
    """A run on a node whose Python has no rayddl uses the copy that came with it, also where an older checkout lies
    in the folder that the command was typed in. A plugin's network comes with it too.
    """
    (definition / "own.py").write_text(PLUGIN)
    cluster = make_cluster()
    cluster.node(python=bare_python)
    stale = definition / "rayddl"
    stale.mkdir()
    (stale / "__init__.py").write_text("raise ImportError('an older checkout')\n")
    alone = subprocess.run(
        [bare_python, "-c", "import torch, rayddl"],
        cwd="/", env=cluster.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    plugin = ("--plugin", "own.py", "--set", "experts.net=line")
    ran = cluster.rayddl("run", "small.yaml", *plugin, "--out", str(definition / "runs"), cwd=definition)

    assert "No module named 'rayddl'" in alone.stderr
    assert ran.returncode == 0, ran.stderr
    assert len(list(definition.glob("runs/experts-*/expert-*.safetensors"))) == 2
    assert list(definition.glob("runs/.rayddl-seen-*")) == []


@pytest.fixture(scope="module")
def blind(make_cluster, unshared) -> tuple[Any, Path, Any]:
    """A cluster, a folder, and the cluster's one node, which does not see the folder."""
    cluster = make_cluster()
    hidden = cluster.folder / "here"
    hidden.mkdir()
    return cluster, hidden, cluster.node(hidden=hidden)


def test_evaluate_where_workers_share_out_alone(blind, definition) -> None:
    """`rayddl evaluate` leaves what workers write where they all see it, not in this machine's temporary folder."""
    cluster, hidden, _ = blind
    (definition / "small.yaml").write_text(CORESET)
    made = cluster.rayddl("run", "small.yaml", "--out", str(definition / "runs"), cwd=definition)
    assert made.returncode == 0, made.stderr
    (found,) = definition.glob("runs/picked-*/set")
    judged = cluster.rayddl(
        "evaluate", str(found), "--net", "convnet", "--seeds", "1", "--epochs", "1",
        "--out", str(definition / "runs"), cwd=definition, TMPDIR=str(hidden),
    )  # fmt: skip

    assert judged.returncode == 0, judged.stderr
    assert "convnet" in judged.stdout
    assert list(definition.glob("runs/.*")) == []


def test_a_local_out_that_a_node_does_not_see(blind, definition) -> None:
    """A run with a folder that one node does not see is refused before a stage starts, and one that all nodes see
    is not. A dead node and a head without CPUs do not count.
    """
    cluster, hidden, node = blind
    cluster.node()
    refused = cluster.rayddl("run", "small.yaml", "--out", str(hidden / "runs"), cwd=definition)
    shared = cluster.rayddl("run", "small.yaml", "--out", str(definition / "runs"), cwd=definition)
    cluster.kill(node)
    alive = cluster.rayddl("run", "small.yaml", "--out", str(hidden / "runs"), cwd=definition)

    assert refused.returncode == 2, refused.stderr
    assert "has no such folder" in refused.stderr
    assert "s3://bucket/runs" in refused.stderr
    assert shared.returncode == 0, shared.stderr
    assert alive.returncode == 0, alive.stderr
    record = json.loads((hidden / "runs" / "small.run.json").read_text())
    assert record["stages"]["experts"]["state"] == "done"
