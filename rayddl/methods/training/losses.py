"""Losses of students of soft labels beside the published divergence; all take logits ``[B, K]`` and return a scalar.

``mse_gt`` and ``gift`` also use the images' own labels. Of images that CutMix changed, it is the label of the image
outside the box, as in the published codes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from rayddl import plugins
from rayddl.errors import PluginError

GT_WEIGHT = 0.025
"""Weight of the own labels in :func:`mse_gt` (EDC's scripts)."""
GIFT_WEIGHT = 0.1
"""Weight of the own labels in :func:`refined` (GIFT's code)."""


def refuse_unusable(name: str, loss: Callable[[Tensor, Tensor], Tensor], said: Tensor) -> None:
    """Raise :class:`PluginError` if the loss ``name`` of a plugin fails for the observer's logits ``said`` ``[B, K]``,
    or returns no scalar that can be differentiated by the student's; nothing for rayddl's own.
    """
    plugin = plugins.owner("losses", name)
    if plugin is None:
        return
    given = f"logits {[*said.shape]} of student and observer"
    with torch.enable_grad(), plugins.called("losses", name, given):
        found: object = loss(said.detach().clone().requires_grad_(), said)
    if isinstance(found, Tensor) and found.shape == () and found.requires_grad:
        return
    what = f"a tensor {[*found.shape]}" if isinstance(found, Tensor) else type(found).__name__
    constant = isinstance(found, Tensor) and found.shape == ()
    raise PluginError(
        f"loss {name!r} of plugin {plugin} returned "
        f"{'a number that does not depend on the student' if constant else what} for {given}; "
        "expected a scalar tensor that does, such as a mean over the batch",
        code="plugin-loss-output",
    )


def smoothed(own: Tensor, smoothing: float) -> Tensor:
    """Probabilities ``own`` ``[B, K]`` of which ``smoothing`` is spread over the other classes."""
    share = smoothing / max(own.shape[1] - 1, 1)
    return own * (1 - smoothing - share) + share


def mse_gt(logits: Tensor, said: Tensor, own: Tensor) -> Tensor:
    """The mean squared difference to the observer's logits ``said``, plus :data:`GT_WEIGHT` times the cross-entropy
    with the probabilities ``own`` (G-VBSM, Shao et al. 2024; EDC, Shao et al. 2024).
    """
    return F.mse_loss(logits, said) + GT_WEIGHT * F.cross_entropy(logits, own)


def refined(said: Tensor, own: Tensor) -> Tensor:
    """GIFT's labels: the observer's logits and the probabilities ``own``, each of length 1, added with
    :data:`GIFT_WEIGHT` (Shang et al. 2025).
    """
    return F.normalize(said, dim=1) + GIFT_WEIGHT * F.normalize(own, dim=1)


def cosine(logits: Tensor, targets: Tensor) -> Tensor:
    """One minus the cosine between logits and :func:`refined` labels, averaged over the batch."""
    return 1 - F.cosine_similarity(logits, targets, dim=1).mean()
