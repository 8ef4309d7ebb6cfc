"""The capacity of a cluster: its nodes, and those that an autoscaler may add. Does not import Ray."""

from __future__ import annotations

import math
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from rayddl.errors import UserError

LAUNCHED = "~/ray_bootstrap_config.yaml"
"""The file on a cluster's head in which Ray's launcher stores the autoscaler's configuration."""
HEAD = "node:__internal_head__"
"""The resource that only the head node has."""
_GROUP = re.compile(r"(?P<count>\d+)\s*x\s*(?P<each>\w+:\d+(?:\.\d+)?(?:,\w+:\d+(?:\.\d+)?)*)")


@dataclass(frozen=True)
class Group:
    """A group of equal nodes that an autoscaler adds and removes."""

    most: int
    resources: Mapping[str, float]

    def __str__(self) -> str:
        # Memory in bytes needs all digits: `:g` rounds it and writes an exponent.
        return f"{self.most}x{','.join(f'{name}:{value:.15g}' for name, value in self.resources.items())}"


@dataclass(frozen=True)
class Capacity:
    """Resources of each node by Ray's names, and the groups of an autoscaler."""

    nodes: tuple[Mapping[str, float], ...]
    groups: tuple[Group, ...] = ()

    @property
    def most(self) -> tuple[Mapping[str, float], ...]:
        """The nodes of the cluster at its largest: those present, and those that the groups may still add.

        A present node with a group's CPUs and GPUs counts as a member of that group; the head never does.
        """
        # Equal groups, such as spot and on-demand machines, cannot be distinguished by their nodes.
        present = Counter(_shape(node) for node in self.nodes if HEAD not in node)
        coming = []
        for group in self.groups:
            shape = _shape(group.resources)
            here = min(group.most, present[shape])
            present[shape] -= here
            coming += [group.resources] * (group.most - here)
        return (*self.nodes, *coming)

    def total(self, name: str) -> float:
        """The sum of one resource over the nodes of :attr:`most`."""
        return sum(float(node.get(name, 0)) for node in self.most)

    def largest(self, name: str) -> float:
        """The largest amount of a resource on one node of :attr:`most`."""
        return max((float(node.get(name, 0)) for node in self.most), default=0.0)

    def holds(self, needs: Mapping[str, float], count: int = 1) -> bool:
        """True if present nodes satisfy ``needs`` ``count`` times, each time on one node, by their total resources."""
        return sum(_times(node, needs) for node in self.nodes) >= count

    def may_hold(self, needs: Mapping[str, float]) -> bool:
        """True if an existing or autoscalable node satisfies ``needs``, by its total resources."""
        return any(_times(node, needs) >= 1 for node in self.most)

    def fits(self, needs: Mapping[str, float]) -> int:
        """The number of times that ``needs`` fits, each time on one node; ``sys.maxsize`` if it is empty and a node
        exists.
        """
        return min(sum(_times(node, needs) for node in self.most), sys.maxsize)

    def part(self, name: str, units: int, most: float) -> float:
        """The largest share of a resource, at most ``most``, of which ``units`` fit, each on one node; 0 if there is
        none.
        """
        if units * most <= self.total(name) and self.fits({name: most}) >= units:
            return most
        values = {float(node.get(name, 0)) for node in self.most}
        # A node is divided into a whole number of shares, rounded down to Ray's resolution so that their sum does
        # not exceed the node.
        shares = {math.floor(value / k * 1000) / 1000 for value in values for k in range(1, units + 1)}
        fitting = [s for s in shares if 0 < s <= most and self.fits({name: s}) >= units]
        return max(fitting, default=0.0)

    def __str__(self) -> str:
        nodes = "; ".join(_resources_of(node) for node in self.nodes) or "none"
        groups = ", ".join(str(group) for group in self.groups)
        return f"nodes: {nodes}" + (f"; to come at most: {groups}" if groups else "")


def parse(text: str) -> Group:
    """Parse a group such as ``4xCPU:8,GPU:1``. Raises :class:`UserError`."""
    found = _GROUP.fullmatch(text.strip())
    if found is None:
        raise UserError(
            f"--grows {text!r} is not a group of nodes; expected how many at most and what each has, as in "
            "4xCPU:8,GPU:1",
            code="grows-malformed",
        )
    each = dict(item.split(":") for item in found["each"].split(","))
    return Group(int(found["count"]), {name: float(value) for name, value in each.items()})


def launched(path: str = LAUNCHED) -> tuple[Group, ...]:
    """The autoscaler's groups, on the head of a cluster that Ray's launcher made; empty elsewhere."""
    try:
        loaded = yaml.safe_load(Path(os.path.expanduser(path)).read_text(encoding="utf-8"))
        types = loaded["available_node_types"]
        most = int(loaded.get("max_workers", sys.maxsize))
        return tuple(
            Group(
                min(most, int(kind.get("max_workers", 0))),
                {k: float(v) for k, v in kind["resources"].items()},
            )
            for kind in types.values()
            # The head's node type has max_workers 0 by default; Ray does not count the head itself.
            if kind.get("max_workers", 0)
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError):
        return ()


def described(needs: Mapping[str, float], count: int = 1) -> str:
    """``needs`` as text: ``1 CPU, 2 GPU``, or ``4 times 1 CPU, 2 GPU``."""
    text = ", ".join(f"{value:g} {name}" for name, value in needs.items() if value) or "nothing"
    return text if count == 1 else f"{count} times {text}"


def _times(node: Mapping[str, float], needs: Mapping[str, float]) -> int:
    times = [math.floor(float(node.get(name, 0)) / value + 1e-9) for name, value in needs.items() if value]
    return min(times, default=sys.maxsize)


def _shape(node: Mapping[str, float]) -> tuple[float, float]:
    """The CPUs and GPUs of a node, which identify its group: Ray adds further resources to the group's."""
    return float(node.get("CPU", 0)), float(node.get("GPU", 0))


def _resources_of(node: Mapping[str, float]) -> str:
    return ", ".join(f"{float(node.get(name, 0)):g} {name}" for name in ("CPU", "GPU", "memory"))
