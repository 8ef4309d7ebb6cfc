"""The size of a Kubernetes cluster for one run, and the parsing of its options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rayddl.errors import UserError

LEAST_MEMORY = 2 * 2**30
"""Bytes that Ray's own processes and one that imports torch need at least."""

_FIELDS = {
    "--image": "image",
    "--gpus": "gpus",
    "--cpus": "cpus",
    "--worker-cpus": "cpus_each",
    "--worker-memory": "memory_each",
    "--head-memory": "head_memory",
    "--toleration": "tolerations",
}
_UNITS = {"": 1, "M": 10**6, "Mi": 2**20, "G": 10**9, "Gi": 2**30, "T": 10**12, "Ti": 2**40}
_QUANTITY = re.compile(r"(\d{1,15})(M|Mi|G|Gi|T|Ti|)", re.ASCII)
_LABEL = r"[A-Za-z0-9](?:[-\w.]{0,61}[A-Za-z0-9])?"
_DOMAIN = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_TAINT = re.compile(
    rf"(?P<key>(?:{_DOMAIN}(?:\.{_DOMAIN})*/)?{_LABEL})(?P<equals>=(?P<value>(?:{_LABEL})?))?"
    r":(?P<effect>NoSchedule|PreferNoSchedule|NoExecute)",
    re.ASCII,
)
_IMAGE = re.compile(r"[a-zA-Z0-9][\w.:/@-]*", re.ASCII)


@dataclass(frozen=True)
class Toleration:
    """A taint of nodes that pods tolerate."""

    key: str
    effect: str
    value: str | None = None
    """``None`` matches any value."""

    def spec(self) -> Mapping[str, str]:
        """Return the entry for a pod's ``tolerations``."""
        if self.value is None:
            return {"key": self.key, "operator": "Exists", "effect": self.effect}
        return {"key": self.key, "operator": "Equal", "value": self.value, "effect": self.effect}


GPU_NODES = Toleration("nvidia.com/gpu", "NoSchedule")
"""The usual taint of pools of GPU nodes."""


@dataclass(frozen=True)
class Shape:
    """The size of the cluster. Raises :class:`UserError` for values that cannot work."""

    image: str | None
    """A container image with rayddl, its dependencies, and ``python`` on the path."""
    gpus: int = 1
    """Maximum number of workers with one GPU each; they are added on demand."""
    cpus: int = 2
    """Maximum number of workers without a GPU."""
    cpus_each: int = 4
    """CPUs of each worker."""
    memory_each: int = 16 * 2**30
    """Memory of each worker in bytes."""
    head_memory: int = 8 * 2**30
    """Memory of the head in bytes, for Ray's services, the driver and the objects that it shares with workers."""
    tolerations: tuple[Toleration, ...] = ()
    """Tolerations of GPU workers in addition to :data:`GPU_NODES`."""

    def __post_init__(self) -> None:
        if self.image is not None and not _IMAGE.fullmatch(self.image):
            raise UserError(
                f"--image {self.image!r} is not the name of an image; expected one such as registry/rayddl:1",
                code="image-name-malformed",
            )
        for option, value in (("--gpus", self.gpus), ("--cpus", self.cpus)):
            if value < 0:
                raise UserError(
                    f"{option} {value}: the number of workers cannot be negative", code="workers-negative"
                )
        if not self.gpus + self.cpus:
            raise UserError(
                "--gpus 0 and --cpus 0 leave no worker, and the head takes no work; allow at least one",
                code="no-workers",
            )
        if self.cpus_each < 1:
            raise UserError(
                f"--worker-cpus {self.cpus_each}: a worker needs at least 1 CPU", code="worker-without-cpu"
            )
        for option, amount in (("--worker-memory", self.memory_each), ("--head-memory", self.head_memory)):
            if amount < LEAST_MEMORY:
                raise UserError(
                    f"{option} {written_memory(amount)} is too little: Ray and torch alone need "
                    f"{written_memory(LEAST_MEMORY)}; give at least that",
                    code="memory-too-small",
                )


def read(options: Mapping[str, Any]) -> Shape:
    """Return the shape for the command line's options; ``None`` stands for an option that was not given.

    Raises :class:`UserError` for a malformed value, and for values that cannot work.
    """
    given = {_FIELDS[option]: value for option, value in options.items() if value is not None}
    for option in ("--worker-memory", "--head-memory"):
        field = _FIELDS[option]
        if field in given:
            given[field] = parse_memory(option, given[field])
    given["tolerations"] = tuple(parse_toleration(text) for text in given.get("tolerations", ()))
    return Shape(**{"image": None, **given})


def parse_memory(option: str, text: str) -> int:
    """Return the bytes of a quantity such as ``8Gi``. Raises :class:`UserError` naming ``option`` if malformed."""
    found = _QUANTITY.fullmatch(text.strip())
    if found is None:
        raise UserError(
            f"{option} {text!r} is not an amount of memory; expected a whole number with Mi, Gi, Ti, M, G or T, "
            "as in 8Gi",
            code="memory-malformed",
        )
    return int(found[1]) * _UNITS[found[2]]


def written_memory(amount: int) -> str:
    """Return ``amount`` bytes in Kubernetes' notation, in the largest unit that keeps it exact."""
    for unit in ("Gi", "Mi"):
        if amount and amount % _UNITS[unit] == 0:
            return f"{amount // _UNITS[unit]}{unit}"
    return str(amount)


def parse_toleration(text: str) -> Toleration:
    """Return the toleration for ``KEY=VALUE:EFFECT`` or ``KEY:EFFECT``. Raises :class:`UserError` if malformed."""
    found = _TAINT.fullmatch(text.strip())
    if found is None:
        raise UserError(
            f"--toleration {text!r} is not a taint; expected KEY[=VALUE]:EFFECT, with NoSchedule, PreferNoSchedule or "
            "NoExecute as its effect, as in pool=gpu:NoSchedule",
            code="toleration-malformed",
        )
    return Toleration(found["key"], found["effect"], found["value"] if found["equals"] else None)
