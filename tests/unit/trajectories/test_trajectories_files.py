"""Expert files: what is written is what is read, and nothing else is taken for one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save

from rayddl.methods.trajectories import files
from rayddl.methods.trajectories.convex import ConvexTrajectory, SnapshotTrajectory, convexify
from rayddl.storage import Folder
from tests.raising import raises

SIZES = (4, 2)
HEADER = files.Header(SIZES, (0, 3), {"classes": ["a", "b"]})
HISTORY = torch.arange(20, dtype=torch.float64).reshape(4, 5)


def snapshots() -> torch.Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["path", "uri", "remote"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A folder by path, the same by URI, and as on a filesystem whose files cannot be opened in part."""
    if request.param == "remote":
        monkeypatch.setattr(Folder, "local", None)
    return Folder(str(tmp_path) if request.param == "path" else tmp_path.as_uri())


def test_snapshots_round_trip(folder: Folder) -> None:
    """An expert kept whole gives its snapshots, row by row, and convexifies on reading."""
    folder.write("e", files.dump_snapshots(snapshots(), HEADER, torch.float32, HISTORY))
    found = files.open_trajectory(folder, "e", "snapshots")
    convex = files.open_trajectory(folder, "e", "convex")

    assert isinstance(found, SnapshotTrajectory)
    assert found.last == 3
    for epoch in range(4):
        assert torch.equal(found.at(epoch), snapshots()[epoch])
    assert torch.equal(convex.at(1.5), convexify(snapshots(), SIZES).at(1.5))


def test_a_local_file_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the two rows that a window needs are read of an expert's snapshots, which may be gigabytes."""
    folder = Folder(str(tmp_path))
    folder.write("e", files.dump_snapshots(snapshots(), HEADER, torch.float32, HISTORY))
    monkeypatch.delattr(Folder, "read")

    assert torch.equal(files.open_trajectory(folder, "e", "snapshots").at(2), snapshots()[2])


@pytest.mark.parametrize("epochs", [(0, 3), (0, 1, 3), (0, 1, 2, 3)])
def test_convex_round_trip(folder: Folder, epochs: tuple[int, ...]) -> None:
    """A convexified expert gives the same points after a trip to disk, with any number of waypoints."""
    trajectory, header = convexify(snapshots(), SIZES, epochs), replace(HEADER, epochs=epochs)
    folder.write("e", files.dump_convex(trajectory, header, torch.float32, HISTORY))
    found = files.open_trajectory(folder, "e", "convex")

    assert isinstance(found, ConvexTrajectory)
    assert torch.equal(found.at(1.25), trajectory.at(1.25))
    assert files.read_header(folder, "e") == ("convex", header)
    assert torch.equal(files.read_history(folder, "e"), HISTORY)


