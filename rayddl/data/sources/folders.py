"""Images in one folder per class: ``root/<split>/<class>/<image>``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rayddl.data.config import SourceConfig
from rayddl.data.sources import holdout, trees
from rayddl.data.sources.refusals import open_root, place, refuse_one_class, shown
from rayddl.data.sources.trees import EXTENSIONS, Split, Survey
from rayddl.errors import SourceError
from rayddl.filenames import FileList
from rayddl.storage import Folder

if TYPE_CHECKING:
    from rayddl.data.dataset import Source
    from rayddl.data.sources.listing import Listing

_TEST_FOLDERS = ("val", "test")


def identity(config: SourceConfig) -> dict[str, Any]:
    """Names and sizes of the files of both splits. Raises the errors of :func:`survey`."""
    return named(survey(config))


def named(found: Survey) -> dict[str, Any]:
    """Identity of a folder tree in which names contain the class: names and sizes of the files."""
    splits = {split: FileList(part.files.names, part.files.bytes) for split, part in found.splits.items()}
    return {"classes": found.classes, "splits": splits}


def load(config: SourceConfig, fingerprint: str) -> Source:
    """Both splits in memory; each file is read once, a few hundred at a time."""
    return trees.load(config, fingerprint, survey(config))


def listing(config: SourceConfig, split: str) -> Listing:
    """The listing of a split. Raises the errors of :func:`survey`."""
    return trees.listing(survey(config), split)


@trees.once_a_command
def survey(config: SourceConfig) -> Survey:
    """List the files of both splits. Raises :class:`SourceError` for a missing or empty folder, a class
    without images, fewer than two classes, and a held-out class that is not in the train split.
    """
    root = open_root(config, f"{train_name(config)}/<class>/<image>")
    held = test_name(config, root)
    if config.holdout is not None and held is None:
        bare = config.train is None and not root.child(train_name(config)).exists()
        whole = (
            by_class_folder(root, config, _tree(config)) if bare else _list(root, train_name(config), config)
        )
        return judged(config, root, halves(whole, config))
    splits = {
        "train": _list(root, train_name(config), config),
        "test": _list(root, held or "test", config),
    }
    return judged(config, root, splits)


def halves(whole: Split, config: SourceConfig) -> dict[str, Split]:
    """``whole`` as a train split, with the other files, and the images that ``config.holdout`` holds out."""
    held = holdout.held_out(whole.files.names, whole.files.kinds, whole.files.classes, config)
    train, test = (whole.files.take(np.flatnonzero(mask)) for mask in (~held, held))
    return {"train": Split(whole.folder, train, whole.others), "test": Split(whole.folder, test)}


def judged(config: SourceConfig, root: Folder, splits: dict[str, Split]) -> Survey:
    """The splits with the train split's classes in sorted order.

    Raises :class:`SourceError` for fewer than two classes, and for held-out classes not in the train split.
    """
    classes = splits["train"].files.classes
    where = f"source {config.name} in {place(root)}"
    inner = trees.inner_folders(splits["train"]).get(classes[0]) if len(classes) == 1 else None
    higher = (
        f"; all images of {classes[0]!r} lie in the folders {shown(inner)} in it: if these are the classes, give "
        f"{splits['train'].folder.child(classes[0])}"
        if inner
        else ""
    )
    refuse_one_class(classes, where, f"{train_name(config)}/<class>/<image>{higher}")
    strangers = sorted(set(splits["test"].files.classes) - set(classes))
    if strangers:
        raise SourceError(
            f"{where}: {splits['test'].folder} has classes that {splits['train'].folder} has not: "
            f"{shown(strangers)}. Classes are matched by folder name.",
            code="test-classes-not-in-train",
        )
    return Survey(classes, splits)


def train_name(config: SourceConfig) -> str:
    """Name of the train split's folder."""
    return config.train or "train"


def test_name(config: SourceConfig, root: Folder) -> str | None:
    """Name of the held-out split's folder: ``config.test``, or the first of ``val`` and ``test`` that exists."""
    if config.test is not None:
        return config.test
    there = root.folders()
    return next((name for name in _TEST_FOLDERS if name in there), None)


def _list(root: Folder, split: str, config: SourceConfig) -> Split:
    folder = root.child(split)
    if not folder.exists():
        raise SourceError(
            f"source imagefolder in {place(root)}: there is no folder {split}. It holds: "
            f"{shown(root.folders(), 10) or 'no folder'}. Expected:\n{_tree(config)}",
            code="split-folder-missing",
        )
    return by_class_folder(folder, config, _tree(config))


def by_class_folder(folder: Folder, config: SourceConfig, tree: str) -> Split:
    """The images of ``folder/<class>/``. Raises :class:`SourceError` if there are none, or none of a
    class. ``tree`` is the expected layout, for the message.
    """
    # Remote storage then has the folders from the same listing.
    listed = folder.listed(trees.within(config))
    classes = [name for name in folder.folders() if not name.startswith(".")]
    files, others = trees.in_class_folders(listed)
    loose = 0 if files else sum("/" not in name and trees.is_image(name) for name in listed.names)
    if loose:
        raise SourceError(
            f"source {config.name}: {loose:,} images lie in {place(folder)} itself, and none in a folder inside it. "
            "Each class needs a folder of its own; if this is the folder of one class, give the one above it. "
            f"Expected:\n{tree}",
            code="images-without-class",
        )
    trees.refuse_no_images(config.name, place(folder), files, "<class>/<image>", tree)
    refuse_empty(config, folder, sorted(set(classes) - set(files.classes)))
    return Split(folder, files, others)


def refuse_empty(config: SourceConfig, folder: Folder, empty: Sequence[str]) -> None:
    """Raise :class:`SourceError` if there are class folders without images."""
    if empty:
        raise SourceError(
            f"source {config.name}: no image in the class folders {shown(empty)} of {place(folder)}. Looked "
            f"for endings {', '.join(EXTENSIONS)}. Add images or remove the folders.",
            code="class-folders-empty",
        )


def _tree(config: SourceConfig) -> str:
    test = config.test or " or ".join(_TEST_FOLDERS)
    return (
        f"  {config.root}/\n"
        f"    {train_name(config)}/\n      cat/  0001.png ...\n      dog/  0001.png ...\n"
        f"    {test}/\n      cat/  0001.png ...\n      dog/  0001.png ...\n"
        f"Set source.root, source.train or source.test. {holdout.ADVICE}"
    )
