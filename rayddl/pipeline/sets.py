"""Finds distilled sets by path, URI, stage folder, run record or run name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rayddl.credentials import scrub
from rayddl.errors import ArtifactError, UserError
from rayddl.pipeline import artifacts, records
from rayddl.storage import Folder, split

if TYPE_CHECKING:
    from rayddl.data.distilled import DistilledSet

SET_FILE = "set.json"


def find_set(where: str, out: str = "runs") -> Folder:
    """Return the folder of the set that ``where`` names: a set, a stage's folder, a run record, or a run's name in
    ``out``; for a run, the last set that it made. Raises :class:`ArtifactError` and :class:`UserError`.
    """
    folder = Folder(where)
    try:
        if folder.has(SET_FILE):
            return folder
        if folder.has(f"set/{SET_FILE}"):
            return folder.child("set")
        found = find_record(where, out)
    except ValueError as error:
        raise UserError(
            f"{scrub(where)!r} cannot be read as a folder or URI: {scrub(str(error))}",
            code="place-unreadable",
        ) from error
    if found is None:
        raise ArtifactError(
            f"no distilled set at {scrub(where)!r}: looked for {SET_FILE} and set/{SET_FILE} there, and for "
            f"a run of that name in {scrub(out)!r}; rayddl list shows what there is",
            code="no-such-set",
        )
    runs, file = found
    record = records.read(runs, file)
    for name in reversed(record.get("order", [])):
        stage = runs.child(record["stages"][name]["folder"])
        if stage.has(f"set/{SET_FILE}"):
            return stage.child("set")
    raise ArtifactError(
        f"the run {scrub(runs.path(file))} has made no set yet; run its definition again",
        code="run-without-set",
    )


def stage_of(folder: Folder) -> Folder | None:
    """Return the folder of the finished stage that contains the set in ``folder``; ``None`` if there is none."""
    above, _, last = str(folder).rstrip("/").rpartition("/")
    stage = Folder(above or "/")
    return stage if last == "set" and stage.has(artifacts.MANIFEST) else None


def find_record(where: str, out: str) -> tuple[Folder, str] | None:
    """Return the folder and file of the run record that ``where`` names by path or run name; ``None`` if missing."""
    folder, file = split(where)
    if file.endswith(records.SUFFIX):
        return (folder, file) if folder.has(file) else None
    if "/" in where or os.sep in where or not where:
        return None
    runs = Folder(out)
    return (runs, f"{where}{records.SUFFIX}") if runs.has(f"{where}{records.SUFFIX}") else None


def load_set(where: str | os.PathLike[str], out: str = "runs") -> DistilledSet:
    """Load the distilled set at ``where``: a set's folder, a stage's folder, a run record, or a run's name; or a
    folder with ``images_best.pt`` and ``labels_best.pt`` of rayddl or of other code.

    ``where`` is a path or a URI. Raises :class:`ArtifactError` if it holds no set.
    """
    from rayddl.data.distilled import DistilledSet
    from rayddl.data.formats.pt import is_pair, load_pair

    folder = Folder(os.fspath(where))
    if is_pair(folder):
        return load_pair(folder)
    return DistilledSet.load(find_set(os.fspath(where), out))
