"""Compilation, and going on without it."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from collections.abc import Callable

import pytest
import torch
import torch._dynamo.exc
import torch._inductor.exc
from torch.utils.flop_counter import FlopCounterMode

from rayddl.nets import compiling, passes
from rayddl.nets.build import build
from rayddl.nets.config import NetConfig
from rayddl.nets.cost import faster_together, forward_flops, worth_compiling
from rayddl.nets.work import TOGETHER_FLOPS


def square(x: torch.Tensor) -> torch.Tensor:
    return x * x


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler on this machine")
def test_compiled_function_gives_the_same() -> None:
    """What comes out of a compiled function is what the function gives."""
    x = torch.arange(4.0)

    assert torch.equal(compiling.compiled(square)(x), square(x))


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler on this machine")
def test_one_process_compiles_many_functions_of_one_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each student of a process has a step of its own; torch's compiler by itself gives up after eight."""
    monkeypatch.setattr(compiling, "_told", [])

    def step(k: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def scaled(x: torch.Tensor) -> torch.Tensor:
            return x * k

        return compiling.compiled(scaled)

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = [float(step(k)(torch.ones(()))) for k in range(12)]
    assert found == list(range(12))


def failing(error: BaseException) -> Callable[..., object]:
    """In place of ``torch.compile``: the compiled function raises ``error``."""

    def compile_(function: object, **_: object) -> object:
        del function

        def fail(*_: object) -> None:
            raise error

        return fail

    return compile_


def inductor(error: Exception) -> BaseException:
    """``error`` as torch's compiler raises it."""
    return torch._inductor.exc.InductorError(error, None)


COMPILER = r"continuing uncompiled.*g\+\+ or clang\+\+.*rayddl doctor"


@pytest.mark.parametrize(
    "error",
    [
        torch._inductor.exc.InvalidCxxCompiler(),
        inductor(torch._inductor.exc.InvalidCxxCompiler()),
        inductor(torch._inductor.exc.CppCompileError(["g++", "x.cpp"], "fatal error: Python.h")),
        inductor(RuntimeError("Failed to find C compiler. Please specify via CC environment variable")),
        inductor(subprocess.CalledProcessError(1, ["/usr/bin/gcc-12", "main.c"])),
    ],
    ids=str,
)
def test_without_a_compiler_one_warning_and_the_same_result(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where compiling fails, one warning per process names the remedy and the function still works."""
    monkeypatch.setattr(torch, "compile", failing(error))
    monkeypatch.setattr(compiling, "_told", [])
    x = torch.arange(4.0)
    with pytest.warns(RuntimeWarning, match=COMPILER):
        result = compiling.compiled(square)(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = compiling.compiled(square)(x)

    assert torch.equal(result, square(x))
    assert torch.equal(again, square(x))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (inductor(AssertionError("no such node\nmore")), "AssertionError: no such node"),
        (inductor(KeyError()), "KeyError"),
        (
            torch._dynamo.exc.BackendCompilerFailed(square, ValueError("its reason"), None),
            "ValueError: its reason",
        ),
        (
            inductor(subprocess.CalledProcessError(1, ["ptxas", "x.ptx"])),
            "CalledProcessError: Command .*ptxas.*",
        ),
    ],
    ids=str,
)
def test_a_failure_inside_the_compiler_is_named_as_one(
    error: BaseException, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No compiler is missing, so none is to be installed; the warning quotes the first cause and has the settings."""
    monkeypatch.setattr(torch, "compile", failing(error))
    monkeypatch.setattr(compiling, "_told", [])
    with pytest.warns(
        RuntimeWarning, match=rf"failed \({reason}\);.*report it to PyTorch.*`compile: false`"
    ) as caught:
        compiling.compiled(square)(torch.arange(4.0))
    assert "g++" not in str(caught[0].message)


def test_results_of_graphs_outlive_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph writes all its calls' results to one place; what a caller got before stays as it was."""
    asked: list[dict[str, object]] = []

    def replaying(function: object, *, options: dict[str, object], **_: object) -> object:
        asked.append(options)
        place = torch.empty(4)
        return lambda x: (place.copy_(x * x), {"sum": place[0]})

    monkeypatch.setattr(torch, "compile", replaying)
    replayed = compiling.compiled(square, graphs=True)
    first, second = replayed(torch.full((4,), 2.0)), replayed(torch.full((4,), 3.0))

    assert asked[0]["triton.cudagraphs"] is True
    assert torch.equal(first[0], torch.full((4,), 4.0))
    assert float(first[1]["sum"]) == 4.0
    assert torch.equal(second[0], torch.full((4,), 9.0))


def test_settings_that_another_version_of_torch_lacks_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch 2.11, for one, refuses a limit of loops that later versions have."""
    assert passes.on_cpu() == passes.ON_CPU
    monkeypatch.setattr(passes, "list_options", lambda: ["layout_optimization", "debug"])
    assert passes.on_cpu() == {"layout_optimization": False}

    asked: list[dict[str, object]] = []
    monkeypatch.setattr(torch, "compile", lambda function, *, options, **_: asked.append(options) or function)
    compiling.compiled(square)(torch.ones(1))
    assert "realize_reads_threshold" not in asked[0]


def test_graphs_are_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default nothing is captured, whatever torch's own default is."""
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(torch, "compile", lambda function, *, options, **_: asked.append(options) or function)
    compiling.compiled(square)(torch.ones(1))

    assert asked[0]["triton.cudagraphs"] is False


def test_errors_of_the_function_itself_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake inside the function is raised, not taken for a missing compiler."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)

    def wrong(x: torch.Tensor) -> torch.Tensor:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        compiling.compiled(wrong)(torch.ones(1))


def test_environment_turns_compilation_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """RAYDDL_COMPILE=0 hands the function back as it is."""
    monkeypatch.setenv("RAYDDL_COMPILE", "0")

    assert compiling.compiled(square) is square
    monkeypatch.delenv("RAYDDL_COMPILE")
    assert compiling.compiled(square, wanted=False) is square


def test_cost_of_the_literatures_convnet() -> None:
    """ConvNet-3 on 32x32 costs the sum of its products, counted by hand."""
    first, second, third = 32 * 32 * 27 * 128, 16 * 16 * 9 * 128 * 128, 8 * 8 * 9 * 128 * 128
    by_hand = 2 * (first + second + third + 4 * 4 * 128 * 10)

    assert forward_flops(NetConfig(), (3, 32, 32), 10) == by_hand


@pytest.mark.parametrize(
    ("name", "shape"),
    [("convnet", (1, 8, 8)), ("lenet", (3, 32, 32)), ("mlp", (1, 8, 8)), ("alexnet", (3, 32, 32)),
     ("vgg11", (3, 32, 32)), ("resnet18", (3, 32, 32)), ("tv_mobilenet_v2", (3, 64, 64))],
)  # fmt: skip
def test_cost_is_what_torch_counts(name: str, shape: tuple[int, int, int]) -> None:
    """Convolutions with groups or stride and linear layers, of the literature's and torchvision's networks."""
    net = build(NetConfig(name=name), shape, 10, seed=0).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, *shape))

    assert forward_flops(NetConfig(name=name), shape, 10) == counter.get_total_flops()


