"""`rayddl submit --manifest`: the RayJob that is printed, and the options that shape its cluster."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from rayddl.cli.app import app
from rayddl.errors import UserError
from rayddl.jobs import shape
from rayddl.jobs.manifest import manifest_of
from rayddl.jobs.shape import Shape, Toleration
from rayddl.pipeline import plan as plans
from rayddl.pipeline.definition import load as definitions
from tests.raising import raises

GIB = 2**30
BASE = """
name: base
source: {name: digits}
stages:
  experts: {kind: experts, net: {name: convnet, depth: 1, width: 8}, count: 4, epochs: 5}
"""
OPTIONS = ["--out", "s3://bucket/runs", "--manifest", "--image", "registry/rayddl:1"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a definition."""
    (tmp_path / "base.yaml").write_text(BASE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prints(definition: definitions.Definition) -> list[str]:
    return [stage.fingerprint for stage in plans.make(definition, "runs", lambda _: "images").stages]


def cluster_of(made: Shape) -> dict[str, Any]:
    """The cluster in the manifest, with its worker groups by name."""
    text = manifest_of(definitions.load(yaml.safe_load(BASE)), "s3://bucket/runs", made)
    _, job = yaml.safe_load_all(text)
    cluster = job["spec"]["rayClusterSpec"]
    return {**cluster, "workers": {group["groupName"]: group for group in cluster["workerGroupSpecs"]}}


def pods_of(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


@pytest.mark.parametrize("root", ["photos", "../photos"])
def test_paths_that_pods_do_not_have_are_refused(root: str) -> None:
    """A URI, or a path that a volume of the pods may have, is not."""
    source = {"name": "imagefolder", "size": 8}

    def printed(where: str) -> str:
        definition = definitions.load({**yaml.safe_load(BASE), "source": {**source, "root": where}})
        return manifest_of(definition, "s3://bucket/runs", Shape("registry/rayddl:1"))

    assert "s3://bucket/photos" in printed("s3://bucket/photos")
    assert "/data/photos" in printed("/data/photos")
    with raises("path-not-on-cluster"):
        printed(root)


def test_a_manifest_holds_the_run(here: Path) -> None:
    """The RayJob runs the definition that its ConfigMap holds, on workers with and without GPUs, with a token."""
    local = definitions.load("base.yaml", {"name": "my.run_1"})
    config, job = yaml.safe_load_all(
        manifest_of(local, "s3://bucket/runs", Shape("registry/rayddl:1", gpus=8))
    )
    (here / "d.yaml").write_text(config["data"]["definition.yaml"])
    assert prints(definitions.load("d.yaml")) == prints(local)
    assert (job["apiVersion"], job["kind"], job["metadata"]["name"]) == ("ray.io/v1", "RayJob", "my-run-1")
    assert job["spec"]["entrypoint"] == (
        "python -m rayddl run /etc/rayddl/definition.yaml --address auto --out s3://bucket/runs "
        "--grows 8xCPU:4,GPU:1,memory:12025908429 --grows 2xCPU:4,memory:12025908429"
    )
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert (groups["gpu"]["maxReplicas"], groups["cpu"]["maxReplicas"]) == (8, 2)
    pods = pods_of(cluster)
    for pod in pods:
        (container,), (volume, _) = pod["containers"], pod["volumes"]
        assert container["image"] == "registry/rayddl:1"
        assert container["volumeMounts"][0]["mountPath"] == "/etc/rayddl"
        assert volume["configMap"]["name"] == config["metadata"]["name"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
    gpus = ["nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"] for pod in pods]
    assert gpus == [False, True, False]


def test_a_manifest_needs_an_image_and_a_name(here: Path) -> None:
    """Without an image the message names the base image; a name too long for Kubernetes is refused."""
    with raises("manifest-without-image"):
        manifest_of(definitions.load("base.yaml"), "s3://bucket/runs", Shape(None))
    for long in ("x" * 41, "1" * 37):
        with raises("name-too-long-for-kubernetes"):
            manifest_of(definitions.load("base.yaml", {"name": long}), "s3://bucket/runs", Shape("image"))


@pytest.mark.parametrize(
    ("name", "expected"), [("8-classes", "run-8-classes"), ("1" * 36, "run-" + "1" * 36), ("a.1_", "a-1")]
)
def test_a_name_is_one_that_kuberay_takes(name: str, expected: str) -> None:
    """It begins with a letter and ends with a letter or digit, as RFC 1035 asks of names of services."""
    definition = definitions.load({**yaml.safe_load(BASE), "name": name})
    config, job = yaml.safe_load_all(manifest_of(definition, "s3://bucket/runs", Shape("image")))
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", job["metadata"]["name"])
    assert (job["metadata"]["name"], config["metadata"]["name"]) == (expected, f"{expected}-definition")


def test_gpu_workers_run_on_tainted_nodes() -> None:
    """The usual taint of GPU nodes and those asked for are tolerated by GPU workers, and by no other pod."""
    made = Shape(
        "image", tolerations=(Toleration("pool", "NoExecute", "gpu"), Toleration("spot", "NoSchedule"))
    )
    head, gpu, cpu = pods_of(cluster_of(made))
    assert gpu["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "pool", "operator": "Equal", "value": "gpu", "effect": "NoExecute"},
        {"key": "spot", "operator": "Exists", "effect": "NoSchedule"},
    ]
    assert "tolerations" not in head | cpu


def test_objects_spill_to_a_volume_of_the_pod() -> None:
    """Every pod has a disk folder that Ray spills to."""
    cluster = cluster_of(Shape("image"))
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (name,) = (volume["name"] for volume in pod["volumes"] if volume.get("emptyDir") == {})
        mounts = {mount["name"]: mount for mount in pod["containers"][0]["volumeMounts"]}
        assert mounts[name] == {
            "name": name,
            "mountPath": group["rayStartParams"]["object-spilling-directory"],
        }


def test_ray_start_knows_the_parameters() -> None:
    """Each is an option of the installed Ray's `ray start`, which KubeRay calls with them, all as text."""
    from ray.scripts.scripts import start

    options = {name.removeprefix("--") for option in start.params for name in option.opts}
    cluster = cluster_of(Shape("image"))
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert {"memory", "object-store-memory"} <= set(group["rayStartParams"]) <= options
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


@settings(max_examples=20)  # each writes and reads two groups of nodes as YAML
@given(st.integers(2 * GIB, 2**45), st.integers(2 * GIB, 2**45))
def test_tasks_and_object_store_share_a_pods_memory(head: int, worker: int) -> None:
    """Ray's memory for tasks and for the object store add up to the pod's limit, to the byte."""
    cluster = cluster_of(Shape("image", head_memory=head, memory_each=worker))
    groups = {head: cluster["headGroupSpec"], worker: cluster["workers"]["gpu"]}
    for memory, group in groups.items():
        params = group["rayStartParams"]
        assert int(params["memory"]) + int(params["object-store-memory"]) == memory
        assert int(params["memory"]) > memory / 2
        limit = group["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]
        assert shape.parse_memory("--x", limit) == memory


@given(st.integers(0, 2**45))
def test_memory_is_read_back_as_written(amount: int) -> None:
    """The quantity in the manifest has the same number of bytes."""
    assert shape.parse_memory("--head-memory", shape.written_memory(amount)) == amount


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("8Gi", 8 * GIB),
        (" 512Mi ", 2**29),
        ("4G", 4 * 10**9),
        ("1Ti", 2**40),
        ("300", 300),
        ("2M", 2 * 10**6),
    ],
)
def test_amounts_of_memory(text: str, amount: int) -> None:
    """Units are Kubernetes' own, in powers of two or ten."""
    assert shape.parse_memory("--head-memory", text) == amount


@pytest.mark.parametrize(
    "text", ["", "8GB", "8 Gi", "1.5Gi", "-8Gi", "8gi", "Gi", "eight", "8Gi\n8Gi", "٨Gi"]
)
@pytest.mark.parametrize("option", ["--head-memory", "--worker-memory"])
def test_other_amounts_are_refused(option: str, text: str) -> None:
    """The message names the option and shows the form."""
    with pytest.raises(UserError) as caught:
        shape.read({"--image": "image", option: text})
    assert str(caught.value) == (
        f"{option} {text!r} is not an amount of memory; expected a whole number with Mi, Gi, Ti, M, G or T, as in 8Gi"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pool=gpu:NoSchedule", Toleration("pool", "NoSchedule", "gpu")),
        ("pool=:NoExecute", Toleration("pool", "NoExecute", "")),
        ("spot:PreferNoSchedule", Toleration("spot", "PreferNoSchedule")),
        (
            "cloud.example.com/gke-spot=true:NoSchedule",
            Toleration("cloud.example.com/gke-spot", "NoSchedule", "true"),
        ),
    ],
)
def test_taints_are_written_as_kubectl_does(text: str, expected: Toleration) -> None:
    """KEY=VALUE:EFFECT means one value, KEY:EFFECT any."""
    assert shape.parse_toleration(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "pool", "pool=gpu", ":NoSchedule", "pool:Never", "pool:noschedule", "a b:NoSchedule", "-x:NoSchedule",
     "UPPER.com/x:NoSchedule", "a/b/c:NoSchedule", "x" * 64 + ":NoSchedule", "pool=a=b:NoSchedule"],
)  # fmt: skip
def test_other_taints_are_refused(text: str) -> None:
    """The message shows the form and the effects that there are."""
    with pytest.raises(UserError) as caught:
        shape.read({"--image": "image", "--toleration": [text]})
    assert str(caught.value) == (
        f"--toleration {text!r} is not a taint; expected KEY[=VALUE]:EFFECT, with NoSchedule, PreferNoSchedule or "
        "NoExecute as its effect, as in pool=gpu:NoSchedule"
    )


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"image": "two words"}, "image-name-malformed"),
        ({"image": ""}, "image-name-malformed"),
        ({"gpus": -1}, "workers-negative"),
        ({"cpus": -2}, "workers-negative"),
        ({"gpus": 0, "cpus": 0}, "no-workers"),
        ({"cpus_each": 0}, "worker-without-cpu"),
        ({"memory_each": 2**30}, "memory-too-small"),
        ({"head_memory": 1500 * 2**20}, "memory-too-small"),
    ],
)
def test_shapes_that_no_cluster_can_have_are_refused(values: dict[str, Any], code: str) -> None:
    """Each value that cannot work is named by its option."""
    with raises(code):
        Shape(**{"image": "image", **values})


