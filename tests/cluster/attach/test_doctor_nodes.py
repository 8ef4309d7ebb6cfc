"""`rayddl doctor --address`: what is wrong with a cluster's nodes is found before a run does."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytestmark = pytest.mark.ray


def the(rows: list[dict[str, str]], found: str) -> dict[str, str]:
    """The row whose finding begins so."""
    (row,) = (row for row in rows if row["found"].startswith(found))
    return row


@pytest.fixture(scope="module")
def cluster(make_cluster) -> Any:
    """A cluster of a head alone."""
    return make_cluster()


def test_nodes_that_would_fail(cluster, bare_python, unshared, tmp_path) -> None:
    """A node that was started with GPUs that it does not have, one without torch, and one that does not see --out are
    named with what to do; a node that only lacks rayddl, and the head without CPUs, are fine.
    """
    hidden = cluster.folder / "here"
    hidden.mkdir()
    cluster.node("--num-gpus=2", python=bare_python, hidden=hidden)
    (site,) = (tmp_path / "bare").glob("lib/python*/site-packages")
    cluster.node(python=bare_python)
    found = cluster.rayddl("doctor", "--json", "--out", str(hidden / "runs"), cwd=tmp_path)
    (site / "torch").unlink()
    (site / "torch").mkdir()
    broken = cluster.rayddl("doctor", "--json", cwd=tmp_path)

    assert found.returncode == 1, found.stderr
    rows = json.loads(found.stdout)
    head, liar, plain = (the(rows, has) for has in ("0 CPU, 0 GPU", "1 CPU, 2 GPU", "1 CPU, 0 GPU"))
    assert (head["state"], plain["state"]) == ("fine", "fine"), rows
    assert head["name"].startswith("head ")
    assert liar["state"] == "fails"
    assert "Ray was started with 2 GPUs, torch sees 0" in liar["advice"]
    assert "--num-gpus=0" in liar["advice"]
    out = the(rows, "not on 1 of 2")
    assert (out["state"], out["name"]) == ("fails", f"--out {hidden / 'runs'} on every node")
    assert "has no such folder" in out["advice"]
    assert not (hidden / "runs").exists()
    assert the(rows, "the cluster asks for a token")["state"] == "fine"
    rows = json.loads(broken.stdout)
    head, liar, plain = (the(rows, has) for has in ("0 CPU, 0 GPU", "1 CPU, 2 GPU", "1 CPU, 0 GPU"))
    assert [row["state"] for row in (head, liar, plain)] == ["fine", "fails", "fails"], rows
    assert "torch cannot be imported" in plain["advice"]


def test_clusters_that_cannot_be_used(cluster, tmp_path) -> None:
    """A cluster that does not answer, and one whose token is another, are a row that fails, with what to do."""
    refused = cluster.rayddl("doctor", "--json", cwd=tmp_path, RAY_AUTH_TOKEN="f" * 64)
    address, cluster.address = cluster.address, "127.0.0.1:9"
    absent = cluster.rayddl("doctor", "--json", cwd=tmp_path)
    cluster.address = address

    for ended, advice in ((refused, "RAY_AUTH_TOKEN"), (absent, "ray start --head")):
        assert ended.returncode == 1, ended.stderr
        row = json.loads(ended.stdout)[-1]
        assert (row["found"], row["state"]) == ("cannot be used", "fails")
        assert advice in row["advice"]
