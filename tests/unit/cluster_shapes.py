"""The clusters that ``cluster.yaml`` and the KubeRay manifest make, as a run sees them: alone, growing and full."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from rayddl.jobs.manifest import manifest_of
from rayddl.jobs.shape import Shape
from rayddl.pipeline.definition import load as definition
from rayddl.stages.runtime import capacity
from rayddl.stages.runtime.capacity import HEAD, Capacity, Group

ROOT = Path(__file__).resolve().parents[2]
DIGITS = {
    "name": "shapes",
    "source": {"name": "digits"},
    "stages": {"experts": {"kind": "experts", "net": {"name": "mlp"}, "count": 1, "epochs": 1}},
}


def launcher_shapes() -> dict[str, Capacity]:
    """``cluster.yaml``'s cluster: ``head`` is the head alone, ``one`` has a GPU node, ``full`` has every node."""
    prepared = launched_config()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ray_bootstrap_config.yaml"
        file.write_text(yaml.safe_dump(prepared, sort_keys=False), encoding="utf-8")
        groups = capacity.launched(str(file))
    head = prepared["available_node_types"][prepared["head_node_type"]]["resources"]
    return _shapes(head, groups)


def kuberay_shapes(shape: Shape | None = None) -> dict[str, Capacity]:
    """The manifest's cluster in the same three sizes; its groups are those that the run in it is told of."""
    job = rayjob(shape or Shape("registry/rayddl:1", gpus=8, cpus=4))
    head = autoscaled(job)["available_node_types"]["headgroup"]["resources"]
    words = job["spec"]["entrypoint"].split()
    groups = tuple(capacity.parse(words[i + 1]) for i, word in enumerate(words) if word == "--grows")
    return _shapes(head, groups)


def small() -> Capacity:
    """One machine of one CPU and one GPU."""
    return Capacity((node({"CPU": 1.0, "GPU": 1.0, "memory": 8.0 * 2**30}, head=True),))


def rayjob(shape: Shape) -> dict[str, Any]:
    """The RayJob of a manifest of that shape."""
    text = manifest_of(definition.load(DIGITS), "s3://bucket/runs", shape)
    (job,) = (d for d in yaml.safe_load_all(text) if d["kind"] == "RayJob")
    return dict(job)


def autoscaled(job: Mapping[str, Any]) -> dict[str, Any]:
    """What Ray's autoscaler makes of the RayJob's cluster."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    cluster = {"metadata": {"name": "shapes", "namespace": "default"}, "spec": job["spec"]["rayClusterSpec"]}
    derived: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(cluster)
    return derived


@lru_cache(maxsize=1)
def launched_config() -> dict[str, Any]:
    """``cluster.yaml`` as Ray's launcher leaves it on the head: with the memory and accelerators of EC2's machines,
    which moto knows.
    """
    from moto import mock_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config

    prepared = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8")))
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    with mock.patch.dict(os.environ, keys), mock_aws():
        filled: dict[str, Any] = AWSNodeProvider.fillout_available_node_types_resources(prepared)
    return filled


def node(resources: Mapping[str, float], *, head: bool = False, index: int = 0) -> dict[str, float]:
    """A node as Ray reports it: what it has none of is left out, and it has a resource of its own."""
    own = {f"node:10.0.0.{index}": 1.0, "object_store_memory": 8.0 * 2**30} | ({HEAD: 1.0} if head else {})
    return {name: float(value) for name, value in resources.items() if value} | own


def _shapes(head: Mapping[str, float], groups: tuple[Group, ...]) -> dict[str, Capacity]:
    first = (node(head, head=True),)
    every = [group.resources for group in groups for _ in range(group.most)]
    (gpu, *_) = (resources for resources in every if resources.get("GPU"))
    workers = tuple(node(resources, index=k + 1) for k, resources in enumerate(every))
    return {
        "head": Capacity(first, groups),
        "one": Capacity((*first, node(gpu, index=1)), groups),
        "full": Capacity((*first, *workers), groups),
    }
