"""``cluster.yaml`` is what Ray's launcher takes, what the README says, and no more open than it must be."""

from __future__ import annotations

import re
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
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


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


def test_the_readme_types_what_the_file_says() -> None:
    """The commands in the file's head are the README's, in the same order."""
    section = README.split("### On AWS, from nothing", 1)[1]
    typed = re.search(r"```bash\n(.*?)```", section, re.DOTALL)
    said = re.findall(r"^#   (uv .*)$", TEXT, re.MULTILINE)
    assert typed is not None
    assert said == typed[1].splitlines()
