"""``rayddl export``: a set in a form for other programs, with what others need to reach its figures."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rayddl.data.distilled import DistilledSet
from rayddl.data.formats.export import More, export_loaded, export_set, foreign_space
from rayddl.errors import UserError
from rayddl.pipeline import hub
from rayddl.pipeline.sets import find_set
from rayddl.stages.kinds import judges
from rayddl.storage import Folder


@dataclass(frozen=True)
class Exported:
    """The result of an export."""

    files: tuple[str, ...] = ()
    """Paths or URIs of the files."""
    folder: str | None = None
    """Path or URI of the folder that they are in; ``None`` if all is on the Hub."""
    address: str | None = None
    """Address of the data set on the Hub."""
    then: tuple[str, ...] = ()
    """Words of the command that trains on the set; empty if the export has none, or lacks what it needs."""
    notes: tuple[str, ...] = ()
    """Sentences on what a user of the files has to know."""


def export_to(
    where: str,
    to: str | None,
    form: str,
    *,
    out: str = "runs",
    stage: str | None = None,
    observer: str | None = None,
    with_test: bool = False,
    push: str | None = None,
) -> Exported:
    """Write the set at ``where`` into the folder or URI ``to`` in the format ``form``; ``stage`` names it if there are
    several.

    ``hf`` has a script that trains on the set, and what it reads: the soft labels, or the observer, which may also be
    in the folder ``observer``; with ``with_test`` also the held-out images. With ``push``, it is uploaded to this
    ``owner/name`` on the Hugging Face Hub, and written to ``to`` if that is given. Raises
    :class:`rayddl.errors.RayddlError`.
    """
    if form != "hf" and (observer is not None or with_test or push is not None):
        raise UserError(
            "--observer, --with-test and --push belong to --format hf", code="export-options-of-hf"
        )
    if to is None and push is None:
        raise UserError("name a folder or URI to write into with --to", code="export-without-place")
    if push is not None:
        hub.refuse_other_names(push)
    folder = find_set(where, out, stage)
    if form != "hf":
        return _plain(folder, Folder(str(to)), form)
    brought = _script().export_files(folder, observer, with_test=with_test)
    more = More(brought.files, brought.why_not)
    notes = _lacking(brought)
    written = export_set(folder, form, Folder(to), more) if to is not None else []
    then = _then(Folder(to), brought) if to is not None else ()
    address = _pushed(folder, more, push) if push is not None else None
    return Exported(tuple(written), to, address, then, notes)


def _lacking(brought: Any) -> tuple[str, ...]:
    """What the export lacks for training as measured, as notes."""
    if brought.why_not:
        return (f"no train.py: {brought.why_not}",)
    if brought.test != "none":
        return ()
    return (
        "train.py tests on the held-out images, and these are no files of their own in the source: the same command "
        "with --with-test, and another folder, exports them, too (if their terms allow it)",
    )


def _then(to: Folder, brought: Any) -> tuple[str, ...]:
    """The command that trains on the export in ``to``."""
    if brought.why_not or brought.test == "none" or to.local is None:
        return ()
    return ("python", to.path(_script().SCRIPT), *(["TEST"] if brought.test == "own" else []))


def _plain(folder: Folder, to: Folder, form: str) -> Exported:
    made = DistilledSet.load(folder)
    written = export_loaded(made, form, to)
    notes = [foreign_space(folder)] if form == "pt" else list(_left_out(made, form))
    return Exported(
        tuple(written), str(to), notes=tuple(note for note in (*notes, _own_labels(made)) if note)
    )


def _left_out(made: DistilledSet, form: str) -> Iterator[str]:
    """What files of pictures lack of the set, as notes."""
    cut = round(made.clamped() * made.stored.numel())
    if cut:
        yield (
            f"{cut:,} of {made.stored.numel():,} pixel values of the set are darker than black or brighter than white, "
            "and the pictures have black and white in their place; --format pt or hf exports them as they are"
        )
    if form == "imagefolder" and made.labels.ndim == 2:
        yield (
            "the set's labels are probabilities of all classes, and folders have the likeliest class alone; --format "
            "pt or hf exports them as they are"
        )
    if not _of_observer(made):
        yield (
            f"the set's students learn at the rate {made.lr_student:g}, which is in none of these files; --format pt "
            "or hf exports it"
        )


def _pushed(folder: Folder, more: More, name: str) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        paths = export_set(folder, "hf", Folder(scratch), more)
        return hub.pushed(scratch, name, [os.path.relpath(path, scratch) for path in paths])


def _script() -> Any:
    """The module ``script`` of the first kind that evaluates sets and has one."""
    found = (kind.optional("script") for kind in judges())
    return next(module for module in found if module is not None)


def _of_observer(made: DistilledSet) -> bool:
    """True for a set whose figures come from an observer's labels, not from its own and its learning rate."""
    return bool((made.info.get("protocol") or {}).get("name") == "soft")


def _own_labels(made: DistilledSet) -> str:
    """A note on a set whose figures come from soft labels that this format does not hold; else empty."""
    if not _of_observer(made):
        return ""
    return (
        "these are the images' own labels, and the set's accuracy comes from an observer's; --format hf brings "
        "those, with a script that trains on them"
    )
