"""Soft labels on disk: the observer's logits of every image at every step, so that training needs no observer.

A folder of ``labels-<number>.safetensors``, each with some epochs, and ``labels.json``, written last. An epoch
has the random choices of :mod:`rayddl.methods.training.mixes` and the observer's logits in float16. For E
epochs of N images, K classes and a grid of ``factor``, this is about E x N x (2 K + 2 factor + 17) bytes:
1.2 MB for 300 epochs of 100 images and 10 classes, 6 GB for 10,000 images and 1,000 classes. With ``top`` logits kept
of each image (:mod:`rayddl.methods.training.top_logits`) it is 4 ``top`` + 2 in place of 2 K: 190 MB for the ten
largest of the 1,000 classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from safetensors import torch as safetensors
from torch import Tensor

from rayddl import documents, sealed
from rayddl.errors import ArtifactError
from rayddl.methods.training.input_spec import InputSpec
from rayddl.methods.training.mixes import Draws
from rayddl.methods.training.soft import EpochData, SoftProtocol
from rayddl.methods.training.soft_settings import epoch_bytes
from rayddl.methods.training.top_logits import TopLogits
from rayddl.storage import Folder

_META = "labels.json"
OF_CROPS = {"crop_min", "crop_within_patch"}
OF_STUDENTS = {"loss", "optimizer", "schedule", "ema", "label_smoothing", "zoom", "statistics"} | OF_CROPS
"""Settings that do not affect labels, and those of crops, which are stored only if they are not the defaults."""
KIND = sealed.Kind(
    "rayddl soft labels",
    1,
    _META,
    "soft labels",
    "",
    "evaluate the set again",
    documents.LabelsDocument,
)
PART_BYTES = 32 * 2**20
"""Approximate size of one file."""
TEMPERATURE = 20.0
"""Of the softmax that kept logits leave as it is: that of the published loss."""
_KEPT = ("values", "places", "rest")
_SMALL = {"rows": torch.uint8, "columns": torch.uint8, "boxes": torch.int16, "cuts": torch.int16}


@dataclass(frozen=True)
class Index:
    """The content of ``labels.json``."""

    classes: tuple[str, ...]
    input_spec: InputSpec
    protocol: SoftProtocol
    images: str
    """Hash of the labelled images, from :func:`name_of`."""
    count: int
    epochs_a_part: int
    top: int | None = None
    """The number of logits that are kept of each image; ``None``: all."""

    @classmethod
    def of(
        cls,
        images: Tensor,
        classes: tuple[str, ...],
        input_spec: InputSpec,
        protocol: SoftProtocol,
        top: int | None = None,
    ) -> Index:
        """The index for uint8 ``images`` ``[N, C, H, W]``."""
        top = top if top is not None and top < len(classes) else None
        bytes_ = epoch_bytes(len(images), len(classes), protocol.factor, top)
        return cls(
            classes, input_spec, protocol, name_of(images), len(images), max(1, PART_BYTES // bytes_), top
        )

    def parts(self) -> Iterator[tuple[str, range]]:
        """Name and epochs of each file."""
        for start in range(0, self.protocol.epochs, self.epochs_a_part):
            epochs = range(start, min(start + self.epochs_a_part, self.protocol.epochs))
            yield f"labels-{start // self.epochs_a_part:04d}.safetensors", epochs

    def to_json(self) -> dict[str, Any]:
        """The index as JSON values."""
        input_spec, protocol = self.input_spec, self.protocol
        return {
            "classes": list(self.classes),
            "frame": {
                "shape": list(input_spec.shape),
                "mean": list(input_spec.mean),
                "std": list(input_spec.std),
            },
            # Labels are stored only for augmented images, so `plain` is always false.
            "protocol": protocol.model_dump(exclude={"plain", *OF_STUDENTS})
            | protocol.model_dump(include=OF_CROPS, exclude_defaults=True),
            "images": self.images,
            "count": self.count,
            "epochs_a_part": self.epochs_a_part,
            **({} if self.top is None else {"top": self.top}),
        }

    @classmethod
    def from_json(cls, meta: Mapping[str, Any]) -> Index:
        """The index that :meth:`to_json` describes."""
        input_spec, shape = meta["frame"], meta["frame"]["shape"]
        return cls(
            tuple(meta["classes"]),
            InputSpec(
                (int(shape[0]), int(shape[1]), int(shape[2])),
                tuple(float(value) for value in input_spec["mean"]),
                tuple(float(value) for value in input_spec["std"]),
            ),
            SoftProtocol(**meta["protocol"]),
            meta["images"],
            meta["count"],
            meta["epochs_a_part"],
            meta.get("top"),
        )


def name_of(images: Tensor) -> str:
    """Hexadecimal hash of the pixels of uint8 images."""
    shape = json.dumps(list(images.shape)).encode()
    return hashlib.sha256(shape + images.contiguous().cpu().numpy().tobytes()).hexdigest()


def pack(epoch_data: list[EpochData], top: int | None = None) -> bytes:
    """The file, as bytes, of the training data of several epochs, each with logits, of which ``top`` are kept."""
    names = [f.name for f in fields(Draws)]
    tensors = {n: torch.stack([getattr(lecture.draws, n) for lecture in epoch_data]) for n in names}
    tensors["picked"], tensors["partners"] = tensors["picked"].int(), tensors["partners"].int()
    tensors |= {name: tensors[name].to(dtype) for name, dtype in _SMALL.items()}
    logits = [lecture.logits for lecture in epoch_data if isinstance(lecture.logits, Tensor)]
    if top is None:
        return safetensors.save({**tensors, "logits": torch.stack(logits).half()})
    kept = [TopLogits.of(each, top, TEMPERATURE) for each in logits]
    named = {name: torch.stack([getattr(each, name) for each in kept]) for name in _KEPT}
    return safetensors.save({**tensors, **named})


def unpack(tensors: dict[str, Tensor], classes: int) -> list[EpochData]:
    """The epochs' training data, from the tensors in a file that :func:`pack` made, for labels of ``classes``."""
    kept = {name: tensors.pop(name) for name in ("logits", *_KEPT) if name in tensors}
    whole = {name: t if t.dtype == torch.bool else t.long() for name, t in tensors.items()}

    def logits(e: int) -> Tensor | TopLogits:
        if "logits" in kept:
            return kept["logits"][e]
        return TopLogits(kept["values"][e], kept["places"][e], kept["rest"][e], classes)

    return [
        EpochData(Draws(**{name: t[e] for name, t in whole.items()}), logits(e))
        for e in range(len(whole["picked"]))
    ]


