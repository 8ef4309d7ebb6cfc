"""Two functions of the same arguments, of which the second is given the convolutions that the first has computed.

A student's step and the derivative of its gradient are such functions: the derivative needs all that the step has
computed, a fifth of its own work. Most of it takes longer to store than to compute; long convolutions do not.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions
from torch.func import functionalize
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from rayddl.nets.pruning import BACKWARD, CONVOLUTION
from rayddl.nets.work import KEPT_PRODUCTS

aten = torch.ops.aten
SAME = {aten.alias.default, aten.detach.default}
"""Operators whose result is their argument."""


@dataclass(frozen=True)
class Kept:
    """The two functions, uncompiled."""

    first: Callable[..., tuple[Any, list[Tensor]]]
    """The first function's results, and what is kept."""
    second: Callable[..., Any]
    """``(kept, *arguments)`` -> the second function's results."""
    bytes: int
    """Size of what is kept."""


def keeping(
    first: Callable[..., Any], second: Callable[..., Any], given: Sequence[Tensor], more: Sequence[Tensor]
) -> Kept | None:
    """``first(*given)`` and ``second(*given, *more)`` for tensors of these shapes, both pure functions.

    ``None`` if there is nothing to keep: for functions that have no long convolution in common, that change their
    arguments, or that cannot be traced.
    """
    try:
        return _traced([(first, given), (second, (*given, *more))])
    except Exception:  # of any kind: a plugin's network may do what the tracer does not know
        return None


def _traced(functions: list[tuple[Callable[..., Any], Sequence[Tensor]]]) -> Kept | None:
    # Forward derivatives spell this operator out. So both functions must, for what follows from it to be the same.
    spelt: Any = get_decompositions([aten._log_softmax_backward_data])
    modules = [
        # Copies: the trace takes a tensor that is passed twice for one argument. Tensors of the network, such as
        # buffers, are constants of the graph.
        make_fx(functionalize(function), spelt, tracing_mode="fake", _allow_non_fake_inputs=True)(
            *(a.clone() for a in arguments)
        )
        for function, arguments in functions
    ]
    graphs = [module.graph for module in modules]
    if any(_changes(node) for graph in graphs for node in graph.nodes):
        return None
    for graph in graphs:
        graph.eliminate_dead_code()
    kept = _in_both(*graphs)
    if not kept:
        return None
    _return_too(graphs[0], [mine for mine, _ in kept])
    _take(graphs[1], [theirs for _, theirs in kept])
    for module in modules:
        module.recompile()
    size = sum(int(mine.meta["val"].nbytes) for mine, _ in kept)
    return Kept(modules[0], _with_list(modules[1]), size)


def _changes(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _in_both(first: Graph, second: Graph) -> list[tuple[Node, Node]]:
    """The long convolutions of ``second`` that ``first`` contains, with the node there."""
    table: dict[Any, int] = {}
    there = {number: node for node, number in _numbered(first, table).items()}
    return [
        (there[number], node)
        for node, number in _numbered(second, table).items()
        if number in there and _long(node)
    ]


def _numbered(graph: Graph, table: dict[Any, int]) -> dict[Node, int]:
    """A number for each node; equal ones have the same value. ``table`` has the number of each expression."""
    found: dict[Node, int] = {}

    def key(value: Any) -> Any:
        if isinstance(value, Node):
            return "node", found[value]
        if isinstance(value, list | tuple):
            return tuple(key(each) for each in value)
        # 1, 1.0 and True are equal in Python, as are 0.0 and -0.0.
        return type(value), repr(value) if isinstance(value, float) else value

    inputs = 0
    node: Any
    for node in graph.nodes:
        if node.op == "call_function" and node.target in SAME:
            found[node] = found[node.args[0]]
            continue
        # What is drawn at random, and what is not computed, is equal to nothing else.
        expression: Any = node
        if node.op == "placeholder":
            expression, inputs = ("input", inputs), inputs + 1
        elif node.op == "call_function" and not _drawn(node):
            # Which derivatives a convolution is asked for does not change those that it computes.
            arguments = node.args[:-1] if node.target == BACKWARD else node.args
            expression = node.target, key(arguments), tuple((name, key(v)) for name, v in node.kwargs.items())
        found[node] = table.setdefault(expression, len(table))
    return found


def _drawn(node: Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in target.tags


def _long(node: Node) -> bool:
    weight: Any
    read: Any = node.args[0] if node.target == operator.getitem else None
    if node.target == CONVOLUTION:
        weight, axis = node.args[1], 0
    elif read is not None and read.target == BACKWARD and node.args[1] == 0:
        weight, axis = read.args[2], 1
    else:
        return False
    size = weight.meta["val"].shape
    return bool(size.numel() >= KEPT_PRODUCTS * size[axis])


def _return_too(graph: Graph, kept: list[Node]) -> None:
    (result,) = (node for node in graph.nodes if node.op == "output")
    result.args = ((result.args[0], kept),)


def _take(graph: Graph, kept: list[Node]) -> None:
    arguments = next(iter(graph.nodes))
    for k, node in enumerate(kept):
        with graph.inserting_before(arguments):
            taken = graph.placeholder(f"kept_{k}")
        taken.meta = dict(node.meta)
        node.replace_all_uses_with(taken)
    graph.eliminate_dead_code()


def _with_list(module: GraphModule) -> Callable[..., Any]:
    return lambda kept, *arguments: module(*kept, *arguments)
