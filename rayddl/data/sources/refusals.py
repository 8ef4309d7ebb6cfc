"""Checks that refuse a source because of its folder or its classes. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rayddl import limits
from rayddl.data.config import SourceConfig
from rayddl.data.sources import known
from rayddl.errors import SourceError, StageError
from rayddl.storage import Folder, UnreachableError

SHOWN = 5
"""Number of names that a message lists; the others are counted."""


FOLLOW = (
    "If they are your own and you want the images they lead to, set source.follow_links=true (for `rayddl init`, "
    "--follow-links)."
)
"""What to do about links that leave a source's root."""
MOVED = "The set records this folder of its source: copy the files there, or give another folder with --root."
"""What to do about missing files of a source that a set records, for commands with ``--root``."""


def bad_images_rule(allowed: float) -> str:
    """What a run does with unreadable images, of which the share ``allowed`` may be."""
    if allowed >= 1:
        return "a run leaves such images out, however many (source.max_bad_fraction)"
    return (
        f"a run leaves such images out, and ends with an error if they are more than {100 * allowed:g} % of all "
        "(source.max_bad_fraction)"
    )


@contextmanager
def advising(advice: str) -> Iterator[None]:
    """In the block, which uses a source that a set records, an error that advises a definition's settings has
    ``advice`` in their place.
    """
    try:
        yield
    except SourceError as error:
        raise error.advised(advice) from error.__cause__


def read_names(folder: Folder, name: str) -> bytes:
    """Return a list of names, whole: a part of it would be other classes. Raises :class:`SourceError` for a longer one
    than a document may be.
    """
    limit = limits.DOCUMENT_BYTES
    data = folder.read(name, limit.value + 1)
    if len(data) > limit.value:
        raise SourceError(
            f"{folder.path(name)} has {limit.exceeded(len(data), 'bytes or more')}.", code="list-too-long"
        )
    return data


def refuse_absent_classes(labels: Iterable[int], classes: tuple[str, ...], config: SourceConfig) -> None:
    """Raise :class:`SourceError` unless every class occurs among the training ``labels``."""
    present = set(labels)
    absent = [name for index, name in enumerate(classes) if index not in present]
    if absent:
        raise SourceError(
            f"source {config.name} in {config.root}: {len(absent)} of {len(classes)} classes have no "
            f"readable training image: {shown(absent)}. Every class needs at least one; take the others "
            "out of the class names, or add images.",
            code="classes-without-images",
        )


def refuse_one_class(classes: tuple[str, ...], where: str, looked_for: str) -> None:
    """Raise :class:`SourceError` if there are fewer than two classes."""
    if len(classes) < 2:
        found = f"only the class {classes[0]!r}" if classes else "no class"
        raise SourceError(
            f"{where}: found {found}, at least two are needed. Looked for {looked_for}.",
            code="too-few-classes",
        )


def unlabelled(splits: Mapping[str, Sequence[NDArray[np.int64]]]) -> tuple[str, ...]:
    """A sentence on the images with the label -1 in each split's files, if there are any."""
    counts = {split: sum(int((part < 0).sum()) for part in parts) for split, parts in splits.items()}
    return tuple(
        f"left out of the {split} split: {count:,} with the label -1, which means unlabelled"
        for split, count in counts.items()
        if count
    )


def refuse_all_unlabelled(splits: Mapping[str, Sequence[NDArray[np.int64]]], where: str) -> None:
    """Raise :class:`SourceError` if every image of a split has the label -1."""
    for split, parts in splits.items():
        if parts and all((part < 0).all() for part in parts):
            raise SourceError(
                f"{where}: every image of the {split} split has the label -1, which means unlabelled. Set "
                f"source.{split} to files with labels.",
                code="split-unlabelled",
            )


def refuse_links(config: SourceConfig, folder: Folder, names: Sequence[str]) -> None:
    """Raise :class:`SourceError` if links lead one of the files ``names`` out of ``folder``, unless the source allows
    it.
    """
    outside = [] if config.follow_links else [name for name in names if folder.leaves(name, folder)]
    if outside:
        raise SourceError(
            f"source {config.name} in {place(folder)}: links lead out of it: {shown(outside)}. {FOLLOW}",
            code="link-leaves-root",
        )


_LONGEST = 100


def shown(names: Sequence[str], most: int = SHOWN) -> str:
    """The first ``most`` names, cut where they are long, and the number of the others."""
    text = ", ".join(name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…" for name in names[:most])
    return f"{text} and {len(names) - most} more" if len(names) > most else text


def unreachable(error: OSError) -> StageError:
    """The error for storage that does not answer: counted as an unreadable image, it would change the result."""
    return StageError(
        f"the storage of the images does not answer, although every request was repeated: {error}. What was done is "
        "kept; run the same command again when it answers.",
        code="storage-unreachable",
    )


def open_root(config: SourceConfig, looked_for: str) -> Folder:
    """The source's root folder. Raises :class:`SourceError` if ``root`` is not set or does not exist."""
    if config.root is None:
        raise SourceError(
            f"source {config.name} needs source.root: the folder (or URI) that holds {looked_for}.",
            code="source-without-root",
        )
    try:
        folder = known.folder(config.root)
        exists = folder.exists()
    except UnreachableError as error:
        raise unreachable(error) from error
    except (OSError, ValueError, NotImplementedError) as error:
        raise SourceError(
            f"source {config.name}: source.root={config.root} cannot be opened: {error}. Check how it is written, its "
            "keys and options, and that its host can be reached from here.",
            code="root-cannot-be-opened",
        ) from error
    if not exists:
        relative = "://" not in config.root and not Path(config.root).expanduser().is_absolute()
        from_here = " A relative root is read from the folder that rayddl is started in." if relative else ""
        raise SourceError(
            f"source {config.name}: there is no folder {place(folder)}. Looked for {looked_for} in it.{from_here} "
            "Set source.root.",
            code="root-missing",
        )
    return folder


def place(folder: Folder) -> str:
    """The folder as the user wrote it, and the absolute path if that is relative."""
    local = folder.local
    if local is None or "://" in folder.uri or folder.uri == str(local):
        return folder.uri
    return f"{folder.uri} ({local})"
