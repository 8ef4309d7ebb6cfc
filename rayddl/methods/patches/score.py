"""The realism score of a patch (RDED, equation 5): minus the observer's cross-entropy for the patch's class."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayddl.methods.patches.sparse_padding import windowed
from rayddl.methods.training.feeding import lane_to, through


class Scorer:
    """Scores patches with a frozen observer, always in batches of the same shape.

    The last bits of a convolution may depend on the batch's shape; with a fixed shape, a patch's score does
    not depend on the other patches of its batch.
    """

    def __init__(
        self,
        module: nn.Module,
        mean: Tensor,
        std: Tensor,
        *,
        size: int,
        pad: bool,
        batch: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """``mean`` and ``std`` are ``[C]``, of pixels in 0..1. ``size``: side of the observer's input in pixels.

        ``pad``: pad a patch with zeros (after normalisation) to ``size``, as published; otherwise the
        patch is the input. For traceable networks, computation on the zeros is skipped.
        """
        device = next(module.parameters()).device
        self._lane = lane_to(device)
        within = windowed(module, size, dtype) if pad else None
        self._pad = pad and within is None
        self._module = within or module.eval().to(dtype).to(memory_format=torch.channels_last)
        self._mean = mean.float().view(1, -1, 1, 1).to(device)
        self._std = std.float().view(1, -1, 1, 1).to(device)
        self._size, self._batch, self._dtype = size, batch, dtype

    @torch.inference_mode()
    def __call__(self, patches: Tensor, labels: Tensor) -> Tensor:
        """Scores of patches uint8 ``[N, C, s, s]`` for labels int64 ``[N]``: float32 ``[N]`` on the CPU, at most 0."""
        whole = (
            (_filled(x, self._batch), _filled(y, self._batch))
            for x, y in zip(patches.split(self._batch), labels.split(self._batch), strict=True)
        )
        return torch.cat(list(through(whole, self._score, self._lane)))[: len(patches)]

    def _score(self, patches: Tensor, labels: Tensor) -> Tensor:
        x = patches.float().div_(255).sub_(self._mean).div_(self._std)
        if self._pad:
            x = padded(x, self._size)
        x = x.to(dtype=self._dtype, memory_format=torch.channels_last)
        logits = self._module(x).float()
        return -F.cross_entropy(logits, labels, reduction="none")


def _filled(part: Tensor, size: int) -> Tensor:
    """``part`` with zeros behind it, up to ``size`` rows."""
    missing = size - len(part)
    return torch.cat([part, part.new_zeros((missing, *part.shape[1:]))]) if missing else part


def padded(x: Tensor, size: int) -> Tensor:
    """``x`` ``[N, C, s, s]`` centred in zeros ``[N, C, size, size]``; an odd row or column is added below or right."""
    top, left = (size - x.shape[2]) // 2, (size - x.shape[3]) // 2
    return F.pad(x, (left, size - x.shape[3] - left, top, size - x.shape[2] - top))
