"""Intermediate features of an observer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rayddl.errors import ArtifactError
from rayddl.methods.refinement.refine import FeatureExtractor
from rayddl.methods.selection.features import before_last
from rayddl.methods.training.observer import Observer

_SHOWN = 12


class _ReachedError(Exception):
    """Ends a forward pass at the layer whose output is wanted."""


def extractor_of(observer: Observer, layer: str | None) -> FeatureExtractor:
    """The features that ``observer`` sees: the output of ``layer``, or by default the input of the last linear layer.

    Raises :class:`ArtifactError` for a layer that the network does not have.
    """

    def scaled(pixels: Tensor) -> Tensor:
        return observer.input_spec.normalised(pixels).contiguous(memory_format=torch.channels_last)

    if layer is None:
        return FeatureExtractor(scaled, partial(before_last, observer.module))
    return FeatureExtractor(scaled, _output_of(observer, layer))


def _output_of(observer: Observer, layer: str) -> Callable[[Tensor], Tensor]:
    net = getattr(observer.module, "net", observer.module)  # an observer of some classes wraps its network
    known = dict(net.named_modules())
    if not layer or layer not in known:
        near = [name for name in known if name and name.count(".") < 2][:_SHOWN]
        raise ArtifactError(
            f"the observer, a {observer.net.label}, has no layer {layer!r}; it has {', '.join(near)} … Name one of "
            "these in layers.",
            code="no-such-layer",
        )
    module: nn.Module = net

    def features(x: Tensor) -> Tensor:
        found: list[Any] = []

        def catch(_: nn.Module, given: tuple[Tensor, ...], out: Any) -> None:
            del given
            found.append(out)
            raise _ReachedError

        handle = known[layer].register_forward_hook(catch)
        try:
            module(x)
        except _ReachedError:
            pass
        finally:
            handle.remove()
        if not (found and isinstance(found[0], Tensor)):
            raise ArtifactError(
                f"layer {layer!r} of the observer, a {observer.net.label}, gives no tensor in a forward pass; name "
                "another one in layers.",
                code="layer-without-features",
            )
        return found[0].flatten(1)

    return features
