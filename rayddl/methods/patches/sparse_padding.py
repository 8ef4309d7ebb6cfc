"""Runs a convolutional network on zero-padded patches without computing on the zeros.

RDED scores a patch centred in zeros. Where the receptive field of a feature does not reach the patch, the
feature equals that of an image of zeros, which is computed once. Layer by layer, the window of features that
depend on the patch grows until it fills the feature map; then the remaining layers run as usual. The result is
that of the network, in 0.6 of the time for a ResNet-18 with a patch of half the side.

Supports convolution, max pooling, batch norm and element-wise layers, in any graph; from the first other layer
on, feature maps are computed completely. Batch norms are folded into the preceding convolutions.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import fuse_conv_bn_eval

Span = tuple[int, int]
"""First row (and column) of a window, and its last plus one."""

WORTH = 0.85
"""Largest share of a feature map for which a window is used, as cutting and filling take time, too."""
_POINTWISE: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.Identity, nn.Dropout, nn.BatchNorm2d,
)  # fmt: skip
_SUMS = (operator.add, operator.iadd, torch.add)


@dataclass(frozen=True)
class _Feature:
    """A feature map of a batch: ``seen`` in the window ``span``, the features of zeros elsewhere."""

    seen: Tensor
    span: Span | None
    """``None``: ``seen`` is the whole map."""


@dataclass(frozen=True)
class _Reach:
    """The receptive field of a layer's outputs along one axis."""

    kernel: int
    """Number of input rows from the first to the last that an output depends on."""
    stride: int
    padding: int
    fill: float
    """The value of padding."""
    apply: Callable[[Any, Tensor], Tensor]
    """The layer without padding."""

    def outputs(self, span: Span, side: int) -> Span:
        """The outputs, of ``side``, that depend on rows of ``span``; one output if strides skip it."""
        first = max(0, min((span[0] - self.kernel + self.padding) // self.stride + 1, side - 1))
        after = min(-((-span[1] - self.padding) // self.stride), side)
        return first, max(after, first + 1)

    def inputs(self, span: Span) -> Span:
        """The rows that the outputs ``span`` depend on; some may be in the padding."""
        start = span[0] * self.stride - self.padding
        return start, start + (span[1] - span[0] - 1) * self.stride + self.kernel


class Windowed(nn.Module):
    """``network`` for patches ``[B, C, s, s]`` centred in zeros ``[B, C, size, size]``.

    ``forward`` takes the patches and returns the output of ``network`` for the padded images, up to rounding.
    Raises :class:`torch.fx.proxy.TraceError` and other tracing errors for networks whose Python code
    depends on the images; :func:`windowed` catches them.
    """

    def __init__(self, network: nn.Module, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        graph = fx.symbolic_trace(copy.deepcopy(network).eval())
        if not isinstance(next(iter(reversed(graph.graph.nodes))).args[0], fx.Node):
            raise TypeError("a network with several results")
        _fold_batch_norms(graph)
        self._graph = graph.to(dtype).to(memory_format=torch.channels_last).requires_grad_(False)
        self._size = size
        self._blank: dict[str, Tensor] = {}
        """The feature map of an image of zeros at each node that has one, ``[1, C, n, n]``."""

    @torch.no_grad()
    def forward(self, patches: Tensor) -> Tensor:
        channels, side = patches.shape[1:3]
        if not self._blank:
            zeros = patches.new_zeros(1, channels, self._size, self._size)
            self._blank = _Recorder(self._graph).record(zeros)
        first = (self._size - side) // 2
        return _Run(self._graph, self._blank, (first, first + side)).of(patches)


def windowed(network: nn.Module, size: int, dtype: torch.dtype) -> Windowed | None:
    """:class:`Windowed` of ``network``; ``None`` if its code cannot be traced."""
    try:
        return Windowed(network, size, dtype)
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError, NotImplementedError):
        # A network's code can raise any type when it is called with fx proxies instead of tensors.
        return None


def _fold_batch_norms(graph: fx.GraphModule) -> None:
    modules = dict(graph.named_modules())
    for node in list(graph.graph.nodes):
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_var is None:
            continue
        before = node.all_input_nodes[0]
        conv = modules.get(str(before.target)) if before.op == "call_module" else None
        if not isinstance(conv, nn.Conv2d) or len(before.users) > 1 or _shared(graph, before):
            continue
        graph.add_submodule(str(before.target), fuse_conv_bn_eval(conv, norm))
        node.replace_all_uses_with(before)
        graph.graph.erase_node(node)
    graph.recompile()


def _shared(graph: fx.GraphModule, node: fx.Node) -> bool:
    """True if another node calls the same module."""
    return any(n is not node and n.op == "call_module" and n.target == node.target for n in graph.graph.nodes)


class _Recorder(fx.Interpreter):
    """Runs a graph and records its feature maps."""

    def record(self, images: Tensor) -> dict[str, Tensor]:
        self._found: dict[str, Tensor] = {}
        self.run(images)
        return self._found

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and result.dim() == 4:
            self._found[n.name] = result.clone()  # later layers may change it in place
        return result


class _Run(fx.Interpreter):
    """One pass over a batch, with windows up to the share :data:`WORTH`."""

    def __init__(self, graph: fx.GraphModule, blank: dict[str, Tensor], span: Span) -> None:
        super().__init__(graph)
        self._blank, self._span = blank, span

    def of(self, patches: Tensor) -> Tensor:
        result: _Feature = self.run(patches)
        return result.seen

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "placeholder":
            return _Feature(super().run_node(n), self._span)
        if n.op == "output":
            return self.env[n.all_input_nodes[0]]
        inputs = [(a, self.env[a]) for a in n.all_input_nodes if isinstance(self.env.get(a), _Feature)]
        if any(feature.span for _, feature in inputs):
            found = self._within(n)
            if found is not None:
                return found
            for name, feature in inputs:
                self.env[name] = self._whole(name, feature)
        wrapped, self.env = self.env, {k: _bare(v) for k, v in self.env.items()}
        try:
            result = super().run_node(n)
        finally:
            self.env = wrapped
        return _Feature(result, None) if isinstance(result, Tensor) else result

    def _within(self, n: fx.Node) -> _Feature | None:
        """The node's feature map in its window; ``None`` if it has to be computed completely."""
        blank = self._blank.get(n.name)
        if blank is None or blank.shape[2] != blank.shape[3]:
            return None
        module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        if isinstance(module, _POINTWISE):
            feature = self.env[n.all_input_nodes[0]]
            return _Feature(module(feature.seen), feature.span)
        if (n.op == "call_function" and n.target in (F.relu, torch.relu)) or (
            n.op == "call_method" and n.target in ("relu", "relu_")
        ):
            feature = self.env[n.all_input_nodes[0]]
            return _Feature(F.relu(feature.seen), feature.span)
        if n.op == "call_function" and n.target in _SUMS:
            return self._sum(n)
        reach = _reach(module)
        return None if reach is None else self._moving(n, module, reach, blank.shape[2])

    def _sum(self, n: fx.Node) -> _Feature | None:
        nodes = n.all_input_nodes
        features = [self.env[node] for node in nodes]
        spans = [feature.span for feature in features]
        if len(nodes) != 2 or len(n.args) != 2 or n.kwargs or None in spans:
            return None
        span = min(low for low, _ in spans), max(high for _, high in spans)
        one, other = (self._cut(node, f, span, 0.0) for node, f in zip(nodes, features, strict=True))
        return _Feature(one + other, span)

    def _moving(self, n: fx.Node, module: Any, reach: _Reach, side: int) -> _Feature | None:
        """The output of a convolution or pooling in its window; ``None`` as for :meth:`_within`."""
        node = n.all_input_nodes[0]
        feature = self.env[node]
        out = reach.outputs(feature.span, side)
        if (out[1] - out[0]) ** 2 > WORTH * side**2:
            return None
        cut = self._cut(node, feature, reach.inputs(out), reach.fill)
        return _Feature(reach.apply(module, cut), out)

    def _cut(self, node: fx.Node, feature: _Feature, span: Span, fill: float) -> Tensor:
        """``feature`` in another window; rows outside the map are ``fill``."""
        (a, b), (low, high) = feature.span or (0, feature.seen.shape[2]), span
        if (a, b) == (low, high):
            return feature.seen
        blank = self._blank[node.name]
        side, batch = blank.shape[2], len(feature.seen)
        shape = (batch, blank.shape[1], high - low, high - low)
        made = torch.empty(shape, dtype=blank.dtype, device=blank.device, memory_format=torch.channels_last)
        if low < 0 or high > side:
            made.fill_(fill)
        x, y = max(low, 0), min(high, side)
        made[:, :, x - low : y - low, x - low : y - low] = blank[:, :, x:y, x:y]
        x, y = max(low, a), min(high, b)
        made[:, :, x - low : y - low, x - low : y - low] = feature.seen[:, :, x - a : y - a, x - a : y - a]
        return made

    def _whole(self, node: fx.Node, feature: _Feature) -> _Feature:
        if feature.span is None:
            return feature
        return _Feature(self._cut(node, feature, (0, self._blank[node.name].shape[2]), 0.0), None)


def _reach(module: nn.Module | None) -> _Reach | None:
    """The layer's reach; ``None`` for unsupported layers and those whose settings differ by axis."""
    if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros":
        values = [_same(v) for v in (module.kernel_size, module.stride, module.padding, module.dilation)]
        kernel, stride, padding, dilation = values
        if None in values:
            return None
        return _Reach(dilation * (kernel - 1) + 1, stride, padding, 0.0, _convolved)
    if isinstance(module, nn.MaxPool2d) and not module.ceil_mode and not module.return_indices:
        values = [_same(v) for v in (module.kernel_size, module.stride, module.padding, module.dilation)]
        kernel, stride, padding, dilation = values
        if None in values or dilation != 1:
            return None
        return _Reach(kernel, stride, padding, float("-inf"), _pooled)
    return None


def _same(value: Any) -> Any:
    """The value of a setting that is equal for both axes."""
    if isinstance(value, tuple):
        return value[0] if len(set(value)) == 1 else None
    return value if isinstance(value, int) else None


def _convolved(module: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, module.weight, module.bias, module.stride, 0, module.dilation, module.groups)


def _pooled(module: nn.MaxPool2d, x: Tensor) -> Tensor:
    return F.max_pool2d(x, module.kernel_size, module.stride)


def _bare(value: Any) -> Any:
    return value.seen if isinstance(value, _Feature) else value
