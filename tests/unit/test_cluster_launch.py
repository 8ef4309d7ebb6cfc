"""Ray's launcher with ``cluster.yaml``, and the roles that docs/cluster.md makes, against moto's simulated AWS."""

from __future__ import annotations

import ast
import fnmatch
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore import xform_name
from moto import mock_aws

ROOT = Path(__file__).resolve().parents[2]
DOCS = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
ACCOUNT = "123456789012"
STUB = """#!/bin/sh
if [ "$1" = sts ]; then echo 123456789012; else printf '%s\\t' "$@" >> "$CALLS"; echo >> "$CALLS"; fi
"""
"""Answers as the command line of AWS does to a question for the account, and writes the rest down."""


@dataclass(frozen=True)
class Call:
    """One `aws SERVICE COMMAND` of the documentation."""

    service: str
    command: str
    options: dict[str, str]

    def send(self) -> None:
        """Send it with boto3, whose parameters are the command line's in another spelling."""
        client = boto3.client(self.service, "us-west-2")
        names = client.meta.service_model.operation_model(self._operation(client)).input_shape.members
        spelled = {name.lower(): name for name in names}
        options = {spelled[key.removeprefix("--").replace("-", "")]: v for key, v in self.options.items()}
        getattr(client, self.command.replace("-", "_"))(**options)

    def _operation(self, client: Any) -> str:
        name: str = client.meta.method_to_api_mapping[self.command.replace("-", "_")]
        return name


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> list[Call]:
    """What the documentation's commands send to AWS; files are replaced by their text."""
    folder = tmp_path_factory.mktemp("roles")
    (block,) = (b for b in re.findall(r"```bash\n(.*?)```", DOCS, re.DOTALL) if "aws iam" in b)
    (folder / "aws").write_text(STUB)
    (folder / "aws").chmod(0o755)
    environment = {"PATH": f"{folder}:/usr/local/bin:/usr/bin:/bin", "CALLS": str(folder / "calls")}
    subprocess.run(["/bin/bash", "-euc", block], cwd=folder, env=environment, check=True)
    made = []
    for line in (folder / "calls").read_text().splitlines():
        service, command, *words = line.rstrip("\t").split("\t")
        options = dict(zip(words[::2], words[1::2], strict=True))
        for name, value in options.items():
            if value.startswith("file://"):
                options[name] = (folder / value.removeprefix("file://")).read_text()
        made.append(Call(service, command, options))
    return made


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, calls: list[Call]) -> Iterator[None]:
    """A simulated account in which the documentation's commands were run."""
    from ray.autoscaler._private.aws import config, utils

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    caches = (utils.resource_cache, utils.client_cache, config._get_subnets_or_die)
    with mock_aws():
        for call in calls:
            call.send()
        for cache in caches:
            cache.cache_clear()
        yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    """``cluster.yaml`` as Ray's launcher completes it."""
    from ray.autoscaler._private.util import prepare_config

    prepared: dict[str, Any] = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    return prepared


def policies(calls: list[Call], role: str) -> list[dict[str, Any]]:
    """The statements of every policy of a role."""
    texts = [
        call.options["--policy-document"]
        for call in calls
        if call.command == "put-role-policy" and call.options["--role-name"] == role
    ]
    return [statement for text in texts for statement in json.loads(text)["Statement"]]


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def allowing(calls: list[Call], role: str, action: str) -> list[dict[str, Any]]:
    """The role's statements that allow an action."""
    found = []
    for statement in policies(calls, role):
        assert statement["Effect"] == "Allow"
        if any(fnmatch.fnmatchcase(action, pattern) for pattern in listed(statement["Action"])):
            found.append(statement)
    return found


def role_of(calls: list[Call], profile: str) -> str:
    """The role in an instance profile."""
    assert any(c.options == {"--instance-profile-name": profile} for c in calls)
    (role,) = (
        call.options["--role-name"]
        for call in calls
        if call.command == "add-role-to-instance-profile"
        and call.options["--instance-profile-name"] == profile
    )
    return role


def profiles(cluster: dict[str, Any]) -> tuple[str, set[str]]:
    """The head's instance profile, and those of the workers."""
    names = {
        name: kind["node_config"]["IamInstanceProfile"]["Name"]
        for name, kind in cluster["available_node_types"].items()
    }
    head = names.pop(cluster["head_node_type"])
    return head, set(names.values())


