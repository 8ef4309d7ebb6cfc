"""A run as a RayJob, which the KubeRay operator turns into a cluster, the run on it, and the end of both."""

from __future__ import annotations

import platform
import re
import shlex
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import yaml

from rayddl.errors import UserError
from rayddl.jobs.shipping import DEFINITION, written
from rayddl.pipeline.definition import Definition
from rayddl.stages.runtime.capacity import Group

FOLDER = "/etc/rayddl"
"""Where the definition lies in the pods."""
_GIB = 2**30


@dataclass(frozen=True)
class Shape:
    """What the cluster is made of."""

    image: str | None
    """Holds rayddl with its environment, and ``python`` on the path."""
    gpus: int = 1
    """Most workers with one GPU each; they come as they are asked for."""
    cpus: int = 2
    """Most workers without."""
    cpus_each: int = 4
    memory_each: int = 16 * _GIB
    """Bytes of each worker."""


def manifest_of(definition: Definition, out: str, shape: Shape) -> str:
    """The YAML documents for ``kubectl apply``: the definition as a ConfigMap, and the RayJob that runs it.

    Raises :class:`UserError` without an image, and for a name that Kubernetes does not take.
    """
    if shape.image is None:
        raise UserError(
            f"--manifest needs --image: one with rayddl in it, made from {base_image()} (the README's section on "
            "KubeRay has its two lines)"
        )
    name = re.sub(r"[._]+", "-", definition.name).strip("-")
    # KubeRay appends to the name, and services' names have 63 characters.
    if len(name) > 40:
        raise UserError(
            f"the definition's name {definition.name!r} is too long for Kubernetes: 40 characters at most"
        )
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{name}-definition"},
        "data": {DEFINITION: written(definition)},
    }
    documents = (config, _job(name, out, shape))
    return "---\n".join(yaml.dump(d, Dumper=_Dumper, sort_keys=False, width=110) for d in documents)


def base_image() -> str:
    """The image of Ray that fits the Ray and Python here; rayddl is added to it."""
    return f"rayproject/ray:{version('ray')}-py{''.join(platform.python_version_tuple()[:2])}"


def _job(name: str, out: str, shape: Shape) -> dict[str, Any]:
    command = ["python", "-m", "rayddl", "run", f"{FOLDER}/{DEFINITION}", "--address", "auto", "--out", out]
    config = f"{name}-definition"
    groups = [
        _workers(kind, config, shape, most, gpu=kind == "gpu")
        for kind, most in (("gpu", shape.gpus), ("cpu", shape.cpus))
        if most
    ]
    # The run knows then what it may wait for, and how many units to have ready.
    for group in groups:
        each = {"CPU": float(shape.cpus_each)} | ({"GPU": 1.0} if group["groupName"] == "gpu" else {})
        command += ["--grows", str(Group(group["maxReplicas"], each))]
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name},
        "spec": {
            "entrypoint": shlex.join(command),
            # What was done is kept under --out, and a second attempt goes on from there.
            "backoffLimit": 2,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "rayClusterSpec": {
                "rayVersion": version("ray"),
                "enableInTreeAutoscaling": True,
                "authOptions": {"mode": "token"},
                "headGroupSpec": {
                    # The head keeps the books and the driver; its CPUs are not for the stages' work.
                    "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},  # noqa: S104
                    "template": _pod("ray-head", config, shape.image, cpus=2, memory=8 * _GIB, gpus=0),
                },
                "workerGroupSpecs": groups,
            },
        },
    }


def _workers(name: str, config: str, shape: Shape, most: int, *, gpu: bool) -> dict[str, Any]:
    return {
        "groupName": name,
        "replicas": 0,
        "minReplicas": 0,
        "maxReplicas": most,
        "rayStartParams": {},
        "template": _pod(
            "ray-worker", config, shape.image, cpus=shape.cpus_each, memory=shape.memory_each, gpus=int(gpu)
        ),
    }


def _pod(
    container: str, config: str, image: str | None, *, cpus: int, memory: int, gpus: int
) -> dict[str, Any]:
    asked: dict[str, Any] = {"cpu": cpus, "memory": f"{memory // _GIB}Gi"}
    if gpus:
        asked["nvidia.com/gpu"] = gpus
    return {
        "spec": {
            "containers": [
                {
                    "name": container,
                    "image": image,
                    # Equal requests and limits: Ray counts what it is promised, and a pod above that is killed.
                    "resources": {"requests": dict(asked), "limits": dict(asked)},
                    "volumeMounts": [{"name": "definition", "mountPath": FOLDER, "readOnly": True}],
                }
            ],
            "volumes": [{"name": "definition", "configMap": {"name": config}}],
        }
    }


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as such, so that the definition stays readable."""

    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
