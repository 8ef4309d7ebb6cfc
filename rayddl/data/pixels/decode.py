"""Decodes images of any mode, from untrusted files, to uint8 arrays.

Images that PIL can read become grey [H, W] or RGB [H, W, 3]: bilevel, grey and 16-bit grey become
grey; palettes, CMYK and all other modes become RGB; alpha is dropped, as torchvision's ImageFolder
does; EXIF orientation is applied; the first frame of an animation is used. Files that are unreadable,
truncated, in a format that is not in :data:`FORMATS`, or above a limit are reported, not raised.
"""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from rayddl import affinity, limits

Pixels = NDArray[np.uint8]

DEEPEST = 0xFFFF
"""White in images of 16 bits per pixel."""
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
"""The formats that are opened, in PIL's names, whatever a file is called. PIL knows others that start programs
(EPS starts Ghostscript) or are little used and little tested.
"""
_GREY = ("1", "L", "LA", "La")
# Passing a 32 x 32 JPEG to another thread takes longer than decoding it.
_WORTH_A_THREAD = 16 * 1024


class Encoded(NamedTuple):
    """An image not yet decoded: its name for messages, its label, and a function that returns its bytes."""

    name: str
    label: int
    read: Callable[[], bytes]


class Decoded(NamedTuple):
    """A decoded image, or the reason why it could not be read in place of its pixels."""

    name: str
    label: int
    pixels: Pixels | str
    brightest: int = 0
    """The largest value of an image of 16 bits per pixel; 0 for others."""
    stored: tuple[int, int] = (0, 0)
    """Width and height as stored; 0 for an unreadable image."""


def decode(
    batches: Iterable[Sequence[Encoded]], size: int | None, white: int | None = None
) -> Iterator[Decoded]:
    """Decode every image once, in order, and resize it to ``size`` pixels if given. ``white`` is as in :func:`plain`.

    Holds one batch in memory at a time. Large images are decoded by a few threads.
    """
    allowed = limits.of_images()

    def one(item: Encoded) -> tuple[Decoded, int]:
        data, brightest, stored = b"", 0, (0, 0)
        pixels: Pixels | str
        try:
            data = item.read()
            pixels, brightest, stored = _read(data, size, white, allowed)
        except Exception as error:  # the parsers raise many types for broken files
            pixels = reason(error)
        return Decoded(item.name, item.label, pixels, brightest, stored), len(data)

    with pil_warnings(), ThreadPoolExecutor(_threads()) as pool:
        for batch in batches:
            if not batch:
                continue
            first, length = one(batch[0])
            yield first
            run = pool.map if length >= _WORTH_A_THREAD else map
            for decoded, _ in run(one, batch[1:]):
                yield decoded


def read_image(data: bytes, size: int | None = None) -> Pixels:
    """Decode one image to uint8 [H, W] (grey) or [H, W, 3] (RGB).

    With ``size``, :func:`fit_square` is applied. Raises the errors of :func:`open_image`, and ``ValueError``
    for modes whose values are not bytes.
    """
    return _read(data, size, None, None)[0]


def _read(
    data: bytes, size: int | None, white: int | None, allowed: limits.OfImages | None
) -> tuple[Pixels, int, tuple[int, int]]:
    """The pixels of :func:`read_image`, the largest value of an image of 16 bits per pixel, 0 for others, and width and
    height as stored.
    """
    with open_image(data, allowed) as image:
        stored = image.size
        if size is not None:
            # A JPEG is decoded much faster at a half, a quarter or an eighth of its size. Twice the
            # requested size is kept for the resizing filter.
            image.draft(None, (2 * size, 2 * size))
        brightest = int(np.asarray(image).max(initial=0)) if image.mode.startswith("I") else 0
        turned = plain(image if upright(image) else ImageOps.exif_transpose(image), white)
        return np.array(turned if size is None else fit_square(turned, size)), brightest, stored


def narrowed(data: bytes, white: int) -> bytes:
    """The encoded image ``data``; one of 16 bits per pixel as a PNG of 8, of which ``white`` is 255.

    Raises the errors of :func:`read_image`.
    """
    with open_image(data) as head:
        if not head.mode.startswith("I"):
            return data
    sink = io.BytesIO()
    Image.fromarray(_read(data, None, white, None)[0]).save(sink, "PNG", compress_level=1)
    return sink.getvalue()