def test_the_head_may_pass_the_workers_role_and_no_other(calls: list[Call], cluster: dict[str, Any]) -> None:
    """The one role that the head's policy passes is the one in the profile of every worker."""
    head, workers = profiles(cluster)
    (worker,) = workers
    (passing,) = allowing(calls, role_of(calls, head), "iam:PassRole")
    assert passing["Resource"] == f"arn:aws:iam::{ACCOUNT}:role/{role_of(calls, worker)}"
    assert passing["Condition"] == {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}
    assert allowing(calls, role_of(calls, worker), "iam:PassRole") == []
    assert role_of(calls, head) != role_of(calls, worker)


def test_machines_may_take_their_roles_and_use_the_bucket(calls: list[Call], cluster: dict[str, Any]) -> None:
    """EC2 may assume both roles, and both read, write and list one bucket."""
    head, workers = profiles(cluster)
    for role in (role_of(calls, name) for name in (head, *workers)):
        (made,) = (
            c.options for c in calls if c.command == "create-role" and c.options["--role-name"] == role
        )
        (trust,) = json.loads(made["--assume-role-policy-document"])["Statement"]
        assert (trust["Principal"], trust["Action"]) == ({"Service": "ec2.amazonaws.com"}, "sts:AssumeRole")
        for action in ("s3:GetObject", "s3:PutObject", "s3:DeleteObject"):
            assert [s["Resource"] for s in allowing(calls, role, action)] == ["arn:aws:s3:::my-bucket/*"]
        assert [s["Resource"] for s in allowing(calls, role, "s3:ListBucket")] == ["arn:aws:s3:::my-bucket"]


def test_the_head_finds_the_workers_images(calls: list[Call], cluster: dict[str, Any]) -> None:
    """Images are parameters of AWS's own, which whoever starts a machine has to be allowed to read."""
    (reading,) = allowing(calls, role_of(calls, profiles(cluster)[0]), "ssm:GetParameters")
    for kind in cluster["available_node_types"].values():
        parameter = kind["node_config"]["ImageId"].removeprefix("resolve:ssm:")
        arn = f"arn:aws:ssm:{cluster['provider']['region']}::parameter{parameter}"
        assert fnmatch.fnmatchcase(arn, reading["Resource"])


def test_the_head_changes_machines_of_its_cluster_alone(calls: list[Call], cluster: dict[str, Any]) -> None:
    """Starting, stopping and ending ask for the tag that Ray gives to this cluster's machines."""
    from ray.autoscaler.tags import TAG_RAY_CLUSTER_NAME

    head = role_of(calls, profiles(cluster)[0])
    own = {"StringEquals": {f"ec2:ResourceTag/{TAG_RAY_CLUSTER_NAME}": cluster["cluster_name"]}}
    for action in ("ec2:TerminateInstances", "ec2:StopInstances", "ec2:StartInstances"):
        assert [statement.get("Condition") for statement in allowing(calls, head, action)] == [own]
    starting = {"StringEquals": {"ec2:CreateAction": "RunInstances"}}
    assert [s.get("Condition") for s in allowing(calls, head, "ec2:CreateTags")] == [starting, own]


def test_the_heads_actions_are_those_that_rays_provider_calls(
    calls: list[Call], cluster: dict[str, Any]
) -> None:
    """Every EC2 operation named in the source of the installed Ray's AWS provider is allowed, and no other.

    A newer Ray that calls more fails here: docs/cluster.md then needs the action too.
    """
    head = role_of(calls, profiles(cluster)[0])
    allowed = {a for s in policies(calls, head) for a in listed(s["Action"]) if a.startswith("ec2:")}
    assert allowed == {f"ec2:{name}" for name in operations_in_provider()}


def operations_in_provider() -> set[str]:
    """EC2 operations behind the attributes that ``node_provider.py`` uses, by boto3's own models."""
    from ray.autoscaler._private.aws import node_provider

    ec2 = boto3.resource(
        "ec2", "us-west-2", aws_access_key_id="key", aws_secret_access_key="secret"
    )  # fmt: skip
    client, models = ec2.meta.client, [ec2.meta.resource_model, ec2.Instance("i-0").meta.resource_model]
    known: dict[str, str] = dict(client.meta.method_to_api_mapping)
    for model in models:
        known |= {action.name: action.request.operation for action in model.actions}
        known |= {collection.name: collection.request.operation for collection in model.collections}
        for waiter in model.waiters:
            known[waiter.name] = client.get_waiter(xform_name(waiter.waiter_name)).config.operation
    source = ast.parse(Path(node_provider.__file__).read_text(encoding="utf-8"))
    used = {n.attr for n in ast.walk(source) if isinstance(n, ast.Attribute)}
    return {known[name] for name in used if name in known}


