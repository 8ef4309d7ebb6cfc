"""Images in folders by class: ``root/<split>/<class>/<image>``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from rayddl.data.config import SourceConfig
from rayddl.data.refusals import open_root, place, refuse_one_class, shown
from rayddl.errors import SourceError
from rayddl.storage import Folder

if TYPE_CHECKING:
    from rayddl.data.dataset import Source
    from rayddl.data.decode import Encoded

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
_TEST_FOLDERS = ("val", "test")
_FILES_AT_ONCE = 512


@dataclass(frozen=True)
class _Listing:
    """The image files of one split: names inside the split's folder, each with class and bytes."""

    folder: Folder
    files: tuple[tuple[str, str, int], ...]


def identity(config: SourceConfig) -> dict[str, Any]:
    """Names and sizes of the files of both splits; raises what :func:`_survey` does."""
    listings, classes = _survey(config)
    splits = {split: [[name, size] for name, _, size in found.files] for split, found in listings.items()}
    return {"classes": classes, "splits": splits}


def load(config: SourceConfig, fingerprint: str) -> Source:
    """Decode both splits; each file is read once, a few hundred at a time."""
    from rayddl.data.splits import build

    listings, classes = _survey(config)
    splits = {split: _batches(found, classes) for split, found in listings.items()}
    return build(config, fingerprint, classes, splits["train"], splits["test"])


def _survey(config: SourceConfig) -> tuple[dict[str, _Listing], tuple[str, ...]]:
    """List both splits. Raises :class:`SourceError` for a missing or empty folder, a class without
    images, fewer than two classes, and a held-out class that the train split does not know.
    """
    root = open_root(config, f"{_train_name(config)}/<class>/<image>")
    listings = {
        "train": _list(root, _train_name(config), config),
        "test": _list(root, _test_name(config, root), config),
    }
    classes = tuple(sorted({class_ for _, class_, _ in listings["train"].files}))
    refuse_one_class(
        classes, f"source imagefolder in {place(root)}", f"{_train_name(config)}/<class>/<image>"
    )
    strangers = sorted({class_ for _, class_, _ in listings["test"].files} - set(classes))
    if strangers:
        raise SourceError(
            f"source imagefolder in {place(root)}: {listings['test'].folder} has classes that "
            f"{listings['train'].folder} has not: {shown(strangers)}. Classes are matched by folder name."
        )
    return listings, classes


def _train_name(config: SourceConfig) -> str:
    return config.train or "train"


def _test_name(config: SourceConfig, root: Folder) -> str:
    if config.test is not None:
        return config.test
    there = root.folders()
    return next((name for name in _TEST_FOLDERS if name in there), "test")


def _list(root: Folder, split: str, config: SourceConfig) -> _Listing:
    folder = root.child(split)
    if not folder.exists():
        raise SourceError(
            f"source imagefolder in {place(root)}: there is no folder {split}. It holds: "
            f"{shown(root.folders(), 10) or 'no folder'}. Expected:\n{_tree(config)}"
        )
    classes = [name for name in folder.folders() if not name.startswith(".")]
    files = tuple(
        (name, name.split("/")[0], size) for name, size in folder.files().items() if _is_image(name)
    )
    if not files:
        raise SourceError(
            f"source imagefolder: no image in {place(folder)}. Looked for <class>/<image> with an ending of "
            f"{', '.join(EXTENSIONS)}. Expected:\n{_tree(config)}"
        )
    empty = sorted(set(classes) - {class_ for _, class_, _ in files})
    if empty:
        raise SourceError(
            f"source imagefolder: no image in the class folders {shown(empty)} of {place(folder)}. Looked "
            f"for endings {', '.join(EXTENSIONS)}. Add images or remove the folders."
        )
    return _Listing(folder, files)


def _is_image(name: str) -> bool:
    parts = PurePosixPath(name)
    hidden = any(part.startswith(".") for part in parts.parts)
    return len(parts.parts) > 1 and not hidden and parts.suffix.lower() in EXTENSIONS


def _tree(config: SourceConfig) -> str:
    test = config.test or " or ".join(_TEST_FOLDERS)
    return (
        f"  {config.root}/\n"
        f"    {_train_name(config)}/\n      cat/  0001.png ...\n      dog/  0001.png ...\n"
        f"    {test}/\n      cat/  0001.png ...\n      dog/  0001.png ...\n"
        "Set source.root, source.train or source.test."
    )


def _batches(listing: _Listing, classes: Sequence[str]) -> Iterator[list[Encoded]]:
    from rayddl.data.decode import Encoded

    index = {name: position for position, name in enumerate(classes)}
    for start in range(0, len(listing.files), _FILES_AT_ONCE):
        yield [
            Encoded(listing.folder.path(name), index[class_], partial(listing.folder.read, name))
            for name, class_, _ in listing.files[start : start + _FILES_AT_ONCE]
        ]
