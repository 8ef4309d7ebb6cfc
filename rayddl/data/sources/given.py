"""The sources that plugins register: torch data sets, arrays, or functions that return them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from rayddl import plugins
from rayddl.data.config import SourceConfig
from rayddl.data.sources import holdout
from rayddl.data.sources.refusals import refuse_absent_classes, refuse_one_class
from rayddl.errors import PluginError, SourceError
from rayddl.filenames import Names
from rayddl.plugins import Splits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rayddl.data.dataset import ImageDataset, Source

CHANNELS = (1, 3)


def identity(config: SourceConfig) -> dict[str, Any]:
    """The hash of images and labels given as data; for a function, name and version of the plugin with the settings
    passed to the function.

    Raises :class:`SourceError` for images and labels that cannot be used.
    """
    plugin = plugins.owner("sources", config.name)
    if isinstance(plugins.find("sources", config.name), Splits):
        return {"images": _hashed(*decoded(config))}
    assert plugin is not None  # the definition's check found the name
    own = config.model_dump(
        mode="json",
        exclude={"name", "size", "space", "max_bad_fraction", "follow_links"},
        exclude_defaults=True,
    )
    return {"plugin": [plugin.name, plugin.version], **own}


def load(config: SourceConfig, fingerprint: str) -> Source:
    """Both splits in memory. Raises :class:`SourceError` for images and labels that cannot be used."""
    from rayddl.data.dataset import Source

    train, test = decoded(config)
    return Source(train, test, fingerprint)


@plugins.forgotten
@lru_cache(maxsize=1)
def decoded(config: SourceConfig) -> tuple[ImageDataset, ImageDataset]:
    """Both splits. The last result is cached, because the fingerprint and :func:`load` both need it."""
    plugin, where = plugins.owner("sources", config.name), f"source {config.name}"
    given = plugins.find("sources", config.name)
    with plugins.called("sources", config.name, f"root {config.root!r}"):
        given = _splits(given(config) if callable(given) else given, f"{where} of plugin {plugin}")
        named = ("train",) if given.test is None else ("train", "test")
        found = {name: _arrays(getattr(given, name), config, name) for name in named}
    classes = _classes(given, max(int(labels.max(initial=-1)) for _, labels in found.values()) + 1)
    for name, (images, labels) in found.items():
        if len(labels) != len(images) or not len(labels) or labels.min() < 0 or labels.max() >= len(classes):
            raise SourceError(
                f"{where}, {name}: {len(images)} images with {len(labels)} labels; expected a label for each, from 0 "
                f"to {len(classes) - 1}",
                code="images-without-label",
            )
    refuse_one_class(classes, where, "labels")
    refuse_absent_classes(found["train"][1].tolist(), classes, config)
    shapes = {images.shape[1:] for images, _ in found.values()}
    if len(shapes) > 1:
        raise SourceError(
            f"{where}: the splits' images differ in shape, {' and '.join(map(str, sorted(shapes)))}; set source.size",
            code="images-of-several-sizes",
        )
    if "test" not in found:
        found = _halves(*found["train"], classes, config)
    return _made(found["train"], classes), _made(found["test"], classes)


def _halves(
    images: NDArray[np.uint8], labels: NDArray[np.int64], classes: tuple[str, ...], config: SourceConfig
) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    if config.holdout is None:
        raise SourceError(
            f"source {config.name}: rayddl.Splits has no test split. {holdout.ADVICE}",
            code="source-without-held-out",
        )
    held = holdout.held_out(Names.of(str(index) for index in range(len(labels))), labels, classes, config)
    return {"train": (images[~held], labels[~held]), "test": (images[held], labels[held])}


def _splits(given: Any, where: str) -> Splits:
    if not isinstance(given, Splits):
        raise PluginError(
            f"{where} is {type(given).__name__}; expected rayddl.Splits(train, test), or a function of the "
            "definition's source that returns it",
            code="plugin-source-not-splits",
        )
    return given


def _made(split: tuple[NDArray[np.uint8], NDArray[np.int64]], classes: tuple[str, ...]) -> ImageDataset:
    import torch

    from rayddl.data.dataset import ImageDataset

    # A copy, because contiguous() keeps the strides of one channel, with which convolutions give other last bits.
    images = torch.from_numpy(split[0]).permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)
    return ImageDataset(images, torch.from_numpy(split[1]), classes)


def _classes(given: Splits, count: int) -> tuple[str, ...]:
    named = given.classes or getattr(given.train, "classes", None)
    return tuple(str(name) for name in named) if named else tuple(str(label) for label in range(count))


def _arrays(split: Any, config: SourceConfig, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images ``[N, H, W, C]`` and labels ``[N]`` of a pair of arrays, or of a data set read item by item."""
    import numpy as np

    from rayddl.data.pixels.decode import fit_all

    where = f"source {config.name}, {name}"
    if isinstance(split, tuple | list) and len(split) == 2:
        images, labels = (np.asarray(part) for part in split)
        if (
            images.dtype != np.uint8
            or images.ndim != 4
            or not {images.shape[1], images.shape[3]} & set(CHANNELS)
        ):
            raise SourceError(
                f"{where}: images are {images.dtype} {list(images.shape)}; expected uint8 [N, C, H, W] or "
                "[N, H, W, C] with 1 or 3 channels",
                code="images-malformed",
            )
        if images.shape[1] in CHANNELS:
            images = images.transpose(0, 2, 3, 1)
        return np.ascontiguousarray(fit_all(images, config.size)), labels.astype(np.int64).reshape(-1)
    pixels: list[NDArray[np.uint8]] = []
    targets: list[int] = []
    for image, label in _items(split):
        pixels.append(_pixels(image, config, f"{where}, image {len(pixels)}"))
        targets.append(int(label))
    if len({each.shape for each in pixels}) > 1:
        if {each.shape[:2] for each in pixels} != {pixels[0].shape[:2]}:
            raise SourceError(
                f"{where}: images differ in size; set source.size", code="images-of-several-sizes"
            )
        # Grey images among colour images become RGB.
        pixels = [each if each.shape[2] == 3 else each.repeat(3, 2) for each in pixels]
    return np.stack(pixels) if pixels else np.zeros((0, 1, 1, 1), np.uint8), np.array(targets, np.int64)


