"""Images in folders by class: ``root/<split>/<class>/<image>``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rayddl.data.config import SourceConfig
from rayddl.data.sources import trees
from rayddl.data.sources.refusals import open_root, place, refuse_one_class, shown
from rayddl.data.sources.trees import EXTENSIONS, ImageFile, Split, Survey
from rayddl.errors import SourceError
from rayddl.storage import Folder

if TYPE_CHECKING:
    from rayddl.data.dataset import Source
    from rayddl.data.sources.listing import Listing

_TEST_FOLDERS = ("val", "test")


def identity(config: SourceConfig) -> dict[str, Any]:
    """Names and sizes of the files of both splits; raises what :func:`survey` does."""
    return named(survey(config))


def named(found: Survey) -> dict[str, Any]:
    """What tells one tree from another where a file's name says its class: names and sizes."""
    splits = {split: [[f.name, f.bytes] for f in part.files] for split, part in found.splits.items()}
    return {"classes": found.classes, "splits": splits}


def load(config: SourceConfig, fingerprint: str) -> Source:
    """Decode both splits; each file is read once, a few hundred at a time."""
    return trees.load(config, fingerprint, survey(config))


def listing(config: SourceConfig, split: str) -> Listing:
    """A split for a stream; raises what :func:`survey` does."""
    return trees.listing(survey(config), split)


def survey(config: SourceConfig) -> Survey:
    """List both splits. Raises :class:`SourceError` for a missing or empty folder, a class without
    images, fewer than two classes, and a held-out class that the train split does not know.
    """
    root = open_root(config, f"{train_name(config)}/<class>/<image>")
    splits = {
        "train": _list(root, train_name(config), config),
        "test": _list(root, test_name(config, root), config),
    }
    return judged(config, root, splits)


def judged(config: SourceConfig, root: Folder, splits: dict[str, Split]) -> Survey:
    """The splits with their classes, which are the train split's in sorted order.

    Raises :class:`SourceError` for one class, and for held-out classes that were never trained on.
    """
    classes = tuple(sorted({file.class_ for file in splits["train"].files}))
    where = f"source {config.name} in {place(root)}"
    refuse_one_class(classes, where, f"{train_name(config)}/<class>/<image>")
    strangers = sorted({file.class_ for file in splits["test"].files} - set(classes))
    if strangers:
        raise SourceError(
            f"{where}: {splits['test'].folder} has classes that {splits['train'].folder} has not: "
            f"{shown(strangers)}. Classes are matched by folder name.",
            code="test-classes-not-in-train",
        )
    return Survey(classes, splits)


def train_name(config: SourceConfig) -> str:
    """The train split's folder."""
    return config.train or "train"


def test_name(config: SourceConfig, root: Folder) -> str:
    """The held-out split's folder: as set, else the first of ``val`` and ``test`` that is there."""
    if config.test is not None:
        return config.test
    there = root.folders()
    return next((name for name in _TEST_FOLDERS if name in there), "test")


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
    """The images of ``folder/<class>/``. Raises :class:`SourceError` when there are none, or none of a
    class; ``tree`` shows how it should look.
    """
    classes = [name for name in folder.folders() if not name.startswith(".")]
    inside = [(name, size) for name, size in trees.list_images(folder) if "/" in name]
    files = tuple(ImageFile(name, name.split("/")[0], size) for name, size in inside)
    trees.refuse_no_images(config.name, place(folder), files, "<class>/<image>", tree)
    refuse_empty(config, folder, sorted(set(classes) - {file.class_ for file in files}))
    return Split(folder, files)


def refuse_empty(config: SourceConfig, folder: Folder, empty: Sequence[str]) -> None:
    """Raise :class:`SourceError` when class folders hold no image."""
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
        "Set source.root, source.train or source.test."
    )
