"""The views of a distilled set for people and other libraries: PNG files, a Parquet table, one picture."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from rayddl.data.ahead import ahead

_PER_CLASS = 10
_ROWS_OF_CLASSES = 20
_TILE = 64
_LARGEST = 4096
"""Pixels of a side of the picture of a set, above which its images are reduced."""
_GAP = 2
_PAPER = 255
_GROUP_BYTES = 16 * 2**20
"""Bytes of images in a row group of a table. Arrow cannot read images of a row group with 2 GiB of them."""


class Picture(NamedTuple):
    """One image of the set as a PNG file."""

    path: str
    """As :func:`paths` gives it."""
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


def pictures(
    pixels: Tensor, labels: Tensor, folders: Sequence[str], write: Callable[[Picture], None] | None = None
) -> Generator[Picture, None, None]:
    """Images uint8 [N, C, H, W] as PNG files, in the same order; threads make a few at a time, ahead of their use.

    ``write`` is called with each by the thread that made it; closing the iterator waits for calls under way.
    """

    def made(path: str, label: int, image: Tensor) -> Picture:
        picture = Picture(path, label, png(image))
        if write is not None:
            write(picture)
        return picture

    images = zip(paths(labels, folders), labels.tolist(), pixels, strict=True)
    calls = ((partial(made, *each), each[2].nbytes) for each in images)
    return ahead(calls, threaded=True, finish=write is not None)


def paths(labels: Tensor, folders: Sequence[str]) -> Iterator[str]:
    """The path of each image as a file, ``<class folder>/<number>.png``; the number counts within the class."""
    numbers = [0] * len(folders)
    for label in labels.tolist():
        yield f"{folders[label]}/{numbers[label]:04d}.png"
        numbers[label] += 1


def png(image: Tensor) -> bytes:
    """The image uint8 [C, H, W] as a PNG file."""
    return _png(image.permute(1, 2, 0).numpy())


def write_table(
    to: Path | IO[bytes], images: Iterable[Picture], classes: Sequence[str], soft: Tensor | None
) -> None:
    """Write the images to a Parquet file that rayddl's ``parquet`` source and Hugging Face can read.

    Soft labels [N, K] get a column of their own; ``label`` is then the most probable class. Holds one row group in
    memory.
    """
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [("image", struct), ("label", pa.int64())]
    features = {"image": {"_type": "Image"}, "label": {"names": list(classes), "_type": "ClassLabel"}}
    if soft is not None:
        fields.append(("soft_label", pa.list_(pa.float32())))
        features["soft_label"] = {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"}
    metadata = {
        "classes": "\n".join(classes),
        "huggingface": json.dumps({"info": {"features": features}}),
    }
    schema = pa.schema(fields, metadata)
    with pq.ParquetWriter(to, schema) as writer:
        for start, group in _row_groups(images):
            columns = {
                "image": pa.array([{"bytes": each.png, "path": each.path} for each in group], struct),
                "label": pa.array([each.label for each in group], pa.int64()),
            }
            if soft is not None:
                rows = soft[start : start + len(group)].tolist()
                columns["soft_label"] = pa.array(rows, pa.list_(pa.float32()))
            writer.write_table(pa.table(columns, schema))


def _row_groups(images: Iterable[Picture]) -> Iterator[tuple[int, list[Picture]]]:
    """Images that follow each other, of about :data:`_GROUP_BYTES`, and the index of the first one."""
    start, held, group = 0, 0, list[Picture]()
    for image in images:
        group.append(image)
        held += len(image.png)
        if held >= _GROUP_BYTES:
            yield start, group
            start, held, group = start + len(group), 0, []
    if group:
        yield start, group


def grid(pixels: Tensor, labels: Tensor, classes: int) -> bytes:
    """One PNG of the set: a row per class with up to ten images each, enlarged or reduced by whole factors.

    With more than twenty classes, or one image per class, classes are laid out in several columns.
    """
    members = [(labels == label).nonzero().flatten().tolist() for label in range(classes)]
    per_class, across = _layout(classes, max(len(m) for m in members))
    rows, columns = math.ceil(classes / across), across * per_class
    height, width = int(pixels.shape[2]), int(pixels.shape[3])
    zoom = max(1, math.ceil(_TILE / max(height, width)))
    reduced = max(1, math.ceil(max(rows * height, columns * width) * zoom / _LARGEST)) if zoom == 1 else 1
    high, wide = math.ceil(height / reduced) * zoom, math.ceil(width / reduced) * zoom
    step_y, step_x = high + _GAP, wide + _GAP
    sheet = np.full((rows * step_y + _GAP, columns * step_x + _GAP, pixels.shape[1]), _PAPER, dtype=np.uint8)
    for label, indices in enumerate(members):
        row, column = divmod(label, across)
        for place, index in enumerate(indices[:per_class]):
            tile = pixels[index].permute(1, 2, 0).numpy().repeat(zoom, 0).repeat(zoom, 1)
            if reduced > 1:
                tile = np.asarray(_image(tile).reduce(reduced)).reshape(high, wide, -1)
            top, left = row * step_y + _GAP, (column * per_class + place) * step_x + _GAP
            sheet[top : top + high, left : left + wide] = tile
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
    _image(pixels).save(sink, format="PNG")
    return sink.getvalue()


def _image(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