def test_options_shape_the_cluster(here: Path) -> None:
    """Every option of the command line reaches the manifest."""
    sizes = ["--gpus", "3", "--cpus", "0", "--worker-cpus", "6", "--worker-memory", "24Gi"]
    other = ["--head-memory", "12Gi", "--toleration", "pool=gpu:NoSchedule", "--toleration", "spot:NoExecute"]
    ended = CliRunner().invoke(app, ["submit", "base.yaml", *OPTIONS, *sizes, *other])
    assert ended.exit_code == 0, ended.output
    _, job = yaml.safe_load_all(ended.stdout)
    head, gpu = pods_of(job["spec"]["rayClusterSpec"])
    assert head["containers"][0]["resources"]["limits"]["memory"] == "12Gi"
    assert gpu["containers"][0]["resources"]["limits"] == {"cpu": 6, "memory": "24Gi", "nvidia.com/gpu": 1}
    assert [taint["key"] for taint in gpu["tolerations"]] == ["nvidia.com/gpu", "pool", "spot"]
    assert "--grows 3xCPU:6,GPU:1,memory:" in job["spec"]["entrypoint"]


def test_left_out_options_mean_what_the_help_says(here: Path) -> None:
    """The defaults in the help are the manifest's."""
    asked = {
        "--gpus": "1",
        "--cpus": "2",
        "--worker-cpus": "4",
        "--worker-memory": "16Gi",
        "--head-memory": "8Gi",
    }
    given = [word for item in asked.items() for word in item]
    plain = CliRunner().invoke(app, ["submit", "base.yaml", *OPTIONS])
    full = CliRunner().invoke(app, ["submit", "base.yaml", *OPTIONS, *given])
    assert (plain.exit_code, plain.stdout) == (0, full.stdout)
    shown = " ".join(CliRunner().invoke(app, ["submit", "--help"]).output.split())
    for option, value in asked.items():
        assert re.search(rf"{option} [^:]*With --manifest: [^:]*; {value} if not given", shown), option


