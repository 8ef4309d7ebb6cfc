"""Compiled functions that still work where nothing can be compiled."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils._pytree import tree_map

F = TypeVar("F", bound=Callable[..., Any])

_told: list[str] = []
"""The warning, once given: one per process is enough."""


def compiled(function: F, *, wanted: bool = True, graphs: bool = False) -> F:
    """``function`` compiled whole by ``torch.compile`` for fixed shapes, or as it is where that fails.

    A function of which only parts can be compiled counts as failing: it would run at the speed of its
    slowest part without a word.

    The first call compiles. When no working compiler is found, one warning says so for the whole
    process and the function runs uncompiled: same mathematics, slower. ``RAYDDL_COMPILE=0`` in the
    environment turns compilation off.

    ``graphs``: on a GPU, calls after the first two replay a CUDA graph, so that a step's kernels cost one
    launch. Elsewhere it changes nothing.
    """
    if not wanted or os.environ.get("RAYDDL_COMPILE") == "0":
        return function
    # Brings torch's compiler with it, which not every process needs.
    from rayddl.nets.pruning import NeededConvolutions

    fast: Callable[..., Any] | None = torch.compile(
        function,
        dynamic=False,
        fullgraph=True,
        options={"post_grad_custom_pre_pass": NeededConvolutions(), "triton.cudagraphs": graphs},
    )

    def call(*args: Any) -> Any:
        nonlocal fast
        if fast is None:
            return function(*args)
        try:
            with warnings.catch_warnings():
                # Deprecations inside torch's own compiler stack are not the user's to mend.
                warnings.simplefilter("ignore")
                found = fast(*args)
                # A graph's results lie where its next replay writes.
                return tree_map(torch.clone, found) if graphs else found
        except Exception as error:
            if not _is_compiler_failure(error):
                raise
            fast = None
            _warn_once(error)
            return function(*args)

    return call  # type: ignore[return-value]  # same signature as ``function``, positional only


def _is_compiler_failure(error: BaseException) -> bool:
    module = type(error).__module__
    return module.startswith(("torch._inductor", "torch._dynamo", "triton"))


def _warn_once(error: BaseException) -> None:
    if not _told:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        warnings.warn(
            f"torch.compile does not work here ({reason}); going on uncompiled, several times slower. "
            "Install a C++ compiler (g++ or clang++) and Python's headers; `rayddl doctor` checks both.",
            RuntimeWarning,
            stacklevel=3,
        )
        _told.append(reason)
