"""A run as a RayJob: the KubeRay operator creates a cluster, runs the job on it, and deletes the cluster."""

from __future__ import annotations

import platform
import re
import shlex
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import yaml

from rayddl import yaml_text
from rayddl.errors import UserError
from rayddl.jobs import shipping
from rayddl.jobs.shape import GPU_NODES, Shape, Toleration, written_memory
from rayddl.jobs.shipping import DEFINITION, written
from rayddl.pipeline.definition.load import Definition
from rayddl.stages.runtime.capacity import Group

FOLDER = "/etc/rayddl"
"""Folder of the definition in the pods."""
SPILL = "/var/ray-spill"
"""Folder to which a pod's object store spills, on the node's disk; deleted with the pod."""
STORE_PART = 0.3
"""Share of a pod's memory for the object store in /dev/shm; equal to Ray's default."""
_LONGEST = 40


def manifest_of(definition: Definition, out: str, shape: Shape) -> str:
    """Return the YAML documents for ``kubectl apply``: the definition as a ConfigMap, and the RayJob that runs it.

    Raises :class:`UserError` without an image, for a name that is too long for Kubernetes, and for relative paths.
    """
    if shape.image is None:
        raise UserError(
            f"--manifest needs --image: one with rayddl in it, made from {base_image()} (docs/cluster.md, "
            "'On Kubernetes', has its two lines)",
            code="manifest-without-image",
        )
    name = re.sub(r"[._]+", "-", definition.name).strip("-")
    # KubeRay makes names of services of it, which begin with a letter.
    name = name if name[0].isalpha() else f"run-{name}"
    # KubeRay appends to the name, and names of services are limited to 63 characters.
    if len(name) > _LONGEST:
        raise UserError(
            f"the definition's name {definition.name!r} is too long for Kubernetes: {name!r} has {len(name)} "
            f"characters, and at most {_LONGEST} leave room for what KubeRay appends; give a shorter one, such as with "
            "--set name=NAME",
            code="name-too-long-for-kubernetes",
        )
    for where, value in shipping.paths_not_on_cluster(definition):
        raise UserError(
            f"{where}={value!r} is a path on this machine that the pods do not have; give a URI or a full path that "
            "the image or a volume of all pods has",
            code="path-not-on-cluster",
        )
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{name}-definition"},
        "data": {DEFINITION: written(definition)},
    }
    documents = (config, _job(name, out, shape))
    return "---\n".join(yaml_text.dump(d, dumper=_Dumper, width=110) for d in documents)


def base_image() -> str:
    """Return the base image of Ray with the versions of Ray and Python of this environment; it lacks rayddl."""
    return f"rayproject/ray:{version('ray')}-py{''.join(platform.python_version_tuple()[:2])}"


def _job(name: str, out: str, shape: Shape) -> dict[str, Any]:
    command = ["python", "-m", "rayddl", "run", f"{FOLDER}/{DEFINITION}", "--address", "auto", "--out", out]
    config = f"{name}-definition"
    groups = [
        _workers(kind, config, shape, most, gpu=kind == "gpu")
        for kind, most in (("gpu", shape.gpus), ("cpu", shape.cpus))
        if most
    ]
    # With --grows the run knows for which nodes it may wait, and how many tasks to keep ready.
    for group in groups:
        each = {"CPU": float(shape.cpus_each)} | ({"GPU": 1.0} if group["groupName"] == "gpu" else {})
        each["memory"] = float(_heap(shape.memory_each))
        command += ["--grows", str(Group(group["maxReplicas"], each))]
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name},
        "spec": {
            "entrypoint": shlex.join(command),
            # Results are kept under --out, and a second attempt continues from them.
            "backoffLimit": 2,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "rayClusterSpec": {
                "rayVersion": version("ray"),
                "enableInTreeAutoscaling": True,
                "authOptions": {"mode": "token"},
                "headGroupSpec": {
                    # The head runs only Ray's services and the driver, no tasks of stages.
                    "rayStartParams": {
                        "num-cpus": "0",
                        "dashboard-host": "0.0.0.0",  # noqa: S104
                        **_memory_params(shape.head_memory),
                    },
                    "template": _pod("ray-head", config, shape.image, cpus=2, memory=shape.head_memory),
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
        "rayStartParams": _memory_params(shape.memory_each),
        "template": _pod(
            "ray-worker",
            config,
            shape.image,
            cpus=shape.cpus_each,
            memory=shape.memory_each,
            gpus=int(gpu),
            tolerations=(GPU_NODES, *shape.tolerations) if gpu else (),
        ),
    }


def _memory_params(memory: int) -> dict[str, str]:
    """Return Ray's division of a pod's memory. KubeRay would give tasks all of it and add the object store."""
    return {
        "memory": str(_heap(memory)),
        "object-store-memory": str(memory - _heap(memory)),
        "object-spilling-directory": SPILL,
    }


def _heap(memory: int) -> int:
    return memory - int(memory * STORE_PART)


def _pod(
    container: str,
    config: str,
    image: str | None,
    *,
    cpus: int,
    memory: int,
    gpus: int = 0,
    tolerations: Sequence[Toleration] = (),
) -> dict[str, Any]:
    asked: dict[str, Any] = {"cpu": cpus, "memory": written_memory(memory)}
    if gpus:
        asked["nvidia.com/gpu"] = gpus
    tolerated = {"tolerations": [dict(taint.spec()) for taint in tolerations]} if tolerations else {}
    return {
        "spec": {
            **tolerated,
            "containers": [
                {
                    "name": container,
                    "image": image,
                    # Equal requests and limits: Ray schedules by its memory, and a pod above the limit is killed.
                    "resources": {"requests": dict(asked), "limits": dict(asked)},
                    "volumeMounts": [
                        {"name": "definition", "mountPath": FOLDER, "readOnly": True},
                        {"name": "spill", "mountPath": SPILL},
                    ],
                }
            ],
            "volumes": [
                {"name": "definition", "configMap": {"name": config}},
                {"name": "spill", "emptyDir": {}},
            ],
        }
    }


class _Dumper(yaml_text.Dumper):
    """Writes multi-line strings as YAML blocks, so that the definition stays readable."""

    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    return yaml_text.text(dumper, value, "|" if "\n" in value else None)


_Dumper.add_representer(str, _text)
