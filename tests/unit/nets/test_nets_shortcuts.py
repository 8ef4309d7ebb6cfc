"""ResNet's shortcuts: the number format that they are in, and what a compiled block stores."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn
from torch._inductor.utils import run_and_get_code

from rayddl.data.config import SourceConfig
from rayddl.nets.compiling import compiled
from rayddl.nets.config import NetConfig
from rayddl.nets.layers import Conv
from rayddl.nets.resnet import BasicBlock
from rayddl.stages.revisions import LOWERED
from rayddl.stages.teacher.settings import TeacherConfig


def block(compute: torch.dtype | None = None) -> BasicBlock:
    made = BasicBlock(8, 8, 1, "batch")
    made.conv1.compute = made.conv2.compute = compute
    return made


def test_shortcuts_are_in_the_format_of_the_convolutions() -> None:
    """One block hands on what the next one computes with; in float32 nothing is rounded."""
    x = torch.randn(2, 4, 4, 8)
    assert block()(x).dtype == torch.float32
    assert block(torch.bfloat16)(x).dtype == torch.bfloat16
    assert block().double()(x.double()).dtype == torch.float64


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler on this machine")
@pytest.mark.skipif(torch.cuda.is_available(), reason="compiled for the GPU")
def test_a_compiled_block_stores_no_masks() -> None:
    """What its backward pass needs of a ReLU is in its output; booleans take several times as long to store."""
    torch.manual_seed(0)
    # The next convolution keeps the block's output, too.
    made = nn.Sequential(block(), Conv(8, 8, 1, bias=False))
    x = torch.randn(2, 8, 8, 8, requires_grad=True)
    made(x).square().sum().backward()
    expected, x.grad = x.grad, None

    def both() -> None:
        compiled(made)(x).square().sum().backward()

    _, code = run_and_get_code(both)
    assert any("relu" in text for text in code)
    assert not any("bool*" in text for text in code)
    assert expected is not None
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize(
    ("name", "precision", "revised"),
    [("resnet18", "bf16", True), ("resnet18", "fp32", False), ("convnet", "bf16", False)],
)
def test_rounded_shortcuts_have_a_revision(name: str, precision: str, revised: bool) -> None:
    """Results of before are not taken for those of now."""
    config = TeacherConfig(kind="teacher", net=NetConfig(name=name), precision=precision)  # type: ignore[arg-type]
    assert (LOWERED in config.revisions(SourceConfig(name="digits"))) == revised
