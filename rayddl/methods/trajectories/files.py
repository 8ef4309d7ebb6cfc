"""Expert files: one safetensors file per expert.

``keep: all`` stores ``snapshots`` ``[E + 1, P]``; ``keep: convex`` stores ``waypoints`` ``[K, P]`` and
``lengths`` ``[E, L]``, from which the step table beta is computed. The header describes the network
and the order of its parameters in the vectors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor

from rayddl.errors import ArtifactError
from rayddl.methods.trajectories.convex import ConvexTrajectory, SnapshotTrajectory, Trajectory, convexify
from rayddl.storage import Folder

FORMAT = 1


def file_name(index: int) -> str:
    """File name of expert ``index``."""
    return f"expert-{index:04d}.safetensors"


@dataclass(frozen=True)
class Header:
    """The metadata in an expert's file."""

    sizes: tuple[int, ...]
    """Elements of each parameter tensor, in order."""
    epochs: tuple[int, ...]
    """Epochs of the waypoints; (0, E) for snapshots."""
    info: dict[str, Any]
    """Network, pixel space, classes, as JSON values."""


def dump_snapshots(snapshots: Tensor, header: Header, dtype: torch.dtype, history: Tensor) -> bytes:
    """The file, as bytes, of an expert with all snapshots; ``history`` is float64, a row per epoch from 0."""
    return save({"snapshots": snapshots.to(dtype).contiguous(), "history": history}, _meta("all", header))


def dump_convex(trajectory: ConvexTrajectory, header: Header, dtype: torch.dtype, history: Tensor) -> bytes:
    """The file, as bytes, of a convexified expert; ``history`` is float64, a row per epoch from 0."""
    tensors = {
        "waypoints": trajectory.waypoints.to(dtype).contiguous(),
        "lengths": trajectory.lengths.contiguous(),
        "history": history,
    }
    return save(tensors, _meta("convex", header))


def read_history(folder: Folder, name: str) -> Tensor:
    """The history recorded in training, float64 ``[E + 1, 5]``, columns as in :class:`expert.Epoch`."""
    if folder.local is not None:
        with safe_open(str(folder.local / name), framework="pt") as file:
            history: Tensor = file.get_tensor("history")
            return history
    return load(folder.read(name))["history"]


def _meta(keep: str, header: Header) -> dict[str, str]:
    return {
        "rayddl": json.dumps(
            {
                "format": FORMAT,
                "keep": keep,
                "sizes": list(header.sizes),
                "epochs": list(header.epochs),
                "info": header.info,
            },
            sort_keys=True,
        )
    }


class _Rows:
    """The rows of a stored matrix, read on demand: a window needs only two of an expert's snapshots."""

    def __init__(self, path: str) -> None:
        self._file = safe_open(path, framework="pt")
        self._rows = self._file.get_slice("snapshots")
        self.shape = torch.Size(self._rows.get_shape())

    def __getitem__(self, index: int) -> Tensor:
        row: Tensor = self._rows[index : index + 1][0]
        return row


def read_header(folder: Folder, name: str) -> tuple[str, Header]:
    """``keep`` and the header of an expert's file. Raises :class:`ArtifactError`."""
    path = folder.path(name)
    try:
        if folder.local is not None:
            with safe_open(str(folder.local / name), framework="pt") as file:
                meta = file.metadata() or {}
        else:
            raw = folder.read(name)
            size = int.from_bytes(raw[:8], "little")
            meta = json.loads(raw[8 : 8 + size]).get("__metadata__", {})
        head = json.loads(meta["rayddl"])
        version = head["format"]
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ArtifactError(
            f"{path} is not an expert's file ({error}). Delete it and run the same command again to train it anew.",
            code="expert-file-unreadable",
        ) from error
    if version > FORMAT:
        raise ArtifactError(
            f"{path} has format {version}; this rayddl reads up to {FORMAT}. Install the version that made it.",
            code="expert-file-too-new",
        )
    return head["keep"], Header(tuple(head["sizes"]), tuple(head["epochs"]), head["info"])


def open_trajectory(folder: Folder, name: str, kind: str, epochs: Sequence[int] | None = None) -> Trajectory:
    """The trajectory of an expert, for matching.

    ``kind`` is ``snapshots`` (rows are read on demand) or ``convex``; an expert stored with all snapshots
    is convexified here, with waypoints at ``epochs``. Raises :class:`ArtifactError` for ``snapshots`` of an
    expert stored without them, and for ``epochs`` that do not range from its first to its last.
    """
    keep, header = read_header(folder, name)
    if kind == "snapshots":
        if keep != "all":
            raise ArtifactError(
                f"{folder.path(name)} kept only its waypoints, and trajectory: snapshots needs every epoch. "
                "Train the experts with keep: all, or match with trajectory: convex.",
                code="snapshots-not-kept",
            )
        if folder.local is not None:
            return SnapshotTrajectory(_Rows(str(folder.local / name)))  # type: ignore[arg-type]  # rows on demand
        return SnapshotTrajectory(load(folder.read(name))["snapshots"])
    tensors = load(folder.read(name))
    if keep == "all":
        try:
            return convexify(tensors["snapshots"].float(), header.sizes, epochs)
        except ValueError as error:
            raise ArtifactError(
                f"{folder.path(name)} cannot be convexified: {error}", code="waypoints-do-not-fit"
            ) from error
    return ConvexTrajectory(tensors["waypoints"], header.epochs, tensors["lengths"], header.sizes)
