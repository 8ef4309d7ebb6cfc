"""Reads expert buffers made with the published code (MTT, FTD, DATM, TESLA, MCT) as trajectories.

A ``replay_buffer_N.pt`` is a list of experts; an expert is a list of snapshots; a snapshot is the list
of the network's parameter tensors. It does not name network, pixel space or data set. So the shapes
are checked here, and the caller checks the accuracy of the last snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rayddl import tensorfiles
from rayddl.errors import ArtifactError
from rayddl.methods.trajectories.settings import BUFFER


def buffers(path: str) -> list[Path]:
    """The buffer files at ``path``, a file or a folder of them, in the order of their numbers.

    Raises :class:`ArtifactError` if there are none.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return [place]
    found = sorted(
        (int(match[1]), file)
        for file in place.glob("*.pt")
        if (match := BUFFER.fullmatch(file.name)) and file.is_file()
    )
    if not found:
        raise ArtifactError(
            f"no expert buffers at {path}: looked for a file, or a folder with replay_buffer_0.pt, "
            "replay_buffer_1.pt, …",
            code="no-expert-buffers",
        )
    return [file for _, file in found]


def count(file: Path) -> int:
    """Number of experts in a buffer file."""
    return len(_load(file))


def read(file: Path, shapes: Sequence[torch.Size]) -> Iterator[Tensor]:
    """The experts of a buffer file, each as snapshots ``[E + 1, P]`` float32.

    ``shapes``: the shapes of the network's parameters, in order. Raises :class:`ArtifactError` for a
    file with another layout or of another network.
    """
    for index, expert in enumerate(_load(file)):
        yield torch.stack([_flat(file, index, snapshot, shapes) for snapshot in expert])


def _load(file: Path) -> list[Any]:
    try:
        found = tensorfiles.load(str(file), mapped=True)
    except tensorfiles.NotTensors as error:
        raise ArtifactError(
            f"{file} cannot be read as tensors alone ({error}). "
            "Save it again with torch.save as nested lists of tensors.",
            code="buffer-unreadable",
        ) from error
    if not (isinstance(found, list) and found and all(isinstance(e, list) and len(e) > 1 for e in found)):
        raise ArtifactError(
            f"{file} is not an expert buffer: expected a list of experts, each a list of snapshots",
            code="buffer-malformed",
        )
    return found


def _flat(file: Path, index: int, snapshot: Any, shapes: Sequence[torch.Size]) -> Tensor:
    if not (isinstance(snapshot, list | tuple) and all(isinstance(each, Tensor) for each in snapshot)):
        raise ArtifactError(
            f"{file} is not an expert buffer: a snapshot of expert {index} is {type(snapshot).__name__}, expected a "
            "list of tensors",
            code="buffer-malformed",
        )
    actual = [tuple(p.shape) for p in snapshot]
    wanted = [tuple(s) for s in shapes]
    if actual != wanted:
        differing = (
            f"tensor {i} is {theirs}, the network's is {ours}"
            for i, (theirs, ours) in enumerate(zip(actual, wanted, strict=False))
            if theirs != ours
        )
        first = next(differing, f"{len(actual)} tensors, the network has {len(wanted)}")
        raise ArtifactError(
            f"expert {index} of {file} belongs to another network: {first}. "
            "Say which one with the stage's net (name, depth, width, norm).",
            code="buffer-of-another-network",
        )
    return torch.cat([p.detach().reshape(-1).float() for p in snapshot])
