"""Buffers in the published layout come in as the trajectories they are."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rayddl.errors import ArtifactError
from rayddl.methods.trajectories import buffers as replay
from rayddl.methods.trajectories.convex import convexify
from tests.raising import raises

SHAPES = [torch.Size((2, 3)), torch.Size((2,))]


def buffer(experts: int, epochs: int) -> list[list[list[Tensor]]]:
    draws = torch.Generator().manual_seed(0)
    return [
        [[torch.randn(s, generator=draws) for s in SHAPES] for _ in range(epochs + 1)] for _ in range(experts)
    ]


def published_point(expert: list[list[Tensor]], t: float) -> list[Tensor]:
    """The convexified point by the published formula: per tensor, accumulated step lengths over their sum."""
    low = min(int(t), len(expert) - 2)
    out = []
    for layer in range(len(SHAPES)):
        path = [snapshot[layer] for snapshot in expert]
        lengths = torch.stack([torch.norm(b - a) for a, b in itertools.pairwise(path)])
        share = torch.cat([torch.zeros(1), torch.cumsum(lengths, 0) / lengths.sum()])
        weight = torch.lerp(share[low], share[low + 1], t - low)
        out.append(torch.lerp(path[0], path[-1], weight))
    return out


def test_round_trip(tmp_path: Path) -> None:
    """Files are read in the order of their numbers, experts and snapshots in theirs."""
    made = buffer(3, 4)
    torch.save(made[2:], tmp_path / "replay_buffer_10.pt")
    torch.save(made[:2], tmp_path / "replay_buffer_2.pt")
    files = replay.buffers(str(tmp_path))
    found = [expert for file in files for expert in replay.read(file, SHAPES)]

    assert [f.name for f in files] == ["replay_buffer_2.pt", "replay_buffer_10.pt"]
    assert [replay.count(f) for f in files] == [2, 1]
    for expert, snapshots in zip(made, found, strict=True):
        expected = torch.stack([torch.cat([p.reshape(-1) for p in s]) for s in expert])
        assert torch.equal(snapshots, expected)


@pytest.mark.parametrize("t", [0, 0.25, 1.0, 2.5, 4.0])
def test_convexified_as_the_published_code_does(tmp_path: Path, t: float) -> None:
    """An imported expert gives the convexified points of the published formula."""
    made = buffer(1, 4)
    torch.save(made, tmp_path / "replay_buffer_0.pt")
    (snapshots,) = replay.read(tmp_path / "replay_buffer_0.pt", SHAPES)
    expected = torch.cat([p.reshape(-1) for p in published_point(made[0], t)])

    actual = convexify(snapshots, [s.numel() for s in SHAPES]).at(t)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.timeout(60)
def test_pipes_are_no_buffers(tmp_path: Path) -> None:
    """To read one waits for ever."""
    os.mkfifo(tmp_path / "replay_buffer_0.pt")
    (tmp_path / "replay_buffer_1.pt").symlink_to("/dev/zero")
    with pytest.raises(ArtifactError) as caught:
        [*replay.read(replay.buffers(str(tmp_path))[0], SHAPES)]
    assert caught.value.code == "no-expert-buffers"


def test_nothing_there(tmp_path: Path) -> None:
    """A folder without buffers says what was looked for."""
    with raises("no-expert-buffers"):
        replay.buffers(str(tmp_path))


def test_another_network(tmp_path: Path) -> None:
    """Shapes that are not the network's are named, with the setting to change."""
    file = tmp_path / "replay_buffer_0.pt"
    torch.save(buffer(1, 2), file)
    with raises("buffer-of-another-network"):
        next(replay.read(file, [SHAPES[0], torch.Size((3,))]))
    with raises("buffer-of-another-network"):
        next(replay.read(file, SHAPES[:1]))


@pytest.mark.parametrize("content", [{"a": 1}, [], [[torch.ones(1)]], torch.ones(2)])
def test_another_layout(tmp_path: Path, content: object) -> None:
    """A file that is no list of lists of snapshots is refused."""
    torch.save(content, tmp_path / "x.pt")
    with raises("buffer-malformed"):
        replay.count(tmp_path / "x.pt")


def test_a_file_cannot_run_code(tmp_path: Path) -> None:
    """A file with anything but tensors in it is refused, not executed."""

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (open, (str(tmp_path / "owned"), "w"))  # type: ignore[return-value]  # what pickle calls

    torch.save([[Evil(), Evil()]], tmp_path / "x.pt")
    with raises("buffer-unreadable"):
        replay.count(tmp_path / "x.pt")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("snapshot", [None, 1, "ab", ["a"], {"a": torch.zeros(1)}, torch.zeros(3), [None]])
def test_snapshots_that_are_no_lists_of_tensors_are_refused(tmp_path: Path, snapshot: object) -> None:
    """Whatever else a file of torch's can hold in their place."""
    file = tmp_path / "replay_buffer_0.pt"
    torch.save([[snapshot, snapshot]], file)
    with raises("buffer-malformed"):
        list(replay.read(file, [torch.Size([1])]))
