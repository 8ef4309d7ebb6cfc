"""What a cluster can hold: the nodes it has, and those that an autoscaler may bring. Knows no Ray."""

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
"""Where Ray's launcher leaves, on a cluster's head, what the autoscaler may bring."""
HEAD = "node:__internal_head__"
"""The resource that Ray gives to the head alone."""
_GROUP = re.compile(r"(?P<count>\d+)\s*x\s*(?P<each>\w+:\d+(?:\.\d+)?(?:,\w+:\d+(?:\.\d+)?)*)")


@dataclass(frozen=True)
class Group:
    """Nodes alike that may come and go."""

    most: int
    resources: Mapping[str, float]

    def __str__(self) -> str:
        # Memory in bytes has to be written out in full: `:g` rounds it, and writes an exponent.
        return f"{self.most}x{','.join(f'{name}:{value:.15g}' for name, value in self.resources.items())}"


@dataclass(frozen=True)
class Capacity:
    """Resources of each node by Ray's names, and the groups that may bring more."""

    nodes: tuple[Mapping[str, float], ...]
    groups: tuple[Group, ...] = ()

    @property
    def most(self) -> tuple[Mapping[str, float], ...]:
        """The nodes there can be at most: those present, and those of the groups that are still to come.

        A present node of a group's CPUs and GPUs counts as one of that group's; the head never does.
        """
        # Groups alike, such as spot machines and their full-price substitute, cannot be told apart by their nodes.
        present = Counter(_shape(node) for node in self.nodes if HEAD not in node)
        coming = []
        for group in self.groups:
            shape = _shape(group.resources)
            here = min(group.most, present[shape])
            present[shape] -= here
            coming += [group.resources] * (group.most - here)
        return (*self.nodes, *coming)

    def total(self, name: str) -> float:
        """All there can be of one resource."""
        return sum(float(node.get(name, 0)) for node in self.most)

    def largest(self, name: str) -> float:
        """The most that one node has, or may have, of a resource."""
        return max((float(node.get(name, 0)) for node in self.most), default=0.0)

    def holds(self, needs: Mapping[str, float]) -> bool:
        """True if a node that is present has ``needs`` in all."""
        return any(_times(node, needs) >= 1 for node in self.nodes)

    def may_hold(self, needs: Mapping[str, float]) -> bool:
        """True if a node that is present or may come has ``needs`` in all."""
        return any(_times(node, needs) >= 1 for node in self.most)

    def fits(self, needs: Mapping[str, float]) -> int:
        """How many times ``needs`` fits, each time on one node; ``sys.maxsize`` if it asks for nothing and
        there is a node.
        """
        return min(sum(_times(node, needs) for node in self.most), sys.maxsize)

    def part(self, name: str, units: int, most: float) -> float:
        """The largest share of a resource, ``most`` at most, of which ``units`` fit, each on one node; 0 where
        there is none.
        """
        if units * most <= self.total(name) and self.fits({name: most}) >= units:
            return most
        values = {float(node.get(name, 0)) for node in self.most}
        # A node is best used by a whole number of shares. Rounded down to what Ray counts in, so that the
        # shares never exceed the node.
        shares = {math.floor(value / k * 1000) / 1000 for value in values for k in range(1, units + 1)}
        fitting = [s for s in shares if 0 < s <= most and self.fits({name: s}) >= units]
        return max(fitting, default=0.0)

    def __str__(self) -> str:
        nodes = "; ".join(_told(node) for node in self.nodes) or "none"
        groups = ", ".join(str(group) for group in self.groups)
        return f"nodes: {nodes}" + (f"; to come at most: {groups}" if groups else "")


def parse(text: str) -> Group:
    """The group that ``4xCPU:8,GPU:1`` means. Raises :class:`UserError`."""
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
    """The groups of a cluster that Ray's launcher made, on its head; empty anywhere else."""
    try:
        told = yaml.safe_load(Path(os.path.expanduser(path)).read_text(encoding="utf-8"))
        types = told["available_node_types"]
        return tuple(
            Group(int(kind.get("max_workers", 0)), {k: float(v) for k, v in kind["resources"].items()})
            for kind in types.values()
            # The head's own type has none unless the file says so; Ray does not count the head itself.
            if kind.get("max_workers", 0)
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError):
        return ()


def described(needs: Mapping[str, float]) -> str:
    """``1 CPU, 2 GPU`` of what is needed."""
    return ", ".join(f"{value:g} {name}" for name, value in needs.items() if value) or "nothing"


def _times(node: Mapping[str, float], needs: Mapping[str, float]) -> int:
    times = [math.floor(float(node.get(name, 0)) / value + 1e-9) for name, value in needs.items() if value]
    return min(times, default=sys.maxsize)


def _shape(node: Mapping[str, float]) -> tuple[float, float]:
    """What a node is recognised by: Ray adds its address, memory and the GPU's type to what the group says."""
    return float(node.get("CPU", 0)), float(node.get("GPU", 0))


def _told(node: Mapping[str, float]) -> str:
    return ", ".join(f"{float(node.get(name, 0)):g} {name}" for name in ("CPU", "GPU", "memory"))
