"""The views of a distilled set for people and other libraries: PNG files, a Parquet table, one picture."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

_PER_CLASS = 10
_ROWS_OF_CLASSES = 20
_TILE = 64
_GAP = 2
_PAPER = 255


class Picture(NamedTuple):
    """One image of the set as a PNG file."""

    path: str
    """``<class folder>/<number>.png``; the number counts within the class."""
    label: int
    png: bytes


def class_folders(classes: Sequence[str]) -> tuple[str, ...]:
    """A folder name for each class: readable, unique, valid on every file system, and sorted in the classes' order.

    Libraries that read images by folder number the classes by sorted folder names. Where the names' own order is
    another one, the class's number is put before the name.
    """
    folders, width = plain_folders(classes), len(str(len(classes) - 1))
    if sorted(folders) == list(folders):
        return folders
    return tuple(f"{index:0{width}d}-{folder}" for index, folder in enumerate(folders))


def plain_folders(classes: Sequence[str]) -> tuple[str, ...]:
    """A folder name for each class, whatever their order: readable, unique, and valid on every file system."""
    plain = [_safe(name) for name in classes]
    # Some file systems ignore case.
    taken = Counter(name.casefold() for name in plain)
    folders: list[str] = []
    for index, name in enumerate(plain):
        folder = name
        while taken[folder.casefold()] > 1 or (folder != name and folder.casefold() in taken):
            folder = f"{folder}-{index}"
        folders.append(folder)
        taken[folder.casefold()] += folder != name
    return tuple(folders)


def _safe(name: str) -> str:
    kept = re.sub(r"[^\w .+-]", "_", name).strip(" .")
    # File systems limit the bytes of a name, not its characters.
    return kept.encode()[:80].decode(errors="ignore").strip(" .") or "class"


def picture_paths(folders: Sequence[str], counts: Sequence[int]) -> list[str]:
    """Paths of the images below ``images/``, for ``counts`` images per class."""
    pairs = zip(folders, counts, strict=True)
    return [f"{folder}/{number:04d}.png" for folder, count in pairs for number in range(count)]


def pictures(pixels: Tensor, labels: Tensor, folders: Sequence[str]) -> list[Picture]:
    """Images uint8 [N, C, H, W] as PNG files, in the same order."""
    numbers = [0] * len(folders)
    result = []
    for image, label in zip(pixels, labels.tolist(), strict=True):
        path = f"{folders[label]}/{numbers[label]:04d}.png"
        numbers[label] += 1
        result.append(Picture(path, label, _png(image.permute(1, 2, 0).numpy())))
    return result


def table(images: Sequence[Picture], classes: Sequence[str], soft: Tensor | None) -> bytes:
    """The images as a Parquet file that rayddl's ``parquet`` source and Hugging Face can read.

    Soft labels [N, K] get a column of their own; ``label`` is then the most probable class.
    """
    columns = {
        "image": pa.array(
            [{"bytes": image.png, "path": image.path} for image in images],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        ),
        "label": pa.array([image.label for image in images], pa.int64()),
    }
    features = {"image": {"_type": "Image"}, "label": {"names": list(classes), "_type": "ClassLabel"}}
    if soft is not None:
        columns["soft_label"] = pa.array(soft.tolist(), pa.list_(pa.float32()))
        features["soft_label"] = {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"}
    metadata = {
        "classes": "\n".join(classes),
        "huggingface": json.dumps({"info": {"features": features}}),
    }
    sink = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), sink)
    return sink.getvalue()


def grid(pixels: Tensor, labels: Tensor, classes: int) -> bytes:
    """One PNG of the set: a row per class with up to ten images each, enlarged by whole factors.

    With more than twenty classes, or one image per class, classes are laid out in several columns.
    """
    members = [(labels == label).nonzero().flatten().tolist() for label in range(classes)]
    per_class, across = _layout(classes, max(len(m) for m in members))
    height, width = int(pixels.shape[2]), int(pixels.shape[3])
    zoom = max(1, math.ceil(_TILE / max(height, width)))
    step_y, step_x = height * zoom + _GAP, width * zoom + _GAP
    sheet = np.full(
        (math.ceil(classes / across) * step_y + _GAP, across * per_class * step_x + _GAP, pixels.shape[1]),
        _PAPER,
        dtype=np.uint8,
    )
    for label, indices in enumerate(members):
        row, column = divmod(label, across)
        for place, index in enumerate(indices[:per_class]):
            tile = pixels[index].permute(1, 2, 0).numpy().repeat(zoom, 0).repeat(zoom, 1)
            top, left = row * step_y + _GAP, (column * per_class + place) * step_x + _GAP
            sheet[top : top + height * zoom, left : left + width * zoom] = tile
    return _png(sheet)


def opened(png: bytes) -> Image.Image:
    """The image decoded from the bytes of a PNG file."""
    return Image.open(io.BytesIO(png), formats=("PNG",))


def html(png: bytes, caption: str) -> str:
    """HTML of a picture with a caption, for a notebook. The picture is embedded: nothing is downloaded."""
    data, text = base64.b64encode(png).decode(), escape(caption)
    return (
        f'<figure style="margin:0"><img src="data:image/png;base64,{data}" alt="{text}" '
        f'style="max-width:100%;max-height:40rem;image-rendering:pixelated"><figcaption>{text}</figcaption></figure>'
    )


def _layout(classes: int, most: int) -> tuple[int, int]:
    """Number of images shown per class, and number of classes side by side."""
    if most > 1 and classes <= _ROWS_OF_CLASSES:
        return min(most, _PER_CLASS), 1
    # With hundreds of classes, fewer images of each limit the picture's size.
    per_class = max(1, min(most, _PER_CLASS, 1000 // classes))
    square = math.ceil(math.sqrt(classes / per_class))
    # Prefer a width that fills the last row.
    across = next((n for n in range(square, 2 * square) if classes % n == 0), square)
    return per_class, across


def _png(pixels: NDArray[np.uint8]) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(sink, format="PNG")
    return sink.getvalue()
