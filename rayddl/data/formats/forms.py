"""The forms of the sets that are imported, and which files of a folder belong to one. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from rayddl.data.formats import pt_places
from rayddl.data.sources import split_files, trees
from rayddl.data.sources.refusals import shown
from rayddl.errors import ArtifactError
from rayddl.storage import Folder

Form = Literal["set", "pt", "imagefolder", "parquet"]
SET_FILE = "set.json"
NAMES = "classes.txt"
LOOKED_FOR = (
    "set.json, images_best.pt and labels_best.pt or one other .pt file, folders of images by class, or one "
    ".parquet file"
)


def form_of(folder: Folder) -> Form:
    """The format of the set in ``folder``. Raises :class:`ArtifactError` if there is no set."""
    if pt_places.is_pair(folder):
        return "pt"
    if folder.has(SET_FILE):
        return "set"
    if table_in(folder) is not None:
        return "parquet"
    place = pt_places.find(folder)
    # One file among folders of images may be anything.
    if place is not None and place.labels is not None:
        return "pt"
    if images_in(folder):
        return "imagefolder"
    if place is not None:
        return "pt"
    raise ArtifactError(f"there is no set in {folder}: looked for {LOOKED_FOR}.", code="no-set-here")


def table_in(folder: Folder) -> str | None:
    """The one Parquet file in ``folder``, or in its folder ``data``; ``None`` if there is none, or several."""
    found = tables_in(folder)
    return found[0] if len(found) == 1 else None


def tables_in(folder: Folder) -> list[str]:
    """The Parquet files in ``folder``, or in its folder ``data``. Raises :class:`ArtifactError` if some are missing."""
    found = [name for name in folder.names() if name.endswith(".parquet")]
    if not found and "data" in folder.folders():
        found = [f"data/{name}" for name in folder.child("data").names() if name.endswith(".parquet")]
    lacking = split_files.missing(found)
    if lacking:
        raise ArtifactError(
            f"the set in {folder} is incomplete: by the numbers of its files, {shown(lacking)} "
            f"{'is' if len(lacking) == 1 else 'are'} missing.",
            code="import-shards-missing",
        )
    return found


def images_in(folder: Folder) -> list[tuple[str, int]]:
    """Name and bytes of each image in the folders of ``folder``, sorted by name."""
    return [(name, size) for name, size in trees.list_images(folder, folder) if "/" in name]


def files_of(where: str, form: Form | None) -> Iterator[tuple[Folder, str, int]]:
    """Folder, name and bytes of each file that is read of the set at ``where``, a path or URI; of a rayddl set, the one
    that has the hashes of the others. There are none where nothing is, or an empty folder.

    Raises :class:`ArtifactError` for a folder of other files.
    """
    folder = Folder(where)
    place = pt_places.at(where) if pt_places.is_file(where) else None
    if place is None:
        if not (folder.exists() and (folder.names() or folder.folders())):
            return
        form = form or form_of(folder)
        place = pt_places.find(folder) if form == "pt" else None
    if place is not None:
        yield from _there(place.folder, place.names)
    elif form == "parquet":
        yield from _there(folder, (table_in(folder) or "",))
    elif form == "set":
        yield from _there(folder, (SET_FILE,))
    elif form == "imagefolder":
        yield from ((folder, *image) for image in images_in(folder))
        yield from _there(folder, (NAMES,))


def _there(folder: Folder, names: tuple[str, ...]) -> Iterator[tuple[Folder, str, int]]:
    for name in names:
        if name and folder.has(name):
            yield folder, name, folder.size(name)
