"""Tiny-ImageNet in its published layout: 200 classes of 64 x 64 images.

Classes are the WordNet ids of ``wnids.txt`` in sorted order. Sets, observers and experts are matched by
class name, and ids are unique, while some readable names in ``words.txt`` are not. The held-out split is
``val``, with labels from ``val_annotations.txt``; ``test`` has no labels. The few grey images become RGB,
as in every source with colour images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rayddl.data.config import SourceConfig
from rayddl.data.sources import folders, trees
from rayddl.data.sources.refusals import open_root, place, read_names, refuse_links, refuse_one_class, shown
from rayddl.data.sources.trees import ImageFiles, Split, Survey
from rayddl.errors import SourceError
from rayddl.filenames import FileList
from rayddl.storage import Folder

if TYPE_CHECKING:
    from rayddl.data.dataset import Source
    from rayddl.data.sources.listing import Listing

_ANNOTATIONS = "val_annotations.txt"
_LOOKED_FOR = f"wnids.txt, train/<wnid>/images/<image>, val/images/<image> and val/{_ANNOTATIONS}"


def identity(config: SourceConfig) -> dict[str, Any]:
    """Names, classes and sizes of the files of both splits. Raises the errors of :func:`survey`."""
    found = survey(config)
    splits = {split: [list(file) for file in part.files] for split, part in found.splits.items()}
    return {"classes": found.classes, "splits": splits}


def load(config: SourceConfig, fingerprint: str) -> Source:
    """Both splits in memory; each file is read once, a few hundred at a time."""
    return trees.load(config, fingerprint, survey(config))


def listing(config: SourceConfig, split: str) -> Listing:
    """The listing of a split. Raises the errors of :func:`survey`."""
    return trees.listing(survey(config), split)


@trees.once_a_command
def survey(config: SourceConfig) -> Survey:
    """List the files of both splits.

    Raises :class:`SourceError` for missing files or folders, classes without images, annotations that
    cannot be read or name an unknown class, images without annotation, and annotations without image.
    """
    root = open_root(config, _LOOKED_FOR)
    _refuse_missing(root, config)
    classes = tuple(sorted({line.strip() for line in _lines(root, "wnids.txt") if line.strip()}))
    refuse_one_class(classes, f"source tinyimagenet in {place(root)}", "wnids.txt, an id a line")
    train = _train(root.child("train"), classes, config)
    return Survey(classes, {"train": train, "test": _val(root.child("val"), set(classes), config)})


def _refuse_missing(root: Folder, config: SourceConfig) -> None:
    refuse_links(config, root, ["wnids.txt", f"val/{_ANNOTATIONS}"])
    missing = [name for name in ("train", "val/images") if not root.child(name).exists()]
    missing += [name for name in ("wnids.txt", f"val/{_ANNOTATIONS}") if not root.has(name)]
    if missing:
        held = [*root.folders(), *root.names()]
        raise SourceError(
            f"source tinyimagenet in {place(root)}: missing: {', '.join(missing)}. It holds: "
            f"{shown(held, 10) or 'nothing'}. Expected:\n{_tree(config)}\n"
            "A copy whose val/ was sorted into class folders is read with source.name=imagefolder.",
            code="tinyimagenet-incomplete",
        )


def _train(folder: Folder, classes: tuple[str, ...], config: SourceConfig) -> Split:
    there = {name for name in folder.folders() if not name.startswith(".")}
    _refuse_difference(folder, classes, there)
    files, _ = trees.in_class_folders(folder.listed(trees.within(config)))
    trees.refuse_no_images(config.name, place(folder), files, "<wnid>/images/<image>", _tree(config))
    folders.refuse_empty(config, folder, sorted(set(classes) - set(files.classes)))
    return Split(folder, files)


def _refuse_difference(folder: Folder, classes: tuple[str, ...], there: set[str]) -> None:
    missing, strange = sorted(set(classes) - there), sorted(there - set(classes))
    if missing or strange:
        parts = [f"no folder for {len(missing)} of its classes: {shown(missing)}"] if missing else []
        parts += [f"folders that it does not list: {shown(strange)}"] if strange else []
        raise SourceError(
            f"source tinyimagenet: {place(folder)} does not agree with wnids.txt: {'; '.join(parts)}. Unpack "
            "the archive again, or keep the ids of the classes you want in wnids.txt and their folders.",
            code="tinyimagenet-classes-disagree",
        )


def _val(folder: Folder, classes: set[str], config: SourceConfig) -> Split:
    labels = _annotations(folder, classes)
    sizes = dict(trees.list_images(folder.child("images"), trees.within(config)))
    trees.refuse_no_images(config.name, place(folder.child("images")), sizes, "<image>", _tree(config))
    unlabelled, absent = sorted(set(sizes) - set(labels)), sorted(set(labels) - set(sizes))
    if unlabelled or absent:
        parts = [f"{len(unlabelled)} images without a line: {shown(unlabelled)}"] if unlabelled else []
        parts += [f"{len(absent)} lines without an image: {shown(absent)}"] if absent else []
        raise SourceError(
            f"source tinyimagenet: {folder.path(_ANNOTATIONS)} does not agree with {place(folder)}/images: "
            f"{'; '.join(parts)}. Unpack the archive again.",
            code="tinyimagenet-annotations-disagree",
        )
    files = FileList.of((f"images/{name}", size) for name, size in sizes.items())
    return Split(folder, ImageFiles.of(files, [labels[name] for name in sizes]))


def _annotations(folder: Folder, classes: set[str]) -> dict[str, str]:
    """The class of each held-out image. Each line of the file is ``name TAB wnid TAB`` and a bounding box."""
    labels: dict[str, str] = {}
    for number, line in enumerate(_lines(folder, _ANNOTATIONS), 1):
        if not line.strip():
            continue
        name, _, rest = line.partition("\t")
        wnid = rest.split("\t")[0].strip()
        if wnid not in classes:
            found = f"the class {wnid!r}, which wnids.txt does not list" if wnid else f"{line[:60]!r}"
            raise SourceError(
                f"source tinyimagenet: {folder.path(_ANNOTATIONS)}, line {number}: expected an image's name, a tab "
                f"and its class's id, found {found}.",
                code="tinyimagenet-annotation-malformed",
            )
        labels[name] = wnid
    return labels


def _lines(folder: Folder, name: str) -> list[str]:
    return read_names(folder, name).decode("utf-8-sig", errors="replace").splitlines()


def _tree(config: SourceConfig) -> str:
    return (
        f"  {config.root}/\n"
        "    wnids.txt\n"
        "    train/\n      n01443537/  n01443537_boxes.txt  images/  n01443537_0.JPEG ...\n      ...\n"
        f"    val/\n      {_ANNOTATIONS}\n      images/  val_0.JPEG ...\n"
        "Set source.root to the folder that was unpacked (tiny-imagenet-200)."
    )