def open_image(data: bytes, allowed: limits.OfImages | None = None) -> ImageFile.ImageFile:
    """Open an encoded image of one of :data:`FORMATS`; reads its header only. ``allowed`` are the limits; default:
    those in force.

    Raises PIL's errors, and ``ValueError`` for no bytes and for an image above one of :mod:`rayddl.limits`.
    """
    if not data:
        raise ValueError("no bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UnidentifiedImageError(f"cannot identify image file as one of {', '.join(FORMATS)}") from error
    fault = _above_a_limit(image, data, allowed or limits.of_images())
    if fault:
        image.close()
        raise ValueError(fault)
    return image


def _above_a_limit(image: Image.Image, data: bytes, allowed: limits.OfImages) -> str | None:
    width, height = image.size
    pixels = width * height
    if pixels > allowed.pixels:
        return limits.PIXELS.exceeded(pixels, "pixels")
    density = pixels // len(data)
    if pixels > limits.SMALL and density > allowed.pixels_per_byte:
        return limits.PIXELS_PER_BYTE.exceeded(density, f"pixels for each of its {len(data):,} bytes")
    # Inside the data of a scan, a byte of 255 is never followed by this one.
    scans = data.count(b"\xff\xda") if image.format in ("JPEG", "MPO") else 0
    return limits.SCANS.exceeded(scans, "scans") if scans > allowed.scans else None


def fit_square(image: Image.Image, size: int) -> Image.Image:
    """The centre square of the image, as wide as its shorter side, resized to ``size`` (bilinear, antialiased)."""
    width, height = image.size
    if (width, height) == (size, size):
        return image
    shorter = min(width, height)
    # Resizing from a box places the centre exactly; scaling first would round the longer side.
    left, top = (width - shorter) / 2, (height - shorter) / 2
    box = (left, top, left + shorter, top + shorter)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)


def fit_all(images: Pixels, size: int | None) -> Pixels:
    """Decoded images uint8 [N, H, W, C], C = 1 or 3, each resized by :func:`fit_square`."""
    if size is None or images.shape[1:3] == (size, size):
        return images
    resized = np.empty((len(images), size, size, images.shape[3]), dtype=np.uint8)
    for index, pixels in enumerate(images):
        square = fit_square(Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels), size)
        resized[index] = np.asarray(square).reshape(size, size, -1)
    return resized


def upright(image: Image.Image) -> bool:
    """True if the image's EXIF tags require no rotation or mirroring."""
    if "exif" not in image.info:
        return True
    try:
        return bool(image.getexif().get(ExifTags.Base.Orientation, 1) == 1)
    except Exception:  # the pixels can be valid although the tags are not
        return True


def plain(image: Image.Image, white: int | None = None) -> Image.Image:
    """The image in mode L or RGB. ``white`` is the value of white in images of 16 bits per pixel, by default 65535.

    Raises ``ValueError`` for modes whose values are not bytes, and for values above white.
    """
    mode = image.mode
    if mode in _GREY:
        return image if mode == "L" else image.convert("L")
    if mode.startswith("I"):
        # PIL clips at 255 although the range is 0 ... 65535.
        wide = np.asarray(image)
        top = white or DEEPEST
        if wide.min(initial=0) < 0 or wide.max(initial=0) > top:
            raise ValueError(f"mode {mode} with values outside 0 ... {top}")
        # A table, because a calculation holds several times the image in whole numbers of 64 bits.
        narrow = ((np.arange(top + 1, dtype=np.int64) * 255 + top // 2) // top).astype(np.uint8)
        return Image.fromarray(narrow[wide])
    if mode == "F":
        raise ValueError("mode F: floating-point pixels have no fixed range")
    if mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if mode == "RGB" else image.convert("RGB")


@contextmanager
def pil_warnings() -> Iterator[None]:
    """Silence PIL's warnings on readable files, also that on many pixels: :func:`open_image` has the limit.

    Warning filters apply to the whole process, so to the threads of the pool, too. The first of several threads in such
    a block sets them, and the last one restores the previous ones.
    """
    _filters.enter()
    try:
        yield
    finally:
        _filters.leave()


class _Filters:
    def __init__(self) -> None:
        self._lock, self._users = threading.Lock(), 0
        self._previous = warnings.catch_warnings()

    def enter(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._previous = warnings.catch_warnings()
                self._previous.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._previous.__exit__(None, None, None)


_filters = _Filters()


def _threads() -> int:
    return min(8, len(affinity.cores() or ()) or os.cpu_count() or 1)


def reason(error: Exception) -> str:
    """The first line of the error's message, at most 300 characters; its type if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