def _items(split: Any) -> Iterator[tuple[Any, Any]]:
    # By length, because a data set need not raise for an index beyond its end.
    for index in range(len(split)):
        yield split[index]


def _pixels(image: Any, config: SourceConfig, where: str) -> NDArray[np.uint8]:
    """One image as uint8 ``[H, W, C]``."""
    import numpy as np
    from PIL import Image

    from rayddl.data.pixels.decode import fit_square, plain

    if isinstance(image, Image.Image):
        array = np.array(plain(image, config.range))
    else:
        array = np.asarray(image)
        if array.ndim == 3 and array.shape[0] in CHANNELS:
            array = array.transpose(1, 2, 0)
        if array.dtype.kind == "f" and array.size and array.min() >= 0 and array.max() <= 1:
            array = np.rint(array * 255).astype(np.uint8)
    array = array[..., None] if array.ndim == 2 else array
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in CHANNELS:
        raise SourceError(
            f"{where} is {array.dtype} {list(array.shape)}; expected a PIL image, or a tensor [C, H, W] of uint8 or of "
            "floats in 0..1 (without Normalize: rayddl scales pixels itself)",
            code="images-malformed",
        )
    size = config.size
    if size is None:
        return array
    square = fit_square(Image.fromarray(array[..., 0] if array.shape[2] == 1 else array), size)
    return np.asarray(square).reshape(size, size, -1)


def _hashed(*splits: ImageDataset) -> str:
    found = hashlib.sha256()
    for split in splits:
        found.update(repr((split.classes, tuple(split.images.shape))).encode())
        found.update(split.images.numpy().tobytes())
        found.update(split.labels.numpy().tobytes())
    return found.hexdigest()
