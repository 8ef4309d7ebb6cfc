"""What rayddl changes in the graphs that torch's compiler makes code of."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch._functorch import config as partition
from torch._inductor import list_options
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.fx import Graph

from rayddl.nets.factors import keep_factors
from rayddl.nets.narrow import spread
from rayddl.nets.pruning import prune

ON_CPU = {
    # It takes the four dimensions of ``[B, H, W, C]`` for ``[B, C, H, W]``, and would store them transposed.
    "layout_optimization": False,
    # With the compiler's own limits for one loop, an image is normalised, written to memory and read again for pooling;
    # with higher ones, a residual network's activations are computed several times.
    "realize_reads_threshold": 8,
    "realize_cpu_acc_reads_threshold": 24,
    "realize_cpu_opcount_threshold": 100,
}
"""Settings of torch's compiler for code that runs on a CPU."""


def on_cpu() -> dict[str, Any]:
    """Those of :data:`ON_CPU` that the installed version of torch has; it refuses others."""
    known = set(list_options())
    return {name: value for name, value in ON_CPU.items() if name in known}


def saving() -> AbstractContextManager[None]:
    """Within it, compiled functions are split into forward and backward passes so that no view is saved between them.

    Else the compiler saves a ReLU's output twice, as the view that a convolution read and as booleans that tell where
    it is zero, and on a CPU, for which this is, booleans take many times longer to write and read than numbers.
    """
    if not hasattr(partition, "recompute_views"):
        return nullcontext()
    patched: AbstractContextManager[None] = partition.patch(recompute_views=True)
    return patched


class Passes(CustomGraphPass):
    """Removes unneeded convolutions, computes narrow ones by pixels, and has small factors computed once."""

    def __call__(self, graph: Graph) -> None:
        """Change ``graph``, of ``aten`` operators, in place."""
        prune(graph)
        spread(graph)
        keep_factors(graph)

    def uuid(self) -> str:
        """Identifies this version of the passes in caches of compiled graphs."""
        return "rayddl.nets.passes 2"
