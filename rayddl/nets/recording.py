"""Functions of tensors that a GPU replays: all kernels of a call are launched at once, as a CUDA graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

F = TypeVar("F", bound=Callable[..., Any])

MOST = 8
"""Recordings that one function keeps, each with memory of its own: those of the shapes that were used last."""


def recorded(function: F, *, wanted: bool = True) -> F:
    """``function``, recorded on a GPU at its second call for tensors of the same shapes, and replayed from then on.

    Its arguments and results are tensors and lists of them; it must launch the same kernels for the same shapes. The
    first call runs as usual, which compiles what is to be compiled. If it cannot be recorded, for lack of memory for
    example, it warns and runs as usual. On a CPU, or unless ``wanted``, nothing is recorded.
    """
    if not wanted:
        return function
    return _Recorded(function)  # type: ignore[return-value]  # same signature as ``function``


def _on_gpu(given: list[Tensor]) -> bool:
    return all(tensor.is_cuda for tensor in given)


class _Recorded:
    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._known: dict[tuple[Any, ...], _Recording | None] = {}
        """By the shapes of a call, in the order of their last use."""
        self._works = True

    def __call__(self, *args: Any) -> Any:
        given, form = tree_flatten(args)
        if not self._works or not _on_gpu(given):
            return self._function(*args)
        key = tuple((tuple(tensor.shape), tensor.stride(), tensor.dtype) for tensor in given)
        known = key in self._known
        recording = self._known[key] = self._known.pop(key, None)
        if not known:
            while len(self._known) > MOST:
                del self._known[next(iter(self._known))]
            return self._function(*args)
        if recording is None:
            try:
                recording = self._known[key] = _Recording(self._function, given, form)
            except RuntimeError as error:
                self._works = False
                self._known.clear()
                warnings.warn(
                    f"the student's steps cannot be replayed as a CUDA graph ({str(error).strip().splitlines()[0]}); "
                    "continuing without, slower. `cuda_graphs: false` skips the attempt.",
                    RuntimeWarning,
                    stacklevel=2,
                )
                return self._function(*args)
        return recording(given)


class _Recording:
    """One recorded call, with its own input and output tensors."""

    def __init__(self, function: Callable[..., Any], given: list[Tensor], form: Any) -> None:
        self._inputs = [tensor.clone() for tensor in given]
        self._graph = torch.cuda.CUDAGraph()
        # Other threads of the worker may use the GPU while this one records.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._outputs = function(*tree_unflatten(self._inputs, form))

    def __call__(self, given: list[Tensor]) -> Any:
        torch._foreach_copy_(self._inputs, given)
        self._graph.replay()
        # The next replay overwrites the outputs, so they are copied.
        return tree_map(torch.clone, self._outputs)
