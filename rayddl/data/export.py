"""Writes a distilled set in the forms that other programs read."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Literal, TypeAlias

from rayddl.errors import ArtifactError, UserError
from rayddl.storage import Folder

Format: TypeAlias = Literal["imagefolder", "parquet", "pt"]
FORMATS: tuple[Format, ...] = ("imagefolder", "parquet", "pt")


def export_set(folder: Folder, form: str, to: Folder) -> list[str]:
    """Write the set in ``folder`` into ``to``; returns the paths of the files written.

    - ``imagefolder``: PNG files, ``<class>/<number>.png``, rounded to bytes.
    - ``parquet``: ``images.parquet`` with the columns ``image`` and ``label``, likewise.
    - ``pt``: ``images_best.pt`` (float32 [N, C, H, W] in model space) and ``labels_best.pt``, plain
      tensors in the layout that MTT's code saves and reads, exact; with ``set.json``, which has the
      learning rate and the pixel space that training on them needs.

    Never writes over a file: raises :class:`UserError` when ``to`` has one of the names already, and
    :class:`ArtifactError` when the set is incomplete.
    """
    if form not in FORMATS:
        raise UserError(f"unknown format {form!r}; known: {', '.join(FORMATS)}")
    files = dict(_tensors(folder) if form == "pt" else _copies(folder, form))
    there = sorted(name for name in files if to.has(name))
    if there:
        raise UserError(
            f"{to.path(there[0])} exists already, and an export never writes over a file; "
            "choose another folder with --to, or remove it"
        )
    for name, data in files.items():
        to.write(name, data)
    return [to.path(name) for name in files]


def _copies(folder: Folder, form: str) -> Iterator[tuple[str, bytes]]:
    inside = folder.child("images") if form == "imagefolder" else folder
    names = list(inside.files()) if form == "imagefolder" else ["images.parquet"]
    if not names or not all(inside.has(name) for name in names):
        wanted = "images/" if form == "imagefolder" else "images.parquet"
        raise ArtifactError(f"the set in {folder} has no {wanted}; copy the whole set, or make it again")
    for name in names:
        yield name, inside.read(name)


def _tensors(folder: Folder) -> Iterator[tuple[str, bytes]]:
    import torch

    from rayddl.data.distilled import DistilledSet

    loaded = DistilledSet.load(folder)
    for name, tensor in (("images_best.pt", loaded.images), ("labels_best.pt", loaded.labels)):
        stream = io.BytesIO()
        torch.save(tensor.detach().cpu().contiguous().clone(), stream)
        yield name, stream.getvalue()
    yield "set.json", folder.read("set.json")
