"""``rayddl compare``: compares runs and distilled sets of rayddl and of other code.

Sets that were evaluated are shown with these results. The others are imported and evaluated by the protocol of
the first evaluated one. All of it is an ordinary run, so finished evaluations are used again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayddl import documents, hosts
from rayddl.credentials import scrub
from rayddl.data.config import recorded_source
from rayddl.data.sources.refusals import MOVED, advising
from rayddl.errors import ArtifactError, UserError
from rayddl.pipeline import artifacts, records
from rayddl.pipeline.api import run
from rayddl.pipeline.display.base import Display
from rayddl.pipeline.judging import refuse_unknown_nets
from rayddl.pipeline.plugging import Given, use
from rayddl.pipeline.results import RunResult
from rayddl.pipeline.sets import SET_FILE, find_record, last_part, opened, stage_of
from rayddl.stages.kinds import Kind, judges, produced
from rayddl.storage import Folder, split

NOT_TAKEN = {"kind", "set", "observer", "protocol", "lr", "resources", "labels"}
"""Settings of an evaluate stage that depend on its set and are not applied to other sets."""


_LONGEST_NAME = 60


@dataclass(frozen=True)
class FoundSet:
    """A set to compare, with its folder and its evaluation."""

    folder: Folder
    """The evaluate stage's folder, or the set's own."""
    manifest: Mapping[str, Any] | None = None
    """The manifest of the evaluate stage; ``None`` for a set without an evaluation."""
    own: bool = True
    """False for a set made by other code."""
    run: str = ""
    """The name of the run that was asked for; empty for a folder."""

    @property
    def set(self) -> Folder:
        """The folder of the set itself."""
        return self.folder.child("set") if self.manifest is not None else self.folder


def compare(
    where: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    out: str = "runs",
    nets: str | Sequence[str] | None = None,
    seeds: int | None = None,
    epochs: int | None = None,
    root: str | None = None,
    again: bool = False,
    name: str | None = None,
    progress: bool | Display = True,
    address: str | None = None,
    num_cpus: int | None = None,
    plugins: Given | Sequence[Given] = (),
    allow_remote: bool = False,
) -> RunResult:
    """Compare the runs, evaluate stages and sets in ``where``, or a single one; the result has one table and one
    page.

    With ``again`` all sets are evaluated again by one protocol. ``name`` is the run's; default: ``compare`` and what
    is compared. ``nets``, ``seeds`` and ``epochs`` replace single
    settings of it. ``root`` is the folder of the real images if it has moved. ``plugins`` are as for
    :func:`rayddl.run`. Contacts only hosts that the arguments name, with ``allow_remote`` also those that the sets
    name. Raises :class:`rayddl.errors.RayddlError`.
    """
    use(plugins)
    places = (where,) if isinstance(where, str | os.PathLike) else where
    several = (nets,) if isinstance(nets, str) else tuple(nets) if nets else None
    refuse_unknown_nets(several or ())
    with hosts.only(*(os.fspath(place) for place in places), out, root, allow=allow_remote):
        named = [each for place in places for each in resolve(os.fspath(place), out)]
        by_place: dict[str, FoundSet] = {}
        for each in named:
            by_place.setdefault(_place(each.folder), each)
        found = list(by_place.values())
        called = name or _called([os.fspath(place) for place in places])
        made = definition(
            found, name=called, nets=several, seeds=seeds, epochs=epochs, root=root, again=again
        )
        with advising(MOVED):
            return run(made, out=out, progress=progress, address=address, num_cpus=num_cpus, plugins=plugins)


def _called(places: Sequence[str]) -> str:
    """The name of a comparison: ``compare-match-rded``. Two of the same sets replace each other."""
    parts = []
    for place in places:
        above, last = str(split(place)[0]), last_part(place)
        parts.append(last_part(above) if last == "set" and above != "." else last)
    words = [
        re.sub(r"[^a-z0-9]+", "-", part.removesuffix(records.SUFFIX).casefold()).strip("-") for part in parts
    ]
    return "-".join(["compare", *filter(None, words)])[:_LONGEST_NAME].rstrip("-")


def resolve(where: str, out: str) -> list[FoundSet]:
    """Return the sets that ``where`` names. Raises :class:`ArtifactError` if there is none."""
    folder = opened(where)
    try:
        if folder.has(artifacts.MANIFEST):
            return [_stage(folder)]
        if folder.has(SET_FILE) and not folder.has("images_best.pt"):
            return [_inside_a_stage(str(folder)) or FoundSet(folder)]
        record = find_record(where, out)
    except ValueError as error:
        raise UserError(
            f"{scrub(where)!r} cannot be read as a folder or URI: {scrub(str(error))}",
            code="place-unreadable",
        ) from error
    if record is not None:
        return list(_of_run(*record))
    if folder.exists():
        from rayddl.data.formats.forms import form_of

        form_of(folder)
        return [FoundSet(folder, own=False)]
    from rayddl.data.formats import pt_places

    if pt_places.is_file(where) and pt_places.at(where) is not None:
        return [FoundSet(folder, own=False)]
    raise ArtifactError(
        f"nothing to compare at {scrub(where)!r}: there is no such folder, and no run of that name in "
        f"{scrub(out)!r}; rayddl list shows what there is",
        code="nothing-to-compare",
    )


def _stage(folder: Folder) -> FoundSet:
    artifact = artifacts.open_artifact(folder)
    if produced(artifact.kind) == "judgement":
        return FoundSet(folder, artifact.manifest)
    if folder.has(f"set/{SET_FILE}"):
        return FoundSet(folder.child("set"))
    raise ArtifactError(
        f"{scrub(str(folder))} is a stage of kind {artifact.kind} and holds no set; name a run, an evaluate stage, "
        "or a set",
        code="stage-holds-no-set",
    )


def _inside_a_stage(where: str) -> FoundSet | None:
    """Return the evaluate stage whose folder contains the set at ``where``, if any."""
    stage = stage_of(Folder(where))
    found = _stage(stage) if stage else None
    return found if found and found.manifest is not None else None


def _of_run(runs: Folder, file: str) -> Iterator[FoundSet]:
    """Yield the evaluate stages of a run; if it has none, its last set."""
    record = records.read(runs, file)
    folders = [runs.child(record["stages"][stage]["folder"]) for stage in record.get("order", [])]
    done = [folder for folder in folders if folder.has(artifacts.MANIFEST)]
    opened = [artifacts.open_artifact(folder) for folder in done]
    judged = [artifact for artifact in opened if produced(artifact.kind) == "judgement"]
    if judged:
        run = str(record.get("name") or "")
        yield from (FoundSet(artifact.folder, artifact.manifest, run=run) for artifact in judged)
        return
    made = next((f for f in reversed(done) if f.has(f"set/{SET_FILE}")), None)
    if made is None:
        raise ArtifactError(
            f"the run {scrub(runs.path(file))} has made no set yet; run its definition again",
            code="run-without-set",
        )
    yield FoundSet(made.child("set"))


def definition(
    found: Sequence[FoundSet],
    *,
    name: str = "compare",
    nets: tuple[str, ...] | None = None,
    seeds: int | None = None,
    epochs: int | None = None,
    root: str | None = None,
    again: bool = False,
) -> dict[str, Any]:
    """Return the definition that runs the comparison, as a mapping of its keys."""
    source, seed = _source(found)
    if root is not None:
        source = {**source, "root": root}
    given = {"nets": list(nets) if nets else None, "seeds": seeds, "epochs": epochs}
    waiting = [each for each in found if again or each.manifest is None]
    judge = _judge(found)
    protocol = _protocol(found, judge) if waiting else {}
    if waiting:
        _refuse_sizes(found[0], waiting)
    protocol |= {key: value for key, value in given.items() if value is not None}
    if given != dict.fromkeys(given) and not waiting:
        raise UserError(
            "all sets are evaluated already; for other nets, seeds or epochs give --again",
            code="everything-judged",
        )
    stages: dict[str, Any] = {}
    for i, each in enumerate(waiting, 1):
        stages[f"set-{i}"] = _imported(each)
        stages[f"judge-{i}"] = {"kind": judge.name, "set": f"set-{i}", **protocol}
    stages["compare"] = {"kind": "compare", **_judged([each for each in found if each not in waiting])}
    return {"name": name, "seed": seed, "source": source, "stages": stages}


def _judged(found: Sequence[FoundSet]) -> dict[str, Any]:
    """The settings of the comparison for sets with an evaluation, under the names of the runs that were asked for."""
    if not found:
        return {}
    names = [each.run for each in found]
    return {"runs": [_place(each.folder) for each in found], **({"names": names} if any(names) else {})}


def _refuse_sizes(first: FoundSet, waiting: Sequence[FoundSet]) -> None:
    """Raise :class:`UserError` if the sets to evaluate have images of another size than the first one's, whose source
    is used. Sets of other code do not say their size.
    """
    known = {_place(each.folder): shape for each in (first, *waiting) if (shape := _shape(each)) is not None}
    if len(set(known.values())) > 1:
        listed = "\n".join(
            f"  {scrub(place)}: {width} x {height}" for place, (height, width) in known.items()
        )
        raise UserError(
            "these sets have images of several sizes in pixels, and students of one protocol see one size:\n"
            f"{listed}\nMake them of images of one size, for example with --set source.size=64 (`rayddl init` has "
            "--size), or leave out --again and compare what each was judged by.",
            code="sets-of-several-sizes",
        )


def _shape(found: FoundSet) -> tuple[int, int] | None:
    """Height and width of a set's images; ``None`` if it does not say."""
    if not found.set.has(SET_FILE):
        return None
    shape = (_document(found).get("images") or {}).get("shape")
    return (int(shape[1]), int(shape[2])) if shape else None


