"""Finds distilled sets by path, URI, stage folder, run record or run name."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from rayddl.credentials import scrub
from rayddl.errors import ArtifactError, UserError
from rayddl.escapes import visible
from rayddl.pipeline import artifacts, hub, records
from rayddl.storage import Folder, split

if TYPE_CHECKING:
    from rayddl.data.distilled import DistilledSet

SET_FILE = "set.json"
_SHOWN = 6


def find_set(where: str, out: str = "runs", stage: str | None = None) -> Folder:
    """Return the folder of the set that ``where`` names: a set, a stage's folder, a run record, a run's name in
    ``out``, a folder of these, or ``hf://owner/name``, which is fetched from the Hugging Face Hub.

    A set that an evaluation has copied counts as one with its copy, which has the figures. Of several sets, ``stage``
    names the one: the stage that made it, or the folder that holds it. Raises :class:`ArtifactError` and
    :class:`UserError`, for several sets if ``stage`` names none.
    """
    folder = opened(where)
    if where.startswith(hub.SCHEME):
        return folder
    try:
        if folder.has(SET_FILE):
            return folder
        if folder.has(f"set/{SET_FILE}"):
            return folder.child("set")
        found = find_record(where, out)
        sets = _inside(folder) if found is None else _of_run(*found)
    except ValueError as error:
        raise UserError(
            f"{scrub(where)!r} cannot be read as a folder or URI: {scrub(str(error))}",
            code="place-unreadable",
        ) from error
    if found is None and not sets:
        raise ArtifactError(
            f"no distilled set at {scrub(where)!r}: looked for {SET_FILE} and set/{SET_FILE} there, and for "
            f"a run of that name in {scrub(out)!r}; {_nearest(where, out)}rayddl list shows what there is",
            code="no-such-set",
        )
    return _the_one(sets, where, stage)


def opened(where: str) -> Folder:
    """The folder at a path or URI; that of ``hf://owner/name`` is fetched first. Raises :class:`UserError`."""
    return Folder(hub.fetched(where) if where.startswith(hub.SCHEME) else where)


def _nearest(where: str, out: str) -> str:
    """``did you mean 'photos'? `` if a run in ``out`` is called nearly so."""
    with suppress(OSError, ValueError):
        runs = [name.removesuffix(records.SUFFIX) for name in records.names(Folder(out))]
        return "".join(
            f"did you mean {visible(name)!r}? " for name in difflib.get_close_matches(where, runs, 1)
        )
    return ""


def _the_one(sets: Mapping[str, Folder], where: str, stage: str | None) -> Folder:
    """Return the set named ``stage``, or the only one."""
    if stage is None and len(sets) == 1:
        return next(iter(sets.values()))
    if stage in sets:
        return sets[str(stage)]
    names = ", ".join(list(sets)[:_SHOWN]) + (f" and {len(sets) - _SHOWN} more" if len(sets) > _SHOWN else "")
    if stage is None:
        raise UserError(
            f"{scrub(where)} has {len(sets)} sets: {names}; name one with --stage (in Python stage=…)",
            code="several-sets",
        )
    raise UserError(f"{scrub(where)} has no set of {stage!r}; it has: {names}", code="no-set-of-stage")


def _of_run(runs: Folder, file: str) -> dict[str, Folder]:
    """Return the sets of a run by stage, without those that another of its stages with a set has read."""
    record = records.read(runs, file)
    folders = {name: runs.child(record["stages"][name]["folder"]) for name in record.get("order", [])}
    made = {name: stage for name, stage in folders.items() if stage.has(f"set/{SET_FILE}")}
    if not made:
        raise ArtifactError(
            f"the run {scrub(runs.path(file))} has made no set yet; run its definition again",
            code="run-without-set",
        )
    done = [stage for stage in made.values() if stage.has(artifacts.MANIFEST)]
    read = {name for stage in done for name in artifacts.open_artifact(stage).manifest["inputs"]}
    return {name: stage.child("set") for name, stage in made.items() if name not in read}


def _inside(folder: Folder) -> dict[str, Folder]:
    """Return the sets in the folders of ``folder``, by the folders' names."""
    children = {name: folder.child(name) for name in folder.folders()}
    places = {
        name: [place for place in (child, child.child("set")) if place.has(SET_FILE)]
        for name, child in children.items()
    }
    return {name: found[0] for name, found in places.items() if found}


def stage_of(folder: Folder) -> Folder | None:
    """Return the folder of the finished stage that contains the set in ``folder``; ``None`` if there is none."""
    stage, last = split(str(folder))
    return stage if last == "set" and stage.has(artifacts.MANIFEST) else None


def last_part(place: str) -> str:
    """The last part of a path or URI, without connection options and credentials."""
    return split(place)[1].rpartition("@")[2] if "://" in place else split(place)[1]


def find_record(where: str, out: str) -> tuple[Folder, str] | None:
    """Return the folder and file of the run record that ``where`` names by path or run name; ``None`` if missing."""
    folder, file = split(where)
    if file.endswith(records.SUFFIX):
        return (folder, file) if folder.has(file) else None
    if "/" in where or os.sep in where or not where:
        return None
    runs = Folder(out)
    return (runs, f"{where}{records.SUFFIX}") if runs.has(f"{where}{records.SUFFIX}") else None


def load_set(where: str | os.PathLike[str], out: str = "runs", stage: str | None = None) -> DistilledSet:
    """Load the distilled set at ``where``: a set's folder, a stage's folder, a run record, a run's name,
    ``hf://owner/name``, or a folder with ``images_best.pt`` and ``labels_best.pt`` of rayddl or of other code, or one
    ``.pt`` file of other code with both.

    ``where`` is a path or a URI. If it has several sets, ``stage`` names the one. Raises :class:`ArtifactError` if it
    holds no set, and :class:`UserError` if it holds several and ``stage`` names none.
    """
    from rayddl.data.distilled import DistilledSet
    from rayddl.data.formats import pt, pt_places

    place = os.fspath(where)
    if not place.startswith(hub.SCHEME) and (pt_places.is_file(place) or pt_places.is_pair(Folder(place))):
        found = pt_places.at(place)
        if found is not None:
            return pt.load_place(found)
    return DistilledSet.load(find_set(place, out, stage))
