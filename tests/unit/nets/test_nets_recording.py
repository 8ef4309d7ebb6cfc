"""Recording and replaying, with a stand-in for CUDA's graphs; ``test_devices.py`` compares the results on a GPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from rayddl.nets import recording


class Graph:
    """Kernels that read and write fixed tensors: the recorded function, run again on the recorded inputs."""

    def __init__(self) -> None:
        self.kernels: Callable[[], None] = lambda: None

    def replay(self) -> None:
        self.kernels()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """CPU tensors count as a GPU's; the list has the calls of :func:`function` and the replays."""
    found: list[str] = []

    @contextmanager
    def graph(made: Graph, **_: Any) -> Any:
        yield
        recorded = made.owner  # type: ignore[attr-defined]

        def kernels() -> None:
            found.append("replayed")
            inputs = torch.utils._pytree.tree_unflatten(recorded._inputs, recorded.form)
            for kept, fresh in zip(recorded._outputs, function_itself(*inputs), strict=True):
                kept.copy_(fresh)

        made.kernels = kernels

    class Recording(recording._Recording):
        def __init__(self, function: Any, given: list[Tensor], form: Any) -> None:
            self.form = form
            owned = Graph()
            owned.owner = self  # type: ignore[attr-defined]
            monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: owned)
            super().__init__(function, given, form)

    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(recording, "_Recording", Recording)
    monkeypatch.setattr(recording, "_on_gpu", lambda given: True)
    return found


def function_itself(x: Tensor, more: list[Tensor]) -> list[Tensor]:
    return [x + more[0], x * more[1]]


def counted(calls: list[str]) -> Callable[..., list[Tensor]]:
    def function(x: Tensor, more: list[Tensor]) -> list[Tensor]:
        calls.append("called")
        return function_itself(x, more)

    return recording.recorded(function)


def numbers(value: float, size: int = 3) -> tuple[Tensor, list[Tensor]]:
    return torch.full((size,), value), [torch.full((size,), 2 * value), torch.arange(float(size))]


def test_the_first_call_runs_the_second_is_recorded_and_others_are_replayed(calls: list[str]) -> None:
    fast = counted(calls)
    found = [fast(*numbers(value)) for value in (1.0, 2.0, 3.0, 4.0)]

    assert calls == ["called", "called", "replayed", "replayed", "replayed"]
    for value, got in zip((1.0, 2.0, 3.0, 4.0), found, strict=True):
        for one, expected in zip(got, function_itself(*numbers(value)), strict=True):
            assert torch.equal(one, expected)


def test_other_shapes_have_a_recording_of_their_own(calls: list[str]) -> None:
    fast = counted(calls)
    for size in (3, 5, 3, 5, 3, 5):
        got = fast(*numbers(float(size), size))
        assert torch.equal(got[0], function_itself(*numbers(float(size), size))[0])

    assert calls == ["called"] * 2 + ["called", "replayed"] * 2 + ["replayed"] * 2


def test_what_cannot_be_recorded_runs_as_usual_with_one_warning(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory\nmore")

    monkeypatch.setattr(torch.cuda, "graph", full)
    fast = counted(calls)
    fast(*numbers(1.0))
    with pytest.warns(RuntimeWarning, match=r"\(CUDA out of memory\).*cuda_graphs: false"):
        got = fast(*numbers(2.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast(*numbers(3.0))

    assert torch.equal(got[0], function_itself(*numbers(2.0))[0])
    assert calls == ["called"] * 3


def test_tensors_of_a_cpu_are_never_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: pytest.fail("recorded"))
    fast = counted([])
    for value in (1.0, 2.0, 3.0):
        assert torch.equal(fast(*numbers(value))[0], function_itself(*numbers(value))[0])


def test_nothing_is_wrapped_unless_wanted() -> None:
    assert recording.recorded(function_itself, wanted=False) is function_itself


def test_the_recordings_of_the_last_shapes_are_kept(calls: list[str]) -> None:
    """Each holds memory of the GPU: a process runs one trial of a search after another, each with its own shapes."""
    fast = counted(calls)
    for size in range(1, 40):
        for _ in range(2):
            fast(*numbers(1.0, size))
    calls.clear()
    fast(*numbers(1.0, 39))
    fast(*numbers(1.0, 1))

    assert calls == ["replayed", "called"]
    assert len(fast._known) <= recording.MOST + 1  # type: ignore[attr-defined]
