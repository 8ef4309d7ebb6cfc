"""Compiled functions, with the uncompiled function as fallback."""

from __future__ import annotations

import functools
import importlib
import os
import re
import subprocess
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch.utils._pytree import tree_leaves, tree_map

F = TypeVar("F", bound=Callable[..., Any])

COMPILATIONS = 10_000
"""Compilations of one function's code in a process, such as the steps of one student after another. After torch's own
limit of 8, a step would fail, and run uncompiled from there on."""

_COMPILER = re.compile(r"(\S*[/-])?(cc|c\+\+|gcc|g\+\+|clang|clang\+\+)(-[\d.]+)?(\s|$)")
"""A command of a C or C++ compiler, such as ``/usr/bin/gcc-12``."""

_told: list[str] = []
"""The warning that was shown; it is shown once per process."""


def compiled(function: F, *, wanted: bool = True, graphs: bool = False) -> F:
    """``function`` compiled by ``torch.compile`` for fixed shapes, or unchanged if compilation fails.

    A function that can be compiled only in part counts as a failure: its uncompiled parts would make it
    slow without a warning.

    The first call compiles. If there is no working compiler, the process warns once and the function
    runs uncompiled: same mathematics, slower. ``RAYDDL_COMPILE=0`` in the environment turns
    compilation off.

    ``graphs``: on a GPU, calls after the first two replay a CUDA graph, so that all kernels of a step need
    one launch. It has no effect on a CPU.
    """
    if not wanted or switched_off():
        return function
    # Imported late: it loads torch's compiler, which most processes do not need.
    from rayddl.nets.passes import Passes, on_cpu, saving

    limits: Any = importlib.import_module("torch._dynamo.config")
    for limit in ("recompile_limit", "accumulated_recompile_limit"):
        setattr(limits, limit, max(getattr(limits, limit), COMPILATIONS))

    # By the place of the tensors: a worker without a GPU may be on a machine that has some.
    @functools.cache
    def fast(cpu: bool) -> Callable[..., Any]:
        made: Callable[..., Any] = torch.compile(
            function,
            dynamic=False,
            fullgraph=True,
            options={
                "post_grad_custom_pre_pass": Passes(),
                "triton.cudagraphs": graphs,
                **(on_cpu() if cpu else {}),
            },
        )
        return made

    works = True

    def call(*args: Any) -> Any:
        nonlocal works
        if not works:
            return function(*args)
        cpu = not any(isinstance(each, torch.Tensor) and each.is_cuda for each in tree_leaves(args))
        try:
            with warnings.catch_warnings(), saving() if cpu else nullcontext():
                # Users cannot act on deprecation warnings inside torch's compiler.
                warnings.simplefilter("ignore")
                found = fast(cpu)(*args)
                # The next replay of a graph overwrites its results, so they are copied.
                return tree_map(torch.clone, found) if graphs else found
        except Exception as error:
            if not _is_compiler_failure(error):
                raise
            works = False
            _warn_once(error)
            return function(*args)

    return call  # type: ignore[return-value]  # same signature as ``function``, positional only


def switched_off() -> bool:
    """True if the environment turns compilation off."""
    return os.environ.get("RAYDDL_COMPILE") == "0"


def _is_compiler_failure(error: BaseException) -> bool:
    module = type(error).__module__
    return module.startswith(("torch._inductor", "torch._dynamo", "triton"))


def _warn_once(error: BaseException) -> None:
    if _told:
        return
    causes = _causes(error)
    reason = ": ".join([type(causes[-1]).__name__, *str(causes[-1]).strip().splitlines()[:1]])
    if any(_lacks_compiler(cause) for cause in causes):
        remedy = "Install a C++ compiler (g++ or clang++) and Python's headers; `rayddl doctor` checks both."
    else:
        remedy = "`compile: false` for the stage, or RAYDDL_COMPILE=0 in the environment, skips the attempt."
        if type(causes[-1]).__name__ not in ("TritonMissing", "GPUTooOldForTriton"):
            remedy = f"The failure is inside torch's compiler; please report it to PyTorch. {remedy}"
    warnings.warn(
        f"torch.compile failed ({reason}); continuing uncompiled, several times slower. {remedy}",
        RuntimeWarning,
        stacklevel=3,
    )
    _told.append(reason)


def _causes(error: BaseException) -> list[BaseException]:
    """``error`` and the errors that torch's compiler wraps in it, the first cause last."""
    found: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in found:
        found.append(cause)
        cause = getattr(cause, "inner_exception", None) or cause.__cause__
    return found


def _lacks_compiler(error: BaseException) -> bool:
    """True if ``error`` is that of a C or C++ compiler that is missing or fails, as without Python's headers.

    Triton compiles the launchers of its kernels with one.
    """
    if isinstance(error, subprocess.CalledProcessError):
        command = error.cmd if isinstance(error.cmd, str) else str(error.cmd[0])
        return bool(_COMPILER.match(command))
    name = type(error).__name__
    return name in ("InvalidCxxCompiler", "CppCompileError") or "Failed to find C compiler" in str(error)
