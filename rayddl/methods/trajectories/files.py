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
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from rayddl import documents, json_text
from rayddl.errors import ArtifactError
from rayddl.methods.trajectories.convex import ConvexTrajectory, SnapshotTrajectory, Trajectory, convexify
from rayddl.storage import Folder

FORMAT = 1
_COLUMNS = 5
"""Columns of a history."""
_AGAIN = "Delete it and run the same command again to train it anew."


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
    """The history recorded in training, float64 ``[E + 1, 5]``, columns as in :class:`expert.Epoch`.

    Raises :class:`ArtifactError` for a file without one.
    """
    try:
        if folder.local is not None:
            with safe_open(str(folder.local / name), framework="pt") as file:
                history: Tensor = file.get_tensor("history")
        else:
            history = load(folder.read(name))["history"]
    except (SafetensorError, KeyError) as error:
        raise _unreadable(folder.path(name), error) from error
    shape = tuple(history.shape)
    epochs = history.flatten()[::_COLUMNS]
    if (
        shape != (len(epochs), _COLUMNS)
        or not len(epochs)
        or not epochs.isfinite().all()
        or epochs.is_complex()
    ):
        reason = f"its history is {shape}, expected {_COLUMNS} numbers for each epoch"
        raise _unreadable(folder.path(name), reason)
    return history


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
            meta = json_text.parse(raw[8 : 8 + size]).get("__metadata__", {})
        head = json_text.parse(meta["rayddl"].encode())
        again = "expected what rayddl writes"
        version = documents.checked(head, documents.Format, "its header", again)["format"]
        if version <= FORMAT:
            documents.checked(head, documents.ExpertHeader, "its header", again)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error
    if version > FORMAT:
        raise ArtifactError(
            f"{path} has format {version}; this rayddl reads up to {FORMAT}. Install the version that made it.",
            code="expert-file-too-new",
        )
    return head["keep"], Header(tuple(head["sizes"]), tuple(head["epochs"]), head["info"])


def _unreadable(path: str, error: Exception | str) -> ArtifactError:
    return ArtifactError(f"{path} is not an expert's file ({error}). {_AGAIN}", code="expert-file-unreadable")


def open_trajectory(
    folder: Folder, name: str, trajectory: str, epochs: Sequence[int] | None = None
) -> Trajectory:
    """The trajectory of an expert, for matching.

    ``trajectory`` is ``snapshots`` (rows are read on demand) or ``convex``; an expert stored with all snapshots
    is convexified here, with waypoints at ``epochs``. Raises :class:`ArtifactError` for ``snapshots`` of an
    expert stored without them, for ``epochs`` that do not range from its first to its last.
    """
    keep, header = read_header(folder, name)
    if trajectory == "snapshots" and keep != "all":
        raise ArtifactError(
            f"{folder.path(name)} kept only its waypoints, and trajectory: snapshots needs every epoch. "
            "Train the experts with keep: all, or match with trajectory: convex.",
            code="snapshots-not-kept",
        )
    try:
        if trajectory == "snapshots" and folder.local is not None:
            rows = _Rows(str(folder.local / name))
            _refuse_misfit(header, "snapshots", tuple(rows.shape), None)
            return SnapshotTrajectory(rows)  # type: ignore[arg-type]  # rows on demand
        tensors = load(folder.read(name))
        if keep == "all":
            _refuse_misfit(header, "snapshots", tuple(tensors["snapshots"].shape), None)
        else:
            _refuse_misfit(header, "waypoints", tuple(tensors["waypoints"].shape), len(header.epochs))
            _refuse_other_lengths(header, tuple(tensors["lengths"].shape))
    except (SafetensorError, KeyError, ValueError) as error:
        raise ArtifactError(
            f"{folder.path(name)} is not what its header says ({error}). {_AGAIN}", code="expert-file-misfit"
        ) from error
    if trajectory == "snapshots":
        return SnapshotTrajectory(tensors["snapshots"])
    if keep == "all":
        try:
            return convexify(tensors["snapshots"].float(), header.sizes, epochs)
        except ValueError as error:
            raise ArtifactError(
                f"{folder.path(name)} cannot be convexified: {error}", code="waypoints-do-not-fit"
            ) from error
    return ConvexTrajectory(tensors["waypoints"], header.epochs, tensors["lengths"], header.sizes)


def _refuse_misfit(header: Header, name: str, shape: tuple[int, ...], rows: int | None) -> None:
    """Raise ``ValueError`` unless a tensor has a vector of parameters in each of ``rows`` rows, or in two or more."""
    total = sum(header.sizes)
    if len(shape) != 2 or shape[1] != total or (shape[0] < 2 if rows is None else shape[0] != rows):
        raise ValueError(f"{name} are {shape}, with {total:,} parameters in its header")


def _refuse_other_lengths(header: Header, shape: tuple[int, ...]) -> None:
    """Raise ``ValueError`` unless there is a row for each epoch and a column for each tensor."""
    if shape != (header.epochs[-1], len(header.sizes)) or list(header.epochs) != sorted({0, *header.epochs}):
        raise ValueError(f"lengths are {shape} for waypoints at {header.epochs[:9]}")
