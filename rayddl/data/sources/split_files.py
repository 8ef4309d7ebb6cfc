"""Finds the files of each split, for sources whose splits are one file or several shards."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from rayddl.data.config import SourceConfig
from rayddl.data.sources.holdout import ADVICE
from rayddl.data.sources.refusals import place, refuse_links, shown
from rayddl.errors import SourceError
from rayddl.storage import Folder

DEFAULTS = {"train": ("*train*",), "test": ("*test*", "*val*")}
"""Default patterns of file names, without the ending."""

# The part of a name that differs between shards: "-00000-of-00004", "_3", "-0a1b2c3d4e5f6789" (Hugging Face).
_SHARD = re.compile(r"[-_.]?(?<![A-Za-z0-9])\d+(?![A-Za-z0-9])|-of(?=-)|-[0-9a-f]{16}$")

# A shard's number, its total if given, and what stands before and after.
_NUMBERED = re.compile(r"(.*?)(?<![A-Za-z0-9])(\d+)(?:-of-(\d+))?((?:-[0-9a-f]{16})?\.[A-Za-z]+)")
_MISSING_AT_MOST = 1000


def find(config: SourceConfig, folder: Folder, ending: str) -> dict[str, list[str]]:
    """The files of ``train`` and ``test``, by name inside the root; ``ending`` is ``.parquet`` or ``.tar``.

    A pattern set by the user selects all matching files. Default patterns are tried in the root, then in
    its folder ``data``. With ``config.holdout``, ``test`` may be empty, and without files named for a train split
    ``train`` is all files. Raises :class:`SourceError` if nothing matches, if a default pattern matches files
    of several data sets, if numbered shards that the pattern matches are missing, and if a file would be in both
    splits.
    """
    found: dict[str, list[str]] = {}
    for split, pattern in (("train", config.train), ("test", config.test)):
        if split == "test" and pattern is None and config.train is not None and config.holdout is not None:
            # Files of default names next to a chosen one may be of another data set.
            found[split] = []
            continue
        if pattern is not None:
            found[split] = _matches(folder, pattern)
            tried = [pattern]
        else:
            tried = [where + p + ending for where in ("", "data/") for p in DEFAULTS[split]]
            tried += [f"*{ending}", f"data/*{ending}"] if split == "train" and config.holdout else []
            found[split] = next(filter(None, (_matches(folder, p) for p in tried)), [])
            _refuse_mixture(config, folder, split, found[split], ending)
        _refuse_missing(config, folder, split, found[split], tried)
        if not found[split] and not (split == "test" and config.holdout):
            raise SourceError(_nothing(config, folder, split, tried, ending), code="split-without-files")
        refuse_links(config, folder, found[split])
    shared = sorted(set(found["train"]) & set(found["test"]))
    if shared:
        raise SourceError(
            f"source {config.name} in {place(folder)}: {shown(shared)} would be in the train and in the test "
            "split. Set source.train and source.test so that no file is in both.",
            code="file-in-both-splits",
        )
    return found


def _matches(folder: Folder, pattern: str) -> list[str]:
    """The files whose path inside ``folder`` matches ``pattern``, component by component."""
    head, _, rest = pattern.partition("/")
    if not rest:
        return [name for name in folder.names() if fnmatchcase(name, head) and not name.startswith(".")]
    return [
        f"{child}/{name}"
        for child in folder.folders()
        if fnmatchcase(child, head)
        for name in _matches(folder.child(child), rest)
    ]


def _refuse_mixture(
    config: SourceConfig, folder: Folder, split: str, names: Sequence[str], ending: str
) -> None:
    stems = {_SHARD.sub("", name.removesuffix(ending)) for name in names}
    if len(stems) > 1:
        raise SourceError(
            f"source {config.name} in {place(folder)}: the {split} split could be any of several data sets: "
            f"{shown(names)}. Say which with source.train and source.test, for example --set "
            f"source.{split}={names[0]} (a glob takes several files).",
            code="split-ambiguous",
        )


def _refuse_missing(
    config: SourceConfig, folder: Folder, split: str, names: Sequence[str], tried: Sequence[str]
) -> None:
    lacking = [name for name in missing(names) if any(_fits(name, pattern) for pattern in tried)]
    if lacking:
        raise SourceError(
            f"source {config.name} in {place(folder)}: the {split} split is incomplete: by the numbers of its files, "
            f"{shown(lacking)} {'is' if len(lacking) == 1 else 'are'} missing. Fetch what is missing, or set "
            f"source.{split} to a pattern of the files that are to be used.",
            code="shards-missing",
        )


def missing(names: Sequence[str]) -> list[str]:
    """The names that numbered files lack: of ``-00000-of-00002``, all up to the total; else those in the middle.

    A hash at the end of a name, which cannot be known, is ``*``.
    """
    families: dict[tuple[str, int, str, str], set[int]] = {}
    for name in names:
        parts = _NUMBERED.fullmatch(name)
        if parts:
            before, number, total, after = parts.groups()
            after = re.sub(r"^-[0-9a-f]{16}(?=\.)", "-*", after)
            width = len(number) if number.startswith("0") or total else 0
            families.setdefault((before, width, total or "", after), set()).add(int(number))
    lacking = []
    for (before, width, total, after), there in families.items():
        # Both ways of counting are in use: 00000-of-00002 to 00001-of-00002, and 1-of-2 to 2-of-2.
        first = min(there) if not total else 1 if int(total) in there else 0
        last = int(total) + first - 1 if total else max(there)
        # The bound is for names that claim an absurd total.
        absent = itertools.islice((n for n in range(first, last + 1) if n not in there), _MISSING_AT_MOST)
        lacking += [f"{before}{n:0{width}d}{f'-of-{total}' if total else ''}{after}" for n in absent]
    return lacking


def _fits(name: str, pattern: str) -> bool:
    parts, wanted = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _nothing(config: SourceConfig, folder: Folder, split: str, tried: Sequence[str], ending: str) -> str:
    there = _matches(folder, f"*{ending}") + _matches(folder, f"data/*{ending}")
    held = (
        f"It holds: {shown(there, 10)}."
        if there
        else f"There is no {ending} file in it or in its data folder."
    )
    return (
        f"source {config.name} in {place(folder)}: no file for the {split} split. Looked for {', '.join(tried)}. "
        f"{held} Set source.root, or source.{split} to a file or glob inside it."
        + (f" {ADVICE}" if there else "")
    )
