"""Image files in folders: the code common to all families of folder trees.

A family finds its files and assigns classes to them (a :class:`Survey`); this module lists and decodes
them. Imports no torch.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import partial, wraps
from posixpath import splitext
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rayddl.data.config import SourceConfig
from rayddl.data.sources import known
from rayddl.data.sources.refusals import shown
from rayddl.errors import SourceError
from rayddl.filenames import AT_ONCE, FileList, Names
from rayddl.storage import Folder

if TYPE_CHECKING:
    from rayddl.data.dataset import Source
    from rayddl.data.pixels.decode import Encoded
    from rayddl.data.sources.listing import Listing

EXTENSIONS = (
    ".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".bmp", ".dib", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm",
    ".pnm", ".avif", ".heic", ".heif", ".tga", ".jp2", ".j2k", ".jxl",
)  # fmt: skip
"""Endings of image files. Files of a format that cannot be read are counted as unreadable, not passed over."""
_FILES_AT_ONCE = 512


class ImageFile(NamedTuple):
    """One image file, not yet read."""

    name: str
    """Path relative to the split's folder."""
    class_: str
    bytes: int


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Image files in columns, for trees of millions; those that are asked for become :class:`ImageFile`."""

    names: Names
    kinds: NDArray[np.int32]
    """[N], indices into ``classes``."""
    classes: tuple[str, ...]
    """The classes that have files, sorted."""
    bytes: NDArray[np.int64]
    """[N], the size of each."""

    @classmethod
    def of(cls, files: FileList, classes: Iterable[str]) -> ImageFiles:
        """Files with the class of each, in the same order."""
        numbers: dict[str, int] = {}
        kinds = np.fromiter(
            (numbers.setdefault(each, len(numbers)) for each in classes), np.int32, len(files)
        )
        return cls(files.names, kinds, tuple(numbers), files.bytes).ordered()

    def __len__(self) -> int:
        return len(self.kinds)

    def __iter__(self) -> Iterator[ImageFile]:
        for start in range(0, len(self), AT_ONCE):
            yield from self[start : start + AT_ONCE]

    def __getitem__(self, part: slice) -> list[ImageFile]:
        columns = self.names[part], self.kinds[part].tolist(), self.bytes[part].tolist()
        return [ImageFile(name, self.classes[kind], size) for name, kind, size in zip(*columns, strict=True)]

    def take(self, positions: NDArray[np.int64]) -> ImageFiles:
        """The files at ``positions``, in their order."""
        kinds = self.kinds[positions]
        return ImageFiles(self.names.take(positions), kinds, self.classes, self.bytes[positions]).ordered()

    def counts(self) -> NDArray[np.int64]:
        """int64: files of each class."""
        return np.bincount(self.kinds, minlength=len(self.classes))

    def ordered(self) -> ImageFiles:
        """The same files, with the classes that they have in sorted order."""
        there = sorted((self.classes[kind], kind) for kind in np.unique(self.kinds).tolist())
        numbers = np.zeros(len(self.classes), np.int32)
        numbers[[kind for _, kind in there]] = np.arange(len(there))
        return ImageFiles(self.names, numbers[self.kinds], tuple(name for name, _ in there), self.bytes)


@dataclass(frozen=True, eq=False)
class Split:
    """The image files of one split, in the order of loading."""

    folder: Folder
    files: ImageFiles
    others: Sequence[str] = ()
    """The files in class folders that are no images by their ending."""


@dataclass(frozen=True)
class Survey:
    """Files and classes of a folder tree, without images."""

    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    """``train`` and ``test``."""


def once_a_command(find: Callable[[SourceConfig], Survey]) -> Callable[[SourceConfig], Survey]:
    """``find``, which a command calls once for a source: a million files take seconds to list."""

    @wraps(find)
    def found(config: SourceConfig) -> Survey:
        return known.once(("survey", config), partial(find, config))

    return found


def in_class_folders(listed: FileList, folders: Container[str] | None = None) -> tuple[ImageFiles, Names]:
    """Of the files below a folder, without hidden ones: the images in folders inside it, whose first one is an image's
    class, and the files there that are no images by their ending. With ``folders``, only those in one of these.
    """
    own, others, kinds, numbers = array("q"), array("q"), array("i"), dict[str, int]()
    for at, name in enumerate(listed.names):
        first, inside, _ = name.partition("/")
        if not inside or is_hidden(name) or (folders is not None and first not in folders):
            continue
        if is_image(name):
            own.append(at)
            kinds.append(numbers.setdefault(first, len(numbers)))
        else:
            others.append(at)
    files = listed.take(np.array(own))
    images = ImageFiles(files.names, np.array(kinds), tuple(numbers), files.bytes).ordered()
    return images, listed.names.take(np.array(others))


def list_images(folder: Folder, within: Folder | None) -> list[tuple[str, int]]:
    """Name and bytes of every image file in ``folder`` and below, sorted by name, without hidden files.

    Raises the errors of :meth:`Folder.files` for links that lead out of ``within``.
    """
    return [(name, size) for name, size in folder.listed(within) if is_image(name)]


def within(config: SourceConfig) -> Folder | None:
    """The folder that links must not leave: the root, or any with ``follow_links``."""
    return None if config.follow_links or config.root is None else Folder(config.root)


def is_image(name: str) -> bool:
    """True if ``name`` has an image's ending and no component of it is hidden."""
    return not is_hidden(name) and splitext(name)[1].lower() in EXTENSIONS


