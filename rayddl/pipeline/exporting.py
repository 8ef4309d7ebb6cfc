"""``rayddl export``: a set in a form for other programs, with what others need to reach its figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rayddl.errors import UserError
from rayddl.pipeline.sets import find_set
from rayddl.stages.kinds import judges
from rayddl.storage import Folder


@dataclass(frozen=True)
class Exported:
    """The result of an export."""

    written: tuple[str, ...]
    """Paths or URIs of the files."""
    notes: tuple[str, ...] = ()
    """Sentences on what a user of the files has to know."""


def export_to(
    where: str,
    to: str,
    form: str,
    *,
    out: str = "runs",
    stage: str | None = None,
    observer: str | None = None,
    with_test: bool = False,
) -> Exported:
    """Write the set at ``where`` into the folder or URI ``to`` in the format ``form``; ``stage`` names it if
    there are several.

    ``hf`` has a script that trains on the set, and what it reads: the soft labels, or the observer, which may also be
    in the folder ``observer``; with ``with_test`` also the held-out images. Raises
    :class:`rayddl.errors.RayddlError`.
    """
    from rayddl.data.formats.export import More, export_set, foreign_space

    if form != "hf" and (observer is not None or with_test):
        raise UserError("--observer and --with-test belong to --format hf", code="export-options-of-hf")
    folder = find_set(where, out, stage)
    if form != "hf":
        written = export_set(folder, form, Folder(to))
        notes = [foreign_space(folder) if form == "pt" else "", _own_labels(folder)]
        return Exported(tuple(written), tuple(note for note in notes if note))
    brought = _script().brought(folder, observer, with_test=with_test)
    written = export_set(folder, form, Folder(to), More(brought.files, brought.why_not))
    lacking = (f"no train.py: {brought.why_not}",) if brought.why_not else ()
    return Exported(tuple(written), lacking)


def _script() -> Any:
    """The module ``script`` of the first kind that evaluates sets and has one."""
    found = (kind.optional("script") for kind in judges())
    return next(module for module in found if module is not None)


def _own_labels(folder: Folder) -> str:
    """A note on a set whose figures come from soft labels that this format does not hold; else empty."""
    from rayddl.data.distilled import KIND

    protocol = KIND.read(folder)["info"].get("protocol") or {}
    if protocol.get("name") != "soft":
        return ""
    return (
        "these are the images' own labels, and the set's accuracy comes from an observer's; --format hf brings "
        "those, with a script that trains on them"
    )
