"""A compiler pass that computes derivatives by images of few channels as products of each pixel, and sums these.

A CPU's convolutions compute blocks of 16 channels; of three channels, most of a block is thrown away.
"""

from __future__ import annotations

import functools
import itertools
import operator
from typing import Any

import torch
from torch import Tensor
from torch._inductor.decomposition import select_decomp_table
from torch.fx import Graph
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from rayddl.nets.pruning import BACKWARD

aten = torch.ops.aten
FEW = 4
"""The most channels of such images."""
BLOCK = 16
"""A pixel has a multiple of so many products; zeros fill up the rest."""


def spread(graph: Graph) -> None:
    """Change ``graph``, of ``aten`` operators, in place. Its results stay the same up to the rounding of sums."""
    for node in list(graph.nodes):
        if node.target != BACKWARD or not _narrow(node):
            continue
        given: Any = node.args[0], node.args[2]
        # The graph comes after the compiler's decompositions, so what is put into it needs them, too.
        traced = make_fx(by_images, select_decomp_table())(*(each.meta["val"] for each in given)).graph
        inputs = (each for each in traced.nodes if each.op == "placeholder")
        with graph.inserting_before(node):
            found: Any = graph.graph_copy(traced, dict(zip(inputs, given, strict=True)))
        for reader in list(node.users):
            assert reader.target == operator.getitem
            reader.replace_all_uses_with(found)
            graph.erase_node(reader)
        graph.erase_node(node)


def _narrow(node: Any) -> bool:
    _, images, weight, _, stride, padding, dilation, transposed, _, groups, asked = node.args
    size, kernel = images.meta["val"], weight.meta["val"].shape
    return bool(
        size.device.type == "cpu"
        and list(asked) == [True, False, False]
        and len(kernel) == 4
        and kernel[1] <= FEW
        # A pixel's products take no more memory than its derivatives, and a shift leaves some of the image.
        and kernel[1:].numel() <= kernel[0]
        and all(side > around for side, around in zip(size.shape[2:], padding, strict=True))
        and (groups, transposed) == (1, False)
        and all(each == 1 for each in (*stride, *dilation))
        and all(side == 2 * around + 1 for side, around in zip(kernel[2:], padding, strict=True))
    )


def by_images(gradient: Tensor, weight: Tensor) -> Tensor:
    """The derivative ``[B, C, H, W]`` by the images, where ``gradient`` ``[B, O, H, W]`` is that by a convolution with
    ``weight`` ``[O, C, K, L]`` and padding that keeps the size.
    """
    outputs, channels, height, width = weight.shape
    products = channels * height * width
    kernel = weight.permute(2, 3, 1, 0).reshape(products, outputs)
    kernel = F.pad(kernel, (0, 0, 0, -products % BLOCK))[..., None, None]
    every = aten.convolution(gradient, kernel, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    every = every.permute(0, 2, 3, 1)
    if every.dtype == torch.bfloat16:
        # Sums of products in 16 bits would round each; and the compiler stores a tensor before it takes strides of it.
        every = every.to(torch.float32)
        every = aten.as_strided(every, list(every.shape), list(every.stride()), 0)
    parts = []
    for k, (row, column) in enumerate(itertools.product(range(height), range(width))):
        down, right = row - height // 2, column - width // 2
        part = every[..., k * channels : (k + 1) * channels]
        parts.append(F.pad(part, (0, 0, right, -right, down, -down)))
    return functools.reduce(operator.add, parts).permute(0, 3, 1, 2).to(gradient.dtype)
