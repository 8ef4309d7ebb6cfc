"""ImageNet-1K or a subset in its unpacked layout: ``train/<wnid>/*.JPEG``, ``val/<wnid>/*.JPEG``.

Classes are the WordNet ids in sorted order. A subset is selected by folder name, so all of ImageNet and a
download of only ten classes (Imagenette, Imagewoof) give the same source.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rayddl.data.config import SourceConfig
from rayddl.data.sources import folders, holdout, trees
from rayddl.data.sources.refusals import open_root, place, shown
from rayddl.data.sources.trees import Split, Survey
from rayddl.data.sources.wnids import SUBSETS
from rayddl.errors import SourceError
from rayddl.filenames import FileList
from rayddl.storage import Folder

if TYPE_CHECKING:
    from rayddl.data.dataset import Source
    from rayddl.data.sources.listing import Listing

_WNID = re.compile(r"n\d{8}")
_TEST = "val"


def identity(config: SourceConfig) -> dict[str, Any]:
    """Names and sizes of the files of the requested classes. Raises the errors of :func:`survey`."""
    return folders.named(survey(config))


def load(config: SourceConfig, fingerprint: str) -> Source:
    """Both splits in memory; large JPEGs are decoded at a reduced scale."""
    return trees.load(config, fingerprint, survey(config))


def listing(config: SourceConfig, split: str) -> Listing:
    """The listing of a split. Raises the errors of :func:`survey`."""
    return trees.listing(survey(config), split)


@trees.once_a_command
def survey(config: SourceConfig) -> Survey:
    """List the files of the requested classes in both splits; other folders are not read.

    Raises :class:`SourceError` for a missing split, for missing class folders (one error names those of
    both splits), for empty ones, and for a held-out class that is not in the train split.
    """
    root = open_root(config, "train/<wnid>/<image>")
    parts = {"train": _split(root, config.train or "train", config)}
    cut = config.holdout is not None and not root.child(_TEST).exists()
    if not cut:
        parts["test"] = _split(root, config.test or _TEST, config)
    wanted = {split: _wanted(folder, config) for split, folder in parts.items()}
    if config.subset is not None:
        _refuse_missing(config, root, parts)
    splits = {split: _files(parts[split], wanted[split], config) for split in parts}
    if cut:
        splits = folders.halves(splits["train"], config)
    return folders.judged(config, root, splits)


def _split(root: Folder, name: str, config: SourceConfig) -> Folder:
    folder = root.child(name)
    if not folder.exists():
        raise SourceError(
            f"source imagenet in {place(root)}: there is no folder {name}. It holds: "
            f"{shown(root.folders(), 10) or 'no folder'}. Expected:\n{_tree(config)}",
            code="imagenet-split-missing",
        )
    return folder


def _wanted(folder: Folder, config: SourceConfig) -> tuple[str, ...]:
    there = tuple(name for name in folder.folders() if _WNID.fullmatch(name))
    if there or config.subset is not None:
        return there if config.subset is None else SUBSETS[config.subset]
    loose = any(trees.is_image(name) for name in folder.names())
    found = "images that lie in no class folder" if loose else shown(folder.folders()) or "no folder"
    raise SourceError(
        f"source imagenet: {place(folder)} has no class folder named by a WordNet id such as n01440764. It "
        f"holds: {found}. Expected:\n{_tree(config)}\n"
        "Folders of other names are read with source.name=imagefolder.",
        code="imagenet-without-class-folders",
    )


def _refuse_missing(config: SourceConfig, root: Folder, parts: dict[str, Folder]) -> None:
    assert config.subset is not None
    wanted = SUBSETS[config.subset]
    lacking = []
    for folder in parts.values():
        there = set(folder.folders())
        missing = [wnid for wnid in wanted if wnid not in there]
        if missing:
            lacking.append(f"  {place(folder)} lacks {len(missing)}: {shown(missing, 10)}")
    if lacking:
        raise SourceError(
            f"source imagenet in {place(root)}: the subset {config.subset!r} is made of {len(wanted)} class folders, "
            "and not all are there:\n" + "\n".join(lacking) + f"\nExpected:\n{_tree(config)}\n"
            "Add them, or set source.subset to one that is there; without it every class folder is taken.",
            code="imagenet-subset-incomplete",
        )


def _files(folder: Folder, wanted: tuple[str, ...], config: SourceConfig) -> Split:
    within, known = trees.within(config), set(wanted)
    if config.subset is None:
        # One recursive listing is much faster than one for each of a thousand classes.
        listed = folder.listed(within)
    else:
        listed = FileList.of(
            (f"{wnid}/{name}", size) for wnid in wanted for name, size in folder.child(wnid).listed(within)
        )
    files, others = trees.in_class_folders(listed, known)
    trees.refuse_no_images(config.name, place(folder), files, "<wnid>/<image>", _tree(config))
    folders.refuse_empty(config, folder, sorted(set(wanted) - set(files.classes)))
    return Split(folder, files, others)


def _tree(config: SourceConfig) -> str:
    return (
        f"  {config.root}/\n"
        f"    {config.train or 'train'}/\n      n01440764/  n01440764_18.JPEG ...\n      ...\n"
        f"    {config.test or _TEST}/\n      n01440764/  ILSVRC2012_val_00000293.JPEG ...\n      ...\n"
        f"Set source.root, source.train or source.test. {holdout.ADVICE}"
    )