def _misfit(index: Index, epochs: int, tensors: Mapping[str, Tensor]) -> str:
    """What is wrong with the names, shapes or values of the tensors of so many epochs. Empty if nothing is."""
    count, classes, factor = index.count, len(index.classes), index.protocol.factor
    kept = (
        {"logits": classes} if index.top is None else {"values": index.top, "places": index.top, "rest": None}
    )
    # The last size, and the number that all values are below; None for any.
    expected: dict[str, tuple[int | None, int | None]] = {
        **dict.fromkeys(("picked", "partners"), (None, count)),
        **dict.fromkeys(("rows", "columns"), (factor, factor)),
        **dict.fromkeys(("boxes", "cuts"), (4, None)),
        "flipped": (None, 2),
        **{name: (last, classes if name == "places" else None) for name, last in kept.items()},
    }
    if expected.keys() != tensors.keys():
        return f"it holds {', '.join(sorted(tensors))[:200]}, expected {', '.join(sorted(expected))}"
    for name, (last, top) in expected.items():
        found = tensors[name]
        each = found.shape[1:2] if name == "cuts" else (count,)
        shape = (epochs, *each, *([] if last is None else [last]))
        if tuple(found.shape) != shape:
            return f"{name} is {list(found.shape)}, expected {list(shape)}"
        if top is not None and not 0 <= int(found.min()) <= int(found.max()) < top:
            return f"{name} has values outside 0 ... {top - 1}"
        if found.is_floating_point() and not found.isfinite().all():
            return f"{name} holds numbers that are not finite"
    return ""