def test_the_launcher_takes_the_heads_profile(
    aws: None, cluster: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a profile in the file the launcher neither makes nor looks up a role; key, network and group it makes."""
    from ray.autoscaler._private.aws import config

    monkeypatch.setattr(config, "_get_instance_profile", lambda *given: pytest.fail("looked up a profile"))
    made = config.bootstrap_aws(cluster)
    assert made["head_node"] == {}
    for kind in made["available_node_types"].values():
        assert kind["node_config"]["SubnetIds"]
        assert kind["node_config"]["SecurityGroupIds"]
        assert kind["node_config"]["KeyName"]


def test_head_and_workers_start_with_their_roles(
    aws: None, calls: list[Call], cluster: dict[str, Any]
) -> None:
    """Ray's provider starts one machine of each type and ends the workers; the roles are in the machines, and no
    call was made that the head's policy does not list.
    """
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    made = bootstrap_aws(cluster)
    provider = AWSNodeProvider(made["provider"], made["cluster_name"])
    asked: set[str] = set()
    for ec2 in (provider.ec2, provider.ec2_fail_fast):
        ec2.meta.client.meta.events.register("before-call.ec2", lambda model, **_: asked.add(model.name))
    roles = {}
    for name, kind in made["available_node_types"].items():
        # moto has no images, and no parameters that name them.
        given = {**kind["node_config"], "ImageId": "ami-12c6146b"}
        tags = {"ray-node-kind": "worker", "ray-launch-config": "x", "ray-user-node-type": name}
        (machine,) = provider.create_node(given, tags, 1).values()
        roles[name] = machine.iam_instance_profile["Arn"].split("/")[-1]
        assert machine.instance_type == given["InstanceType"]
    assert roles == {
        name: kind["node_config"]["IamInstanceProfile"]["Name"]
        for name, kind in cluster["available_node_types"].items()
    }
    started = provider.non_terminated_nodes({})
    provider.set_node_tags(started[0], {"ray-node-status": "up-to-date"})
    provider.terminate_nodes(started[1:])
    assert provider.non_terminated_nodes({}) == started[:1]
    assert asked == {"RunInstances", "DescribeInstances", "CreateTags", "TerminateInstances"}
    head = role_of(calls, profiles(cluster)[0])
    assert all(allowing(calls, head, f"ec2:{name}") for name in asked)


def test_machine_types_have_what_the_file_counts_on(aws: None, cluster: dict[str, Any]) -> None:
    """CPUs and GPUs are the type's own; the head's object store leaves most of its memory to drivers; and every
    machine has a disk with several times the room of its object store to spill to.
    """
    from ray.autoscaler._private.aws.node_provider import list_ec2_instances

    types = {kind["InstanceType"]: kind for kind in list_ec2_instances("us-west-2")}
    for name, kind in cluster["available_node_types"].items():
        has = types[kind["node_config"]["InstanceType"]]
        memory = has["MemoryInfo"]["SizeInMiB"] * 2**20
        store = 0.3 * memory
        if name == cluster["head_node_type"]:
            (start,) = (c for c in cluster["head_start_ray_commands"] if "--head" in c)
            (given,) = (w for w in shlex.split(start) if w.startswith("--object-store-memory="))
            store = int(given.split("=")[1])
            assert store <= memory / 4
            assert memory >= 32 * 2**30
        else:
            gpus = sum(gpu["Count"] for gpu in has.get("GpuInfo", {}).get("Gpus", []))
            assert kind["resources"].get("GPU", 0) == gpus
            assert kind["resources"]["CPU"] == has["VCpuInfo"]["DefaultVCpus"]
        (root,) = (disk["Ebs"]["VolumeSize"] for disk in kind["node_config"]["BlockDeviceMappings"])
        room = has.get("InstanceStorageInfo", {}).get("TotalSizeInGB", root) * 1e9
        assert room >= 10 * store