def is_hidden(name: str) -> bool:
    """True if a component of ``name`` begins with a dot."""
    return "/." in f"/{name}"


def inner_folders(split: Split) -> dict[str, list[str]]:
    """For each class all of whose images lie in two folders or more inside its own, these folders' names, sorted.

    One folder in each class, as in ``<class>/images/``, is a usual layout.
    """
    found, flat = dict[str, set[str]](), set[str]()
    for file in split.files:
        if file.class_ in flat:  # of most sources, all but the first image of each class
            continue
        _, *inner, _ = file.name.split("/")
        if inner:
            found.setdefault(file.class_, set()).add(inner[0])
        else:
            flat.add(file.class_)
    return {name: sorted(inner) for name, inner in found.items() if len(inner) > 1 and name not in flat}


def notes(survey: Survey) -> tuple[str, ...]:
    """A sentence for each split with files in its class folders that are no images by their ending, and one for class
    folders that hold several folders of images each.
    """
    inner = inner_folders(survey.splits["train"])
    nested = tuple(
        f"class {name}: all images lie in {len(folders):,} folders in it ({shown(folders)}); if these are the "
        "classes, give the folder that holds them"
        for name, folders in list(inner.items())[:1]
    )
    return nested + tuple(
        f"left out of {part.folder}: {len(part.others):,} with an ending of no image: {shown(part.others)}"
        for part in survey.splits.values()
        if part.others
    )


def load(config: SourceConfig, fingerprint: str, survey: Survey) -> Source:
    """Both splits in memory; each file is read once, a few hundred at a time."""
    from rayddl.data.sources import splits

    train, test = (
        splits.batches(listing(survey, name)) if split.folder.far else batches(split, survey.classes)
        for name, split in ((name, survey.splits[name]) for name in ("train", "test"))
    )
    return splits.build(config, fingerprint, survey.classes, train, test, notes=notes(survey))


def batches(split: Split, classes: Sequence[str]) -> Iterator[list[Encoded]]:
    """The files of ``split``, to be read and decoded; labels are indices into ``classes``."""
    from rayddl.data.pixels.decode import Encoded

    index = {name: position for position, name in enumerate(classes)}
    for start in range(0, len(split.files), _FILES_AT_ONCE):
        yield [
            Encoded(split.folder.path(file.name), index[file.class_], partial(split.folder.read, file.name))
            for file in split.files[start : start + _FILES_AT_ONCE]
        ]


def listing(survey: Survey, name: str) -> Listing:
    """The listing of the split ``name``; opens no file."""
    from rayddl.data.sources.listing import FileStore, sorted_listing

    split, index = survey.splits[name], {name: position for position, name in enumerate(survey.classes)}
    labels = np.array([index[each] for each in split.files.classes], np.int32)[split.files.kinds]
    return sorted_listing(
        split.files.names.column,
        labels,
        survey.classes,
        FileStore(split.folder),
        notes=notes(survey),
        size=split.files.bytes,
    )


def refuse_no_images(name: str, folder: str, split: Sized, looked_for: str, tree: str) -> None:
    """Raise :class:`SourceError` if a split has no files. ``tree`` is the expected layout."""
    if not split:
        raise SourceError(
            f"source {name}: no image in {folder}. Looked for {looked_for} with an ending of "
            f"{', '.join(EXTENSIONS)}. Expected:\n{tree}",
            code="tree-without-images",
        )