def test_only_long_work_is_compiled() -> None:
    """A few small steps are not worth compiling; a published setting is."""
    small = NetConfig(depth=2, width=16)

    assert not worth_compiling(small, (1, 8, 8), 10, steps=100, batch=10)
    assert worth_compiling(NetConfig(), (3, 32, 32), 10, steps=50 * 5000, batch=10, passes=12)


def test_students_are_trained_side_by_side_only_where_steps_are_short() -> None:
    """Up to a number of operations a batch, uncompiled, and without batch norm; by the settings alone."""
    small, batched = NetConfig(depth=2, width=32), NetConfig(depth=2, width=32, norm="batch")
    most = int(TOGETHER_FLOPS // forward_flops(small, (1, 8, 8), 10))

    assert faster_together(small, (1, 8, 8), 10, batch=most, compile_=False)
    assert not faster_together(small, (1, 8, 8), 10, batch=most + 1, compile_=False)
    assert not faster_together(small, (1, 8, 8), 10, batch=most, compile_=True)
    assert not faster_together(batched, (1, 8, 8), 10, batch=1, compile_=False)
    assert not faster_together(NetConfig(), (3, 32, 32), 10, batch=10, compile_=False)


def test_a_worker_without_a_gpu_compiles_alike_on_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """It sees the GPUs of its machine, which are not its own, and its tensors are on the CPU."""
    found: list[dict[str, object]] = []

    def compile_(function: Callable[..., object], *, options: dict[str, object], **_: object) -> object:
        found.append({name: value for name, value in options.items() if name != "post_grad_custom_pre_pass"})
        return function

    monkeypatch.setattr(torch, "compile", compile_)
    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        compiling.compiled(square)(torch.ones(2))
    assert found[0] == found[1]
    assert found[0].keys() == {"triton.cudagraphs", *passes.on_cpu()}
