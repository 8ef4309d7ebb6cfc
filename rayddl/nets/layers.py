"""The layers of the literature's networks, on channels-last images ``[B, H, W, C]``.

Parameters have the shapes of torch's own layers, so that state dicts are compatible.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayddl.nets.config import Norm

EPS = 1e-5


class Conv(nn.Conv2d):
    """A convolution of channels-last images ``[B, H, W, C]``, computed in a given type.

    ``compute`` is the type of the product; parameters and their gradients keep theirs. ``norm`` is the norm of the
    next layer. Instance norm removes a bias, so it is left out; the parameter exists nevertheless. Batch norm removes
    it in training, so its gradient is zero there; the running mean includes it.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        padding: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        bias: bool = True,
        norm: Norm = "none",
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding, bias=bias)
        self.norm = norm
        self.compute: torch.dtype | None = None

    def forward(self, x: Tensor) -> Tensor:
        images_NCHW = self.lowered(x).permute(0, 3, 1, 2)
        dtype = images_NCHW.dtype
        weight, bias = self.weight, None if self.norm == "instance" else self.bias
        if bias is not None and self.norm == "batch" and self.training:
            # Zero instead of rounding noise, and without a sum over all pixels; optimisers need a gradient to decay it.
            weight, bias = weight + 0 * bias.view(-1, 1, 1, 1), bias.detach()
        # Channels last by permutations, because vmap does not support memory formats.
        weight = weight.to(dtype).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        out = F.conv2d(images_NCHW, weight, None, self.stride, self.padding)
        out = out.permute(0, 2, 3, 1).to(self.weight.dtype)
        return out if bias is None else out + bias

    def lowered(self, x: Tensor) -> Tensor:
        """``x`` in the type in which the product is computed.

        For a tensor that a shortcut reads, too: then one copy of it is stored, in this type. In float32 a compiled
        network would compute it again for each reader, from all convolutions that lead to it.
        """
        return x.to(self.compute) if self.compute is not None and x.dtype == torch.float32 else x


class GroupNorm(nn.GroupNorm):
    """Group norm of ``[B, h, 2, w, 2, C]`` or ``[B, H, W, C]``; with one group per channel it is instance norm."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if self.num_groups == self.num_channels:
            dims = tuple(range(1, x.dim() - 1))
            # One pass over the pixels gives both moments. The shift does not change the variance; without
            # it, that pass would lose all digits on a constant image with a mean other than zero.
            x = x - x[(slice(None), *(slice(0, 1),) * len(dims))].detach()
            mean = x.mean(dims, keepdim=True)
            variance = (x * x).mean(dims, keepdim=True) - mean * mean
            scale = torch.rsqrt(variance.clamp(min=0) + EPS) * weight
            return x * scale + (bias - mean * scale)
        grouped = x.unflatten(-1, (self.num_groups, -1))
        dims = (*range(1, x.dim() - 1), x.dim())
        variance, mean = torch.var_mean(grouped, dims, correction=0, keepdim=True)
        normed: Tensor = ((grouped - mean) * torch.rsqrt(variance + EPS)).flatten(-2)
        return normed * weight + bias


class BatchNorm(nn.BatchNorm2d):
    """Batch norm of channels-last tensors ``[B, ..., C]`` of any rank.

    In training, the moments of each image are summed first, then those of all images, and so are the derivatives: an
    image fits in a core's cache, a batch does not.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and self.running_mean is not None:
            rows = x.reshape(-1, self.num_features)
            return super().forward(rows[..., None, None]).reshape(x.shape)
        B, C = x.shape[0], x.shape[-1]
        count = x.numel() // C
        if count < 2:
            raise ValueError(
                f"batch norm in training needs more than one value per channel, got {tuple(x.shape)}"
            )
        dims = tuple(range(1, x.dim() - 1))
        # The shift does not change the variance; see GroupNorm.
        shift = x[(slice(0, 1),) * (x.dim() - 1)].detach()
        x = x - shift
        mean = x.mean(dims, keepdim=True).mean(0, keepdim=True)
        variance = ((x * x).mean(dims, keepdim=True).mean(0, keepdim=True) - mean * mean).clamp(min=0)
        if self.running_mean is not None:
            self._track((mean + shift).detach().view(C), variance.detach().view(C) * (count / (count - 1)))
        scale = torch.rsqrt(variance + self.eps) * self.weight
        # Expanded to one row for each image, so that their derivatives are summed in two stages, too.
        each = (B, *scale.shape[1:])
        return x * scale.expand(each) + (self.bias - mean * scale).expand(each)

    def _track(self, mean_C: Tensor, variance_C: Tensor) -> None:
        assert self.momentum is not None
        for running, seen in ((self.running_mean, mean_C), (self.running_var, variance_C)):
            assert running is not None
            running.lerp_(seen, self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


def make_norm(norm: Norm, width: int) -> nn.Module:
    """The norm layer named ``norm`` for ``width`` channels. The literature's group norm has 4 groups."""
    if norm == "instance":
        return GroupNorm(width, width)
    if norm == "group":
        return GroupNorm(4, width)
    return BatchNorm(width) if norm == "batch" else nn.Identity()


class MaxPool(nn.Module):
    """Max pooling over ``window x window`` pixels of ``[B, H, W, C]``; incomplete windows are dropped."""

    def __init__(self, window: int = 2, stride: int | None = None, padding: int = 0) -> None:
        super().__init__()
        self.window, self.stride, self.padding = window, stride or window, padding

    def forward(self, x: Tensor) -> Tensor:
        images_NCHW = x.permute(0, 3, 1, 2)
        return F.max_pool2d(images_NCHW, self.window, self.stride, self.padding).permute(0, 2, 3, 1)


def channels_last(images: Tensor) -> Tensor:
    """Images ``[B, C, H, W]`` as ``[B, H, W, C]`` in memory."""
    return images.permute(0, 2, 3, 1).contiguous()


def flattened(x: Tensor) -> Tensor:
    """``[B, H, W, C]`` as ``[B, C * H * W]``.

    The published code flattens channels first, and its linear layers are stored that way.
    """
    return x.permute(0, 3, 1, 2).flatten(1)


def padding_of(sides: list[int], usual: int) -> tuple[int, list[int]]:
    """The first layer's padding, and the sides of its output at stride 1.

    28-pixel images are padded to 32, as in the literature; ``usual`` is the padding that keeps the side.
    """
    if all(side == 28 for side in sides):
        return usual + 2, [32, 32]
    return usual, list(sides)
