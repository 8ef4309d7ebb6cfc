"""A distilled set: images, labels and everything needed to train on them as in their evaluation.

On disk it is a folder::

    set.safetensors   images [N, C, H, W], float32 in model space or uint8 pixels; labels; lr_student; space.*
    images/           PNG, <class>/<number>.png: opens as ImageFolder
    images.parquet    image: struct<bytes, path>, label: int64: opens as a Hugging Face data set
    grid.png          one picture of all images
    set.json          classes, pixel space, how it was made, figures, hash of set.safetensors

``set.safetensors`` with ``set.json`` is the set; the other files are views of it, rounded to bytes.
``set.json`` is written last: a folder without it is not a set.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from safetensors import torch as safetensors
from torch import Tensor
from torch.utils.data import TensorDataset

from rayddl import documents, sealed
from rayddl.data import views
from rayddl.data.pixels.space import PixelSpace
from rayddl.errors import ArtifactError
from rayddl.storage import Folder

_TENSORS, _META = "set.safetensors", "set.json"
KIND = sealed.Kind(
    "rayddl distilled set",
    1,
    _META,
    "distilled set",
    "a",
    "make the set again",
    documents.DistilledSetDocument,
)
_SPACE = "space."
_SUM_TOLERANCE = 1e-2
LR_STUDENT = 0.01
"""The learning rate of hard-label students if none was learned: the start value of ``lr_student`` in MTT's code."""


