"""A compiler pass that removes convolutions whose result is unused or zero.

Second derivatives contain many of them. One operator computes the derivatives of a convolution with respect
to images and weights together, even if only one of them is used. And the derivative of the images with
respect to the parameters is zero, but is still convolved.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

aten = torch.ops.aten
CONVOLUTION, BACKWARD = aten.convolution.default, aten.convolution_backward.default
KEEP_ZERO = {
    aten.alias.default,
    aten.clone.default,
    aten.expand.default,
    aten.neg.default,
    aten.permute.default,
    aten.reshape.default,
    aten.view.default,
    torch.ops.prims.convert_element_type.default,
}
"""Operators that map zeros to zeros."""


def prune(graph: Graph) -> None:
    """Change ``graph``, of ``aten`` operators, in place. Its results stay the same up to the rounding of sums."""
    graph.eliminate_dead_code()  # removes readers that are themselves unused
    zeros: set[Node] = set()
    for node in list(graph.nodes):
        if _is_zero(node, zeros):
            zeros.add(node)
        elif node.target == CONVOLUTION and node.args[2] is None and zeros & set(node.args[:2]):
            zeros.add(_zeroed(graph, node))
        elif node.target == BACKWARD:
            zeros |= _narrowed(graph, node, zeros)
    graph.eliminate_dead_code()


def _is_zero(node: Node, zeros: set[Node]) -> bool:
    if node.target == aten.full.default:
        return bool(node.args[1] == 0)
    return node.target in KEEP_ZERO and node.args[0] in zeros


def _zeroed(graph: Graph, node: Node) -> Node:
    """Replace the node by zeros of its shape and type."""
    value = node.meta["val"]
    with graph.inserting_before(node):
        made = graph.call_function(
            aten.full.default,
            (list(value.shape), 0),
            {"dtype": value.dtype, "layout": torch.strided, "device": value.device, "pin_memory": False},
        )
    made.meta = dict(node.meta)
    node.replace_all_uses_with(made)
    graph.erase_node(node)
    return made


def _narrowed(graph: Graph, node: Node, zeros: set[Node]) -> set[Node]:
    """Restrict the node to the outputs that are used and not zero. Returns the zeros that replace the others."""
    gradient, images, weight = node.args[:3]
    by = (weight, images)  # each derivative is linear in the other operand
    made = set()
    for reader in list(node.users):
        output = reader.args[1]
        if isinstance(output, int) and output < len(by) and (gradient in zeros or by[output] in zeros):
            made.add(_zeroed(graph, reader))
    read = {reader.args[1] for reader in node.users}
    asked: Any = node.args[-1]
    mask = [wanted and k in read for k, wanted in enumerate(asked)]
    node.args = (*node.args[:-1], mask)
    node.meta["val"] = tuple(
        value if wanted else None for value, wanted in zip(node.meta["val"], mask, strict=True)
    )
    return made
