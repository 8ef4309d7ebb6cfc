"""The ConvNet of the dataset-distillation literature.

``depth`` blocks of 3x3 convolution, norm, ReLU and 2x2 average pooling, then one linear layer
(Gidaris & Komodakis 2018, as used from Dataset Condensation on). Parameters come in the order and
shapes of the published code, so that expert buffers made with it can be read.

The computation is arranged for compilers: tensors are kept with channels last, and a block's pixels
are seen as 2x2 cells ``[B, H/2, 2, W/2, 2, C]``, in which pooling and its derivatives of any order
are plain sums and broadcasts. Written with ``avg_pool2d``, half of a compiled meta-gradient's time
goes into the scalar index arithmetic of pooling's derivative.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayddl.nets.config import Norm

EPS = 1e-5


class Conv(nn.Conv2d):
    """A 3x3 convolution of channels-last images ``[B, H, W, C]``, in its own precision.

    ``compute`` is the type that the product is computed in; parameters, and what is accumulated into
    them, keep theirs. ``bias`` is left out of the product where ``drop_bias`` says that the next
    layer removes it again.
    """

    def __init__(self, inputs: int, outputs: int, padding: int, *, drop_bias: bool) -> None:
        super().__init__(inputs, outputs, 3, padding=padding)
        self.drop_bias = drop_bias
        self.compute: torch.dtype | None = None

    def forward(self, x: Tensor) -> Tensor:
        dtype = self.compute if self.compute is not None and x.dtype == torch.float32 else x.dtype
        images_NCHW = x.permute(0, 3, 1, 2).to(dtype)
        weight = self.weight.to(dtype).contiguous(memory_format=torch.channels_last)
        out = F.conv2d(images_NCHW, weight, None, padding=self.padding).permute(0, 2, 3, 1).to(x.dtype)
        # Through a dropped bias the gradient is exactly zero rather than rounding noise around zero.
        return out if self.drop_bias or self.bias is None else out + self.bias


class GroupNorm(nn.GroupNorm):
    """Group norm of ``[B, h, 2, w, 2, C]`` or ``[B, H, W, C]``; one group per channel is instance norm."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if self.num_groups == self.num_channels:
            dims = tuple(range(1, x.dim() - 1))
            # Variance does not change under a shift, and one pass over the pixels gives both moments.
            # Without the shift that pass loses every digit on a flat image whose mean is not zero.
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
    """Batch norm of channels-last tensors of any rank."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.num_features)
        return super().forward(rows[..., None, None]).reshape(x.shape)


class Block(nn.Module):
    """Convolution, norm, ReLU, 2x2 average pooling: ``[B, H, W, C]`` to ``[B, H//2, W//2, width]``."""

    def __init__(self, inputs: int, width: int, padding: int, norm: Norm) -> None:
        super().__init__()
        self.conv = Conv(inputs, width, padding, drop_bias=norm == "instance")
        self.norm = make_norm(norm, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        B, H, W, C = x.shape
        if H % 2 or W % 2:
            # Pooling drops the odd last row and column, but the norm has to see them.
            x = self.norm(x)[:, : H // 2 * 2, : W // 2 * 2]
            cells = x.reshape(B, H // 2, 2, W // 2, 2, C)
        else:
            cells = self.norm(x.reshape(B, H // 2, 2, W // 2, 2, C))
        return F.relu(cells).mean((2, 4))


def make_norm(norm: Norm, width: int) -> nn.Module:
    """The norm layer by name. The literature's group norm has 4 groups."""
    if norm == "instance":
        return GroupNorm(width, width)
    if norm == "group":
        return GroupNorm(4, width)
    return BatchNorm(width) if norm == "batch" else nn.Identity()


class ConvNet(nn.Module):
    """Images ``[B, C, H, W]`` in, logits ``[B, classes]`` out.

    28-pixel images are padded to 32, as in the literature. Raises ``ValueError`` when the side is too
    small for ``depth`` poolings.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        *,
        depth: int = 3,
        width: int = 128,
        norm: Norm = "instance",
    ) -> None:
        super().__init__()
        channels, *sides = shape
        pad = [3 if side == 28 else 1 for side in sides]
        if pad[0] != pad[1]:
            pad = [1, 1]
        sides = [side + 2 * (pad[0] - 1) for side in sides]
        rest = [side >> depth for side in sides]
        if min(rest) < 1:
            raise ValueError(
                f"depth {depth} halves the side {depth} times, which {shape[1]}x{shape[2]} images do not "
                f"allow; the largest depth for them is {min(sides).bit_length() - 1}"
            )
        self.blocks = nn.Sequential(
            *(Block(width if d else channels, width, pad[0] if d == 0 else 1, norm) for d in range(depth))
        )
        self.classifier = nn.Linear(width * rest[0] * rest[1], classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(images.permute(0, 2, 3, 1).contiguous())
        # The published code flattens channels first, and its linear layers are stored that way.
        return self.classifier(x.permute(0, 3, 1, 2).flatten(1))  # type: ignore[no-any-return]  # nn.Module's call is untyped