def finish(folder: Folder, index: Index) -> None:
    """Write ``labels.json``, after all label files."""
    files = {name: sealed.entry(folder.read(name)) for name, _ in index.parts()}
    folder.write_json(_META, {**KIND.head(), **index.to_json(), "files": files})


def has_labels(folder: Folder) -> bool:
    """True if ``folder`` contains complete soft labels."""
    return folder.has(_META)


class StoredLabels:
    """The soft labels in a folder, read one file at a time: a function from epoch to its training data."""

    def __init__(self, folder: Folder) -> None:
        """Raises :class:`ArtifactError` if they are incomplete or have a newer format."""
        self._folder = folder
        self._meta = meta = KIND.read(folder)
        try:
            self.index = Index.from_json(meta)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"the soft labels in {folder} are incomplete: {error}. Evaluate the set again.",
                code="soft-labels-incomplete",
            ) from error
        self._open: tuple[str, range, list[EpochData]] = ("", range(0), [])

    def contents(self) -> dict[str, Callable[[], bytes]]:
        """The files of these labels by name, as functions that return their content, read and checked when called."""

        def part(name: str) -> Callable[[], bytes]:
            def content() -> bytes:
                KIND.file(self._folder, self._meta, name)
                return self._folder.read(name)

            return content

        files = {name: part(name) for name, _ in self.index.parts()}
        entries = {name: self._meta["files"][name] for name in files}
        return {
            **files,
            _META: lambda: sealed.document({**KIND.head(), **self.index.to_json(), "files": entries}),
        }

    def refuse_other_images(self, images: Tensor) -> None:
        """Raise :class:`ArtifactError` unless these uint8 images are the labelled ones."""
        if name_of(images) != self.index.images:
            raise ArtifactError(
                f"the soft labels in {self._folder} were made for other images than the set's. Evaluate the "
                "set again to label it anew.",
                code="soft-labels-of-other-images",
            )

    def refuse_fewer(self, epochs: int, classes: tuple[str, ...]) -> None:
        """Raise :class:`ArtifactError` unless the labels have these classes and at least ``epochs`` epochs."""
        if self.index.classes != classes:
            raise ArtifactError(
                f"the soft labels in {self._folder} are of other classes than the source's, or in another order. "
                "Evaluate on the source that the set was made from.",
                code="soft-labels-of-other-classes",
            )
        if self.index.protocol.epochs < epochs:
            raise ArtifactError(
                f"the soft labels in {self._folder} are of {self.index.protocol.epochs} epochs, and {epochs} are "
                "asked for. Lower epochs, or give the observer that labels more.",
                code="soft-labels-too-short",
            )

    def __call__(self, epoch: int) -> EpochData:
        """The training data of ``epoch``. Raises :class:`ArtifactError` for an altered or missing file."""
        if epoch not in self._open[1]:
            self._open = self._read(epoch)
        _, epochs, epoch_data = self._open
        return epoch_data[epoch - epochs.start]

    def _read(self, epoch: int) -> tuple[str, range, list[EpochData]]:
        for name, epochs in self.index.parts():
            if epoch in epochs:
                tensors = KIND.file(self._folder, self._meta, name)
                wrong = _misfit(self.index, len(epochs), tensors)
                if wrong:
                    raise ArtifactError(
                        f"{self._folder.path(name)} does not fit {_META} beside it: {wrong}. Evaluate the set again.",
                        code="soft-labels-misfit",
                    )
                return name, epochs, unpack(tensors, len(self.index.classes))
        raise IndexError(f"epoch {epoch} of {self.index.protocol.epochs}")
