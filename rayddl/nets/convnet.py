"""The ConvNet of the dataset-distillation literature.

``depth`` blocks of 3x3 convolution, norm, ReLU and 2x2 average pooling, then one linear layer
(Gidaris & Komodakis 2018, used since Dataset Condensation). Parameters have the order and shapes of
the published code, so that expert buffers made with it can be read.

The computation is arranged for compilers: tensors have channels last, and a block's pixels are
grouped into 2x2 cells ``[B, H/2, 2, W/2, 2, C]``, in which pooling and its derivatives of any order
are sums and broadcasts. With ``avg_pool2d``, half of a compiled meta-gradient's time is spent on
the scalar index arithmetic of pooling's derivative.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from rayddl.errors import NetError
from rayddl.nets.config import Norm
from rayddl.nets.layers import Conv, channels_last, flattened, make_norm, padding_of


class Block(nn.Module):
    """Convolution, norm, ReLU, 2x2 average pooling: ``[B, H, W, C]`` to ``[B, H//2, W//2, width]``."""

    def __init__(self, inputs: int, width: int, padding: int, norm: Norm) -> None:
        super().__init__()
        self.conv = Conv(inputs, width, padding, norm=norm)
        self.norm = make_norm(norm, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        B, H, W, C = x.shape
        if H % 2 or W % 2:
            # Pooling drops the odd last row and column, but the norm includes them.
            x = self.norm(x)[:, : H // 2 * 2, : W // 2 * 2]
            cells = x.reshape(B, H // 2, 2, W // 2, 2, C)
        else:
            cells = self.norm(x.reshape(B, H // 2, 2, W // 2, 2, C))
        return F.relu(cells).mean((2, 4))


class ConvNet(nn.Module):
    """Maps images ``[B, C, H, W]`` to logits ``[B, classes]``.

    28-pixel images are padded to 32, as in the literature. Raises :class:`NetError` if the side is too
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
        padding, sides = padding_of(sides, usual=1)
        rest = [side >> depth for side in sides]
        if min(rest) < 1:
            raise NetError(
                f"depth {depth} halves the side {depth} times, which {shape[1]}x{shape[2]} images do not "
                f"allow; the largest depth for them is {min(sides).bit_length() - 1}",
                code="images-too-small-for-depth",
            )
        self.blocks = nn.Sequential(
            *(Block(width if d else channels, width, padding if d == 0 else 1, norm) for d in range(depth))
        )
        self.classifier = nn.Linear(width * rest[0] * rest[1], classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(flattened(self.blocks(channels_last(images))))  # type: ignore[no-any-return]  # nn.Module's call is untyped
