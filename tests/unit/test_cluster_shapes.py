"""The clusters that other tests compute with are those of ``cluster.yaml`` and of the manifest."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rayddl.jobs.shape import Shape
from rayddl.stages.runtime.capacity import HEAD, Capacity, Group
from tests.unit import cluster_shapes
from tests.unit.cluster_shapes import kuberay_shapes, launcher_shapes, small


def test_the_launchers_groups_are_those_of_the_file() -> None:
    """Twelve GPU nodes in two groups and eight of CPUs, each with the memory that its type has for tasks."""
    groups = launcher_shapes()["head"].groups
    memory = int(0.7 * 32 * 2**30)
    gpu = {"CPU": 8.0, "GPU": 1.0, "memory": memory, "accelerator_type:L4": 1.0}
    assert groups == (Group(8, gpu), Group(4, gpu), Group(8, {"CPU": 16.0, "memory": memory}))


def test_the_manifests_groups_are_those_that_its_autoscaler_brings() -> None:
    """What the run is told with --grows equals what Ray's autoscaler reads in the cluster's groups."""
    shape = Shape("registry/rayddl:1", gpus=3, cpus=5, cpus_each=6, memory_each=24 * 2**30)
    derived = cluster_shapes.autoscaled(cluster_shapes.rayjob(shape))["available_node_types"]
    groups = kuberay_shapes(shape)["head"].groups
    assert groups == tuple(Group(derived[n]["max_workers"], derived[n]["resources"]) for n in ("gpu", "cpu"))
    assert [(g.most, g.resources["CPU"], g.resources.get("GPU")) for g in groups] == [(3, 6, 1), (5, 6, None)]
    assert derived["headgroup"]["resources"]["CPU"] == 0


@pytest.mark.parametrize(
    ("shapes", "nodes", "gpus", "cpus"), [(launcher_shapes, 21, 12, 224), (kuberay_shapes, 13, 8, 48)]
)
def test_a_cluster_can_be_as_large_whatever_its_size_now(
    shapes: Callable[[], dict[str, Capacity]], nodes: int, gpus: int, cpus: int
) -> None:
    """Head alone, with one GPU node, and full: what is present differs, what can be is the same."""
    made = shapes()
    assert [len(made[name].nodes) for name in ("head", "one", "full")] == [1, 2, nodes]
    assert not made["head"].holds({"CPU": 1})
    assert made["one"].holds({"GPU": 1})
    for have in made.values():
        assert "CPU" not in have.nodes[0]
        assert [HEAD in node for node in have.nodes] == [True] + [False] * (len(have.nodes) - 1)
        assert (len(have.most), have.total("GPU"), have.total("CPU")) == (nodes, gpus, cpus)
        assert have.fits({"CPU": 1, "GPU": 1, "memory": 2**30}) == gpus


def test_the_small_machine_holds_one_worker() -> None:
    """One CPU and one GPU, and nothing to come."""
    have = small()
    assert (have.groups, have.fits({"CPU": 1, "GPU": 1}), have.fits({"CPU": 0.5})) == ((), 1, 2)