@pytest.mark.parametrize(
    "given",
    [
        ["--image", "image"], ["--gpus", "1"], ["--cpus", "2"], ["--worker-cpus", "4"], ["--worker-memory", "16Gi"],
        ["--head-memory", "8Gi"], ["--toleration", "pool:NoSchedule"],
    ],
)  # fmt: skip
def test_options_of_the_manifest_are_refused_without_it(here: Path, given: list[str]) -> None:
    """They have no effect on an existing cluster: exit code 2 before the cluster is contacted."""
    out = ["--out", "/mnt/runs", "--address", "http://127.0.0.1:1"]
    ended = CliRunner().invoke(app, ["submit", "base.yaml", *out, *given])
    assert ended.exit_code == 2
    assert ended.stderr == (
        f"error: {given[0]} describes a cluster for kubectl; add --manifest, or leave it out\n"
    )


@pytest.mark.parametrize(
    "given",
    [["--with", "base.yaml"], ["--address", "http://127.0.0.1:1"], ["--grows", "2xCPU:4"], ["--json"]],
)
def test_options_of_a_job_are_refused_with_the_manifest(here: Path, given: list[str]) -> None:
    """A manifest ships no files, asks no cluster and knows its own groups."""
    ended = CliRunner().invoke(app, ["submit", "base.yaml", *OPTIONS, *given])
    assert ended.exit_code == 2
    assert ended.stderr == (
        f"error: {given[0]} has no effect with --manifest, which prints a job for kubectl; leave one of the two out\n"
    )


def test_wrong_options_end_with_a_message(here: Path) -> None:
    """A wrong amount or taint on the command line: exit 2, nothing printed."""
    for wrong in (["--head-memory", "8GB"], ["--toleration", "pool"], ["--worker-memory", "1Gi"]):
        ended = CliRunner().invoke(app, ["submit", "base.yaml", *OPTIONS, *wrong])
        assert (ended.exit_code, ended.stdout) == (2, "")
        assert ended.stderr.startswith(f"error: {wrong[0]} ")
