"""``cluster.yaml`` is what Ray's launcher takes, what docs/cluster.md says, and no more open than it must be."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
DOCS = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
TOML = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = TOML["project"]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    """The file as Ray's launcher completes it, which needs no network."""
    from ray.autoscaler._private.util import prepare_config

    prepared: dict[str, Any] = prepare_config(yaml.safe_load(TEXT))
    return prepared


def commands(cluster: dict[str, Any]) -> str:
    names = ("head_setup_commands", "worker_setup_commands", "head_start_ray_commands")
    return "\n".join(line for name in (*names, "worker_start_ray_commands") for line in cluster[name])


def test_ray_accepts_the_file(cluster: dict[str, Any]) -> None:
    """The file fits Ray's own schema, and so it does completed with Ray's defaults."""
    import jsonschema
    from ray.autoscaler._private.util import validate_config

    validate_config(cluster)
    assert set(yaml.safe_load(TEXT)) <= set(cluster)
    with pytest.raises(jsonschema.ValidationError):
        validate_config({**cluster, "max_workers": "many"})


def test_versions_are_those_of_the_project() -> None:
    """The file's Ray and Python lie in the ranges that the project declares."""
    ray = next(r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "ray")
    (pinned,) = set(re.findall(r"ray\.__version__ == '([\d.]+)'", TEXT))
    (python,) = re.findall(r"--python (\d\.\d+)\b", TEXT)
    assert ray.specifier.contains(pinned)
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{python}.0")
    assert f"expects {pinned}" in TEXT


def test_every_machine_ends_with_the_locked_environment(cluster: dict[str, Any]) -> None:
    """Head and workers are set up by the same commands, from the lock file and the package's own files."""
    head, workers = cluster["head_setup_commands"], cluster["worker_setup_commands"]
    assert head[: len(workers)] == workers
    assert any("uv sync --frozen" in line for line in workers)
    assert {"uv.lock", "pyproject.toml"} <= {Path(p).name for p in cluster["file_mounts"]}
    inside = [p for p in cluster["file_mounts"].values() if p.startswith("./") and p != "./uv.lock"]
    assert inside
    assert all((ROOT / path).exists() for path in inside)
    # The build of the package takes more than its modules.
    built = TOML["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert {f"./{path}" for path in built} <= set(inside)


def test_nothing_is_open_but_ssh(cluster: dict[str, Any]) -> None:
    """No rule opens a port beyond the launcher's own for SSH; the dashboard listens on loopback, with a token."""
    from ray.autoscaler._private.aws.config import _create_default_inbound_rules

    rules = _create_default_inbound_rules(
        {"group"}, cluster["provider"]["security_group"].get("IpPermissions", [])
    )
    world = [rule for rule in rules if "IpRanges" in rule]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in world] == [(22, 22)]
    starts = [line for line in commands(cluster).splitlines() if "ray start" in line]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in line for line in starts)
    assert "--dashboard-host=127.0.0.1" in commands(cluster)


def test_gpu_workers_fall_back_on_machines_at_full_price(cluster: dict[str, Any]) -> None:
    """Two groups of the same shape, spot first; decoders' machines have no GPU, and the head takes no work."""
    types = cluster["available_node_types"]
    spot, fallback = types["gpu_spot"], types["gpu_on_demand"]
    market = spot["node_config"].pop("InstanceMarketOptions")
    assert market == {"MarketType": "spot"}
    assert spot["node_config"] == fallback["node_config"]
    assert spot["resources"] == fallback["resources"]
    assert spot["priority"] > fallback["priority"]
    assert types[cluster["head_node_type"]]["resources"] == {"CPU": 0}
    assert "GPU" not in types["cpu"]["resources"]


def test_the_documentation_types_what_the_file_says() -> None:
    """The commands in the file's head are those of docs/cluster.md, in the same order."""
    section = DOCS.split("### Start and stop", 1)[1]
    typed = re.search(r"```bash\n(.*?)```", section, re.DOTALL)
    said = re.findall(r"^#   ((?:uv|export) .*)$", TEXT, re.MULTILINE)
    assert typed is not None
    assert said == typed[1].splitlines()


def test_the_documentation_lists_the_files_machines(cluster: dict[str, Any]) -> None:
    """The table of machines has each type with its CPUs, GPUs and disk."""
    for name, kind in cluster["available_node_types"].items():
        machine = kind["node_config"]["InstanceType"]
        row = next(line for line in DOCS.splitlines() if line.startswith("|") and machine in line)
        *_, spills, resources = (cell.strip() for cell in row.strip("|").split("|"))
        (root,) = (disk["Ebs"]["VolumeSize"] for disk in kind["node_config"]["BlockDeviceMappings"])
        assert f"{root} GB root disk" in spills or "NVMe" in spills
        said = {"head": "none"}.get(name, str(kind["resources"]["CPU"]))
        assert resources.startswith(said)
        assert (", 1 (" in resources) == ("GPU" in kind["resources"])


def started(cluster: dict[str, Any], kind: str) -> dict[str, Any]:
    """The options of the `ray start` of ``head`` or ``worker``, as the installed Ray reads them."""
    import click
    from ray.scripts.scripts import start

    (line,) = (line for line in cluster[f"{kind}_start_ray_commands"] if "ray start" in line)
    words = shlex.split(line.partition("ray start ")[2])
    context = click.Context(start)
    start.parse_args(context, words)
    return context.params


def test_objects_spill_to_a_folder_that_setup_makes(cluster: dict[str, Any], tmp_path: Path) -> None:
    """Head and workers spill to the folder that the setup commands make for Ray's user."""
    (folder,) = {started(cluster, kind)["object_spilling_directory"] for kind in ("head", "worker")}
    for kind in ("head", "worker"):
        (line,) = (line for line in cluster[f"{kind}_setup_commands"] if folder in line)
        # In a place of our own, and with a sudo that only runs what it is given.
        (tmp_path / "sudo").write_text('#!/bin/sh\nexec "$@"\n')
        (tmp_path / "sudo").chmod(0o755)
        target = tmp_path / kind / "deep" / "spill"
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        subprocess.run(["/bin/bash", "-euc", line.replace(folder, str(target))], env=environment, check=True)
        assert target.is_dir()
        assert os.access(target, os.W_OK)
        assert target.stat().st_uid == os.getuid()


def test_the_head_keeps_memory_for_drivers(cluster: dict[str, Any]) -> None:
    """The head's object store is bounded, and the workers' is left to Ray, which takes 30 %."""
    assert started(cluster, "head")["object_store_memory"] == 8 * 2**30
    assert started(cluster, "worker")["object_store_memory"] is None


def test_machines_are_ended_not_stopped(cluster: dict[str, Any]) -> None:
    """Nothing that is taken down keeps a disk."""
    assert cluster["provider"]["cache_stopped_nodes"] is False


def test_all_groups_can_be_full_together(cluster: dict[str, Any]) -> None:
    """The file's own limit does not keep away nodes that a run counts on by their groups."""
    types = cluster["available_node_types"].values()
    assert cluster["max_workers"] >= sum(kind["max_workers"] for kind in types)