@dataclass(frozen=True, eq=False)
class DistilledSet:
    """A few images per class for training a network, with the labels, learning rate and pixel space that it needs."""

    stored: Tensor
    """[N, C, H, W]: float32 in model space (encoded by ``space``), or uint8 pixels for sets of crops of
    real images."""
    labels: Tensor
    """int64 [N], or float32 [N, K]: a distribution over the classes per image."""
    lr_student: float
    """The learning rate that was learned together with the images."""
    classes: tuple[str, ...]
    space: PixelSpace
    info: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """JSON values: ``method``, ``provenance``, ``protocol``, ``metrics``."""

    def __len__(self) -> int:
        return int(self.stored.shape[0])

    @property
    def images(self) -> Tensor:
        """float32 [N, C, H, W] in model space."""
        return self.space.encode(self.stored) if self.stored.dtype == torch.uint8 else self.stored

    @property
    def ipc(self) -> int:
        """Images per class, rounded down if classes have different numbers of images."""
        return len(self) // len(self.classes)

    @property
    def counts(self) -> tuple[int, ...]:
        """Images of each class. Of soft labels, which may name another class than the one that an image began as, the
        same for all classes if that is possible.
        """
        if self.labels.ndim == 2 and len(self) % len(self.classes) == 0:
            return (self.ipc,) * len(self.classes)
        return tuple(self.hard_labels.bincount(minlength=len(self.classes)).tolist())

    @property
    def hard_labels(self) -> Tensor:
        """int64 [N]: the labels; for soft labels the most probable class."""
        return self.labels if self.labels.ndim == 1 else self.labels.argmax(1)

    def pixels(self) -> Tensor:
        """uint8 [N, C, H, W] for viewing: decoded from model space, clamped and rounded."""
        if self.stored.dtype == torch.uint8:
            return self.stored
        return self.space.decode(self.stored).mul_(255).round_().to(torch.uint8)

    def clamped(self) -> float:
        """The share of values that :meth:`pixels` clamps, by more than it rounds."""
        if self.stored.dtype == torch.uint8:
            return 0.0
        beyond = (self.space.invert(self.stored) - 0.5).abs_().sub_(0.5)
        return float((beyond > 0.5 / 255).double().mean())

    def to_torch_dataset(self) -> TensorDataset:
        """The set for a ``torch.utils.data.DataLoader``: pairs of a float32 image in model space and its label."""
        return TensorDataset(self.images, self.labels)

    def show(self) -> None:
        """Display a picture of the set: below the cell in a notebook, otherwise in the image viewer."""
        views.opened(self._grid()).show()

    def __repr__(self) -> str:
        return f"<DistilledSet {self._facts()}>"

    def _repr_html_(self) -> str:
        return views.html(self._grid(), self._facts())

    def _grid(self) -> bytes:
        return views.grid(self.pixels().cpu(), self.hard_labels.cpu(), len(self.classes))

    def _facts(self) -> str:
        channels, height, width = self.space.shape
        labels = "hard" if self.labels.ndim == 1 else "soft"
        return (
            f"{self.info.get('method', 'distilled set')}: {len(self)} images of {len(self.classes)} classes, "
            f"{channels} x {height} x {width}, {labels} labels"
        )

    def save(self, folder: Folder) -> None:
        """Write the set and its views into ``folder``, replacing an existing set.

        Other files are not changed. Raises ``ValueError`` if the shapes of the parts do not match, if a number
        cannot be right (see :meth:`wrong_values`), or if ``info`` is not JSON.
        """
        self._refuse_misfit()
        json.dumps(dict(self.info), allow_nan=False)
        _remove_previous(folder)
        tensors = sealed.write(folder, _TENSORS, self._tensors())
        pixels, labels = self.pixels().cpu(), self.hard_labels.cpu()
        soft = self.labels.cpu() if self.labels.ndim == 2 else None
        pictures = views.pictures(
            pixels, labels, views.class_folders(self.classes),
            write=lambda picture: folder.write(f"images/{picture.path}", picture.png),
        )  # fmt: skip
        with closing(pictures), folder.writing("images.parquet") as path:
            views.write_table(path, pictures, self.classes, soft)
        folder.write("grid.png", views.grid(pixels, labels, len(self.classes)))
        folder.write(_META, sealed.document(self.document(tensors)))

    @classmethod
    def load(cls, folder: Folder) -> DistilledSet:
        """The set in ``folder``, bit for bit as it was saved.

        Raises :class:`ArtifactError` if it is incomplete, was altered, or has a newer format.
        """
        meta = KIND.read(folder)
        tensors = KIND.file(folder, meta, _TENSORS)
        try:
            space = {name.removeprefix(_SPACE): t for name, t in tensors.items() if name.startswith(_SPACE)}
            loaded = cls(
                stored=tensors["images"],
                labels=tensors["labels"],
                lr_student=float(tensors["lr_student"]),
                classes=tuple(meta["classes"]),
                space=PixelSpace.from_parts(meta["space"], space),
                info=meta["info"],
            )
            loaded._refuse_misfit()
        except ArtifactError as error:
            raise ArtifactError(
                f"the distilled set in {folder}: {error}. Make it again.", code="set-unreadable"
            ) from error
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ArtifactError(
                f"the distilled set in {folder} is incomplete or inconsistent: {error}. Make it again.",
                code="set-inconsistent",
            ) from error
        return loaded

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {
            "images": self.stored,
            "labels": self.labels,
            # float64, because float32 would round the Python float.
            "lr_student": torch.tensor(self.lr_student, dtype=torch.float64),
            **{_SPACE + name: tensor for name, tensor in self.space.tensors().items()},
        }
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def data(self) -> bytes:
        """The content of ``set.safetensors``."""
        return safetensors.save(self._tensors())

    def document(self, tensors: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The content of ``set.json`` as JSON values; ``tensors``: the entry of ``set.safetensors``, if it is known."""
        return {
            **KIND.head(),
            "classes": list(self.classes),
            "folders": list(views.class_folders(self.classes)),
            "images": {
                "count": len(self),
                "per_class": self.hard_labels.bincount(minlength=len(self.classes)).tolist(),
                "shape": list(self.space.shape),
            },
            "labels": "hard" if self.labels.ndim == 1 else "soft",
            "lr_student": self.lr_student,
            "space": self.space.to_json(),
            "info": dict(self.info),
            "files": {_TENSORS: dict(tensors or sealed.entry(self.data()))},
        }

    def _refuse_misfit(self) -> None:
        kept = self.stored
        if tuple(kept.shape[1:]) != self.space.shape or kept.dtype not in (torch.float32, torch.uint8):
            raise ValueError(
                f"images are {kept.dtype} {tuple(kept.shape)}, expected float32 or uint8 [N, "
                f"{', '.join(map(str, self.space.shape))}] as the pixel space is"
            )
        count, classes = len(self), len(self.classes)
        soft = self.labels.dtype == torch.float32 and tuple(self.labels.shape) == (count, classes)
        hard = self.labels.dtype == torch.int64 and tuple(self.labels.shape) == (count,)
        if not (soft or hard):
            raise ValueError(
                f"labels are {self.labels.dtype} {tuple(self.labels.shape)}, expected int64 [{count}] or "
                f"float32 [{count}, {classes}]"
            )
        if count == 0 or (hard and not (0 <= int(self.labels.min()) <= int(self.labels.max()) < classes)):
            raise ValueError(f"{count} images with labels outside 0 ... {classes - 1}, or none at all")
        wrong = self.wrong_values()
        if wrong:
            raise ValueError(wrong)

    def wrong_values(self) -> str:
        """What is wrong with the numbers, in words: not finite, a learning rate of 0 or below, or soft labels that are
        no distributions. Empty if nothing is.
        """
        numbers = {"images": self.stored, "labels": self.labels, **self.space.tensors()}
        for name, tensor in numbers.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                return f"{name} holds numbers that are not finite"
        if not (math.isfinite(self.lr_student) and self.lr_student > 0):
            return f"lr_student is {self.lr_student:g}, expected a finite number above 0"
        if self.labels.ndim == 2:
            sums = self.labels.sum(1)
            if float(self.labels.min()) < 0 or float((sums - 1).abs().max()) > _SUM_TOLERANCE:
                return (
                    f"soft labels run from {float(self.labels.min()):g}, with sums of rows from "
                    f"{float(sums.min()):g} to {float(sums.max()):g}; expected none below 0, and sums of 1"
                )
        return ""


def _remove_previous(folder: Folder) -> None:
    """Remove the files of a complete set in ``folder``, as listed in its ``set.json``.

    ``set.json`` is removed first, so that no reader takes a mixture of old and new files for a set.
    """
    if not folder.has(_META):
        return
    there = folder.files()
    try:
        meta = folder.read_document(_META, documents.DistilledSetDocument, "")
        counts = meta["images"]["per_class"]
        # A document may count more images than there are files.
        old = views.picture_paths(meta["folders"], counts) if sum(counts) <= len(there) else []
    except (ArtifactError, KeyError, TypeError, ValueError):
        old = []
    folder.delete(_META)
    for path in (f"images/{path}" for path in old):
        if path in there:
            folder.delete(path)
