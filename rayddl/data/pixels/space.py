"""Pixel spaces: invertible maps from uint8 pixels to the values that networks are trained on.

``normalise`` uses mean and standard deviation per channel. ``zca`` is the whitening that the
trajectory-matching papers use for CIFAR: with covariance U diag(s) Uᵀ of the pixels in [0, 1], an
image becomes U diag((s + eps)^-½) Uᵀ (x - mean), eps = 0.1.

Both are fitted from exact integer sums of the stored bytes, so the statistics do not depend on
the number of threads or the machine.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from rayddl.data.config import Scaling
from rayddl.data.pixels.sums import Shape, Sums, summed
from rayddl.data.pixels.whitening import SHIFT, covariance, from_triangle, slices, spectral, triangle
from rayddl.errors import ArtifactError, SourceError

ZCA_EPS = 0.1
STD_FLOOR = 1e-3
"""Lower bound of the standard deviation (a quarter of a grey level), so that a constant channel becomes 0."""

PORTION = 4096
"""Images that are whitened at a time. The last bits of a matrix product may depend on its number of rows."""


@dataclass(frozen=True, eq=False)
class PixelSpace(ABC):
    """An invertible map from uint8 images [N, C, H, W] to the float32 images that networks are trained on."""

    kind: ClassVar[str]
    elementwise: ClassVar[bool]
    """True if each number is encoded by itself: in batches of any size, and on any device, it has the same bits."""
    shape: Shape
    """(C, H, W) of the images it was fitted on."""

    def on(self, device: torch.device) -> PixelSpace:
        """The same space, whose numbers need not be copied to encode images on ``device``."""
        moved: dict[str, Any] = {name: value.to(device) for name, value in self._numbers.items()}
        return replace(self, **moved)

    @property
    @abstractmethod
    def _numbers(self) -> dict[str, Tensor]:
        """The tensors among the fields."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """uint8, or float in 0..1, [N, C, H, W] to float32 [N, C, H, W] in this space, on the same device.

        Raises ``ValueError`` for other numbers and shapes.
        """

    @abstractmethod
    def invert(self, x: Tensor) -> Tensor:
        """Float [N, C, H, W] in this space to float32 pixels; black is 0, white 1; not clamped."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that :meth:`from_parts` needs in addition to :meth:`to_json`."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hexadecimal hash; equal for spaces fitted on equal images, on any machine."""

    def decode(self, x: Tensor) -> Tensor:
        """:meth:`invert`, clamped to [0, 1]."""
        return self.invert(x).clamp_(0.0, 1.0)

    def to_json(self) -> dict[str, Any]:
        """The space without its tensors, as JSON values."""
        return {"kind": self.kind, "shape": list(self.shape), "fingerprint": self.fingerprint}

    @classmethod
    def from_parts(cls, parts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PixelSpace:
        """The space that :meth:`to_json` and :meth:`tensors` describe, bit for bit.

        Raises :class:`ArtifactError` if the kind is unknown, or a value is missing or has a wrong shape.
        """
        kinds: dict[str, type[Normalise | Zca]] = {"normalise": Normalise, "zca": Zca}
        kind = parts.get("kind")
        if kind not in kinds:
            raise ArtifactError(
                f"unknown pixel space {kind!r}; known: {', '.join(kinds)}", code="unknown-pixel-space"
            )
        try:
            space: PixelSpace = kinds[kind]._restore(parts, tensors)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"the pixel space {kind!r} is incomplete: {error}", code="pixel-space-incomplete"
            ) from error
        if space.fingerprint != parts.get("fingerprint"):
            raise ArtifactError(
                f"the numbers of the pixel space {kind!r} were altered: they give the fingerprint "
                f"{space.fingerprint}, stored is {parts.get('fingerprint')}",
                code="pixel-space-altered",
            )
        return space

    def _refuse_other_pixels(self, images: Tensor) -> None:
        self._refuse_other_shape(images)
        if images.dtype == torch.uint8:
            return
        if not images.is_floating_point() or not bool(((images >= 0) & (images <= 1)).all()):
            raise ValueError(
                f"pixels are {images.dtype} from {images.min().item():g} to {images.max().item():g}; expected uint8, "
                "or floats in 0..1"
            )

    def _refuse_other_shape(self, images: Tensor) -> None:
        if tuple(images.shape[1:]) != self.shape:
            raise ValueError(
                f"this pixel space was fitted on images of shape {self.shape}, got {tuple(images.shape[1:])}"
            )


@dataclass(frozen=True, eq=False)
class Normalise(PixelSpace):
    """Scaling to mean 0 and standard deviation 1 in each channel of the train split."""

    kind: ClassVar[str] = "normalise"
    elementwise: ClassVar[bool] = True
    mean: Tensor
    """float64 [C], of pixels in [0, 1]."""
    std: Tensor
    """float64 [C], at least ``STD_FLOOR``."""

    def encode(self, images: Tensor) -> Tensor:
        """Pixels in 0..1, or uint8 / 255, to (pixel - mean) / std, channel by channel."""
        self._refuse_other_pixels(images)
        mean, std = (t.float().view(-1, 1, 1).to(images.device) for t in (self.mean, self.std))
        return _unit(images).sub_(mean).div_(std)

    def invert(self, x: Tensor) -> Tensor:
        """Float x to x * std + mean, channel by channel."""
        self._refuse_other_shape(x)
        mean, std = (t.float().view(-1, 1, 1).to(x.device) for t in (self.mean, self.std))
        return x.float() * std + mean

    def tensors(self) -> dict[str, Tensor]:
        """``mean`` and ``std``."""
        return self._numbers

    @property
    def _numbers(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "std": self.std}

    @cached_property
    def fingerprint(self) -> str:
        """Hash of shape, mean and std."""
        return _digest(self.kind, self.shape, self.mean.tolist(), self.std.tolist())

    @classmethod
    def _restore(cls, parts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Normalise:
        shape = _shape(parts)
        mean, std = (_numbers(tensors, name, shape[0]) for name in ("mean", "std"))
        return cls(shape=shape, mean=mean, std=std)


@dataclass(frozen=True, eq=False)
class Zca(PixelSpace):
    """ZCA whitening: decorrelates pixels over the train split with the smallest change of the image."""

    kind: ClassVar[str] = "zca"
    elementwise: ClassVar[bool] = False
    mean: Tensor
    """float32 [D], D = C·H·W, of pixels in [0, 1]."""
    whiten: Tensor
    """float32 [D, D], symmetric: U diag((s + eps)^-½) Uᵀ."""
    unwhiten: Tensor
    """float32 [D, D], symmetric: U diag((s + eps)^½) Uᵀ."""
    statistics: str
    """Hash of the exact integer sums. Spaces are compared by it and not by the matrices, whose last
    bits depend on the machine's eigensolver."""
    eps: float = ZCA_EPS

    def encode(self, images: Tensor) -> Tensor:
        """Pixels in 0..1, or uint8 / 255, to whitened float32, ``PORTION`` images at a time."""
        self._refuse_other_pixels(images)
        mean, whiten = self.mean.to(images.device), self.whiten.to(images.device)
        flat = images.flatten(1)
        result = torch.empty(flat.shape, dtype=torch.float32, device=images.device)
        for part in slices(len(flat), PORTION):
            torch.mm(_unit(flat[part]).sub_(mean), whiten, out=result[part])
        return result.view(images.shape)

    def invert(self, x: Tensor) -> Tensor:
        """Whitened x to unwhiten · x + mean."""
        self._refuse_other_shape(x)
        mean, unwhiten = self.mean.to(x.device), self.unwhiten.to(x.device)
        flat = x.detach().float().flatten(1)
        result = torch.empty(flat.shape, dtype=torch.float32, device=x.device)
        for part in slices(len(flat), PORTION):
            torch.addmm(mean, flat[part], unwhiten, out=result[part])
        return result.view(x.shape)

    def tensors(self) -> dict[str, Tensor]:
        """``mean``, and the upper triangles ``whiten`` and ``unwhiten``, row by row."""
        # Symmetric matrices are stored as triangles, which halves the bytes of every distilled set.
        pairs = {"whiten": self.whiten, "unwhiten": self.unwhiten}
        return {"mean": self.mean, **{name: triangle(matrix) for name, matrix in pairs.items()}}

    @property
    def _numbers(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "whiten": self.whiten, "unwhiten": self.unwhiten}

    def to_json(self) -> dict[str, Any]:
        """Adds ``eps``, and ``statistics`` instead of a hash of the matrices."""
        return {**super().to_json(), "eps": self.eps, "statistics": self.statistics}

    @cached_property
    def fingerprint(self) -> str:
        """Hash of shape, eps and the exact statistics."""
        return _digest(self.kind, self.shape, self.eps, self.statistics)

    @classmethod
    def _restore(cls, parts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Zca:
        shape = _shape(parts)
        size = shape[0] * shape[1] * shape[2]
        return cls(
            shape=shape,
            mean=_numbers(tensors, "mean", size),
            whiten=from_triangle(_numbers(tensors, "whiten", size * (size + 1) // 2), size),
            unwhiten=from_triangle(_numbers(tensors, "unwhiten", size * (size + 1) // 2), size),
            statistics=str(parts["statistics"]),
            eps=float(parts["eps"]),
        )


def _unit(images: Tensor) -> Tensor:
    """A new float32 tensor of the pixels in 0..1."""
    # A clone, because float() of a float32 tensor is the same tensor, and the callers change it in place.
    if images.dtype != torch.uint8:
        return images.to(torch.float32, copy=True)
    # A GPU would multiply by the inverse of a plain number, which has other last bits than the quotient.
    return images.float().div_(torch.full((), 255.0, device=images.device))


def of_sums(name: str, found: Sums, shape: Shape) -> PixelSpace:
    """The pixel space ``name`` of images with these sums. Raises :class:`SourceError` if they are too few to whiten."""
    return _MADE[name](found, shape)


def fit(name: str, images: Tensor, scaling: Scaling | None = None) -> PixelSpace:
    """The pixel space ``name`` (``normalise`` or ``zca``), fitted on the uint8 train images [N, C, H, W].

    ``scaling``: constants of :class:`Normalise` in place of fitted ones. Raises :class:`SourceError` if images are
    too large or too few for whitening, or have other channels than ``scaling``.
    """
    channels, height, width = (int(n) for n in images.shape[1:])
    shape = channels, height, width
    if scaling is not None:
        return scaled(scaling, shape)
    return of_sums(name, summed(name, [images], shape), shape)


def scaled(scaling: Scaling, shape: Shape) -> Normalise:
    """The pixel space with the constants ``scaling``. Raises :class:`SourceError` for other numbers of channels."""
    channels = shape[0]
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in scaling)
    if len(mean) != channels or len(std) != channels:
        raise SourceError(
            f"space: published has {len(mean)} means and {len(std)} deviations, and the images have {channels} "
            "channels. Give source.mean and source.std a number for each channel.",
            code="scaling-of-other-channels",
        )
    return Normalise(shape=shape, mean=mean, std=std)


def _normalise_of(found: Sums, shape: Shape) -> Normalise:
    pixels = found.images * shape[1] * shape[2]
    mean = found.sums.double() / pixels
    variance = found.products.double() / pixels - mean.square()
    std = variance.clamp(min=0).sqrt() / 255
    return Normalise(shape=shape, mean=mean / 255, std=std.clamp(min=STD_FLOOR))


def _zca_of(found: Sums, shape: Shape) -> Zca:
    count, sums, products = found.images, found.sums, found.products
    if count < 2:
        raise SourceError(
            f"space: zca needs at least 2 training images, found {count}", code="too-few-images-for-zca"
        )
    values, vectors = torch.linalg.eigh(covariance(count, sums, products))
    spread = values.clamp(min=0) + ZCA_EPS
    return Zca(
        shape=shape,
        mean=((sums / count + SHIFT) / 255).float(),
        whiten=spectral(vectors, spread.rsqrt()),
        unwhiten=spectral(vectors, spread.sqrt()),
        statistics=hashlib.sha256(sums.numpy().tobytes() + products.numpy().tobytes()).hexdigest(),
    )


def _numbers(tensors: Mapping[str, Tensor], name: str, count: int) -> Tensor:
    if tuple(tensors[name].shape) != (count,):
        raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, expected ({count},)")
    return tensors[name]


def _shape(parts: Mapping[str, Any]) -> Shape:
    channels, height, width = parts["shape"]
    return int(channels), int(height), int(width)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


_MADE: Mapping[str, Callable[[Sums, Shape], PixelSpace]] = {Normalise.kind: _normalise_of, Zca.kind: _zca_of}