def test_waypoints_of_the_readers_choice(folder: Folder) -> None:
    """An expert kept whole is convexified at the epochs that are asked for, if they go from its first to its last."""
    folder.write("e", files.dump_snapshots(snapshots(), HEADER, torch.float32, HISTORY))
    found = files.open_trajectory(folder, "e", "convex", (0, 1, 3))

    assert torch.equal(found.at(2.5), convexify(snapshots(), SIZES, (0, 1, 3)).at(2.5))
    assert files.read_header(folder, "e") == ("all", HEADER)
    assert torch.equal(files.read_history(folder, "e"), HISTORY)
    with raises("waypoints-do-not-fit"):
        files.open_trajectory(folder, "e", "convex", (0, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_are_kept_in_the_type_asked_for(tmp_path: Path, dtype: torch.dtype) -> None:
    """Parameters in half the bytes; lengths and the history stay in float64."""
    data = files.dump_snapshots(snapshots(), HEADER, dtype, HISTORY)
    kept = load(data)
    assert (kept["snapshots"].dtype, kept["history"].dtype) == (dtype, torch.float64)
    kept = load(files.dump_convex(convexify(snapshots(), SIZES), HEADER, dtype, HISTORY))
    assert (kept["waypoints"].dtype, kept["lengths"].dtype) == (dtype, torch.float64)
    folder = Folder(str(tmp_path))
    folder.write(files.file_name(7), data)
    assert folder.names() == ["expert-0007.safetensors"]
    assert files.open_trajectory(folder, files.file_name(7), "snapshots").at(2).dtype == torch.float32


def test_waypoints_alone_are_no_snapshots(folder: Folder) -> None:
    """Asking a convex expert for snapshots says how to get them."""
    folder.write("e", files.dump_convex(convexify(snapshots(), SIZES), HEADER, torch.float32, HISTORY))
    with raises("snapshots-not-kept"):
        files.open_trajectory(folder, "e", "snapshots")


@pytest.mark.parametrize("data", [b"", b"not a tensor file", save({"x": torch.ones(1)})])
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    """A file that is no expert's is refused with its path and what to do."""
    folder = Folder(str(tmp_path))
    folder.write("e", data)
    with raises("expert-file-unreadable"):
        files.open_trajectory(folder, "e", "convex")


def test_newer_format_is_refused(tmp_path: Path) -> None:
    """A file from a newer rayddl is refused naming both versions."""
    folder = Folder(str(tmp_path))
    folder.write("e", save({"x": torch.ones(1)}, {"rayddl": '{"format": 99}'}))
    with raises("expert-file-too-new"):
        files.read_header(folder, "e")


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"sizes": [10**15, 2]}, "expert-file-misfit"),
        ({"sizes": [6, -0]}, "expert-file-unreadable"),
        ({"sizes": "ab"}, "expert-file-unreadable"),
        ({"format": "1"}, "expert-file-unreadable"),
        ({"epochs": [0, 10**9]}, "expert-file-misfit"),
        ({"epochs": [3, 0]}, "expert-file-misfit"),
        ({"keep": None}, "expert-file-unreadable"),
    ],
)
def test_a_header_that_does_not_fit_its_tensors_is_refused(
    tmp_path: Path, changed: dict[str, object], code: str
) -> None:
    """Before anything of the size that it says is made."""
    folder = Folder(str(tmp_path))
    folder.write("e", files.dump_convex(convexify(snapshots(), SIZES), HEADER, torch.float32, HISTORY))
    with safe_open(str(tmp_path / "e"), framework="pt") as file:
        head = json.loads(file.metadata()["rayddl"])
    folder.write("e", save(load(folder.read("e")), {"rayddl": json.dumps({**head, **changed})}))
    with raises(code):
        files.open_trajectory(folder, "e", "convex")


@pytest.mark.parametrize("kind", ["snapshots", "convex"])
def test_snapshots_of_another_network_are_refused(folder: Folder, kind: str) -> None:
    """However they are read."""
    header = files.Header((4, 3), (0, 3), {})
    folder.write("e", files.dump_snapshots(snapshots(), header, torch.float32, HISTORY))
    with raises("expert-file-misfit"):
        files.open_trajectory(folder, "e", kind)


@pytest.mark.parametrize(
    "history",
    [None, torch.tensor(0.0), torch.zeros(4, 4), torch.zeros(0, 5), torch.full((4, 5), float("nan"))],
)
def test_a_file_without_its_history_is_refused(folder: Folder, history: torch.Tensor | None) -> None:
    """Also one whose history has other columns, no epoch, or epochs that are no numbers."""
    folder.write("e", files.dump_snapshots(snapshots(), HEADER, torch.float32, HISTORY))
    tensors = load(folder.read("e"))
    tensors.pop("history")
    folder.write("e", save(tensors if history is None else {**tensors, "history": history}))
    with raises("expert-file-unreadable"):
        files.read_history(folder, "e")
    folder.write("e", b"no file of tensors")
    with raises("expert-file-unreadable"):
        files.read_history(folder, "e")