def _place(folder: Folder) -> str:
    """Return the folder's absolute path or its URI, which identifies it in any working directory."""
    return str(folder.local or folder)


def _imported(found: FoundSet) -> dict[str, Any]:
    stage: dict[str, Any] = {"kind": "imported", "path": _place(found.set)}
    if not found.own:
        stage["method"] = last_part(_place(found.folder))
    return stage


def _source(found: Sequence[FoundSet]) -> tuple[dict[str, Any], int]:
    """Return the source and seed of the first set that records them."""
    for each in found:
        if each.manifest is not None:
            source: dict[str, Any] = each.manifest["source"]["config"]
            return recorded_source(source), int(each.manifest["seed"])
        known = _info(each).get("source")
        if known is not None:
            return recorded_source(known), int(_info(each).get("seed") or 0)
    raise UserError(
        "none of these sets says which images it was made from; name a run or a rayddl set beside them, or write a "
        "definition with kind: imported",
        code="sets-without-source",
    )


def _judge(found: Sequence[FoundSet]) -> Kind:
    """Return the stage kind that evaluated the first evaluated set; without one, the first that can."""
    return judges(next((str(each.manifest["kind"]) for each in found if each.manifest is not None), ""))[0]


def _protocol(found: Sequence[FoundSet], judge: Kind) -> dict[str, Any]:
    """Return the settings of the first evaluation by hard labels; if there is none of any kind, only that protocol.

    Raises :class:`UserError` if all evaluations are by soft labels, which other sets cannot have.
    """
    fields = judge.config.model_fields
    hard = {"protocol": "hard"} if "protocol" in fields else {}
    soft: FoundSet | None = None
    for each in found:
        recorded = each.manifest["summary"].get("protocol") if each.manifest is not None else None
        stored = recorded or _info(each).get("protocol") or {}
        if "seeds" not in stored:
            continue
        if stored.get("name") != "soft":
            return hard | {
                k: v for k, v in stored.items() if k in fields and k not in NOT_TAKEN and v is not None
            }
        soft = soft or each
    if soft is not None:
        raise UserError(
            f"{scrub(str(soft.folder))} was evaluated with soft labels, which need its teacher; to evaluate "
            "other sets in the same way write a definition with kind: imported, a teacher, and kind: evaluate; to "
            "evaluate all with hard labels compare them with a set that was evaluated so",
            code="set-needs-its-teacher",
        )
    return hard


def _info(found: FoundSet) -> Mapping[str, Any]:
    if not found.set.has(SET_FILE):
        return {}
    info: Mapping[str, Any] = _document(found)["info"]
    return info


def _document(found: FoundSet) -> Mapping[str, Any]:
    document: Mapping[str, Any] = found.set.read_document(
        SET_FILE, documents.DistilledSetDocument, "make the set again"
    )
    return document
