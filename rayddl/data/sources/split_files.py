"""Finds the files of each split, for sources whose splits are one file or several shards."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from rayddl.data.config import SourceConfig
from rayddl.data.sources.holdout import ADVICE
from rayddl.data.sources.refusals import place, shown
from rayddl.errors import SourceError
from rayddl.storage import Folder

DEFAULTS = {"train": ("*train*",), "test": ("*test*", "*val*")}
"""Default patterns of file names, without the ending."""

# The part of a name that differs between shards: "-00000-of-00004", "_3", "-0a1b2c3d4e5f6789" (Hugging Face).
_SHARD = re.compile(r"[-_.]?(?<![A-Za-z0-9])\d+(?![A-Za-z0-9])|-of(?=-)|-[0-9a-f]{16}$")


def find(config: SourceConfig, folder: Folder, ending: str) -> dict[str, list[str]]:
    """The files of ``train`` and ``test``, by name inside the root; ``ending`` is ``.parquet`` or ``.tar``.

    A pattern set by the user selects all matching files. Default patterns are tried in the root, then in
    its folder ``data``. With ``config.holdout``, ``test`` may be empty, and without files named for a train split
    ``train`` is all files. Raises :class:`SourceError` if nothing matches, if a default pattern matches files
    of several data sets, and if a file would be in both splits.
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
        if not found[split] and not (split == "test" and config.holdout):
            raise SourceError(_nothing(config, folder, split, tried, ending), code="split-without-files")
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
