"""A compiler pass by which small tensors are computed once, not again for each element that they are broadcast to.

The compiler fuses everything into the loop over pixels. So the scale of a normalised channel, a division and a root,
would be computed for each of its pixels, which on a CPU takes longer than reading them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Graph, Node

aten = torch.ops.aten
VIEWS = {
    aten.expand.default,
    aten.permute.default,
    aten.reshape.default,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.view.default,
}
FEWER = 16
"""A tensor is computed once if it has at most this fraction of the elements that it is broadcast to."""


def keep_factors(graph: Graph) -> None:
    """Change ``graph``, of ``aten`` operators, in place; its results stay the same."""
    found: dict[Node, None] = {}
    for node in graph.nodes:
        if _pointwise(node):
            small = (_source(operand) for operand in node.all_input_nodes)
            found |= dict.fromkeys(s for s in small if _pointwise(s) and _fewer(s, node))
    for node in found:
        value = node.meta["val"]
        with graph.inserting_after(node):
            # The compiler stores a tensor before it takes strides of it.
            kept = graph.call_function(aten.as_strided.default, (node, [*value.shape], [*value.stride()], 0))
        kept.meta = dict(node.meta)
        for reader in list(node.users):
            if reader is not kept:
                reader.replace_input_with(node, kept)


def _pointwise(node: Node) -> bool:
    operator = isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags
    return operator and isinstance(node.meta.get("val"), Tensor)


def _source(node: Node) -> Node:
    while node.target in VIEWS and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def _fewer(node: Node, reader: Node) -> bool:
    value = node.meta["val"]
    if value.device.type != "cpu" or not value.is_contiguous() or value.numel() < 2:
        return False
    many: int = reader.meta["val"].numel()
    return bool(value.numel() * FEWER <= many)
