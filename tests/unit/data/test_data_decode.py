"""The zoo of image files: what is converted, and what is reported instead of raised."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, UnidentifiedImageError

from rayddl.data.pixels.cutting import opened
from rayddl.data.pixels.decode import Decoded, Encoded, decode, fit_all, narrowed, read_image

Encode = Callable[..., bytes]


def one(data: bytes, size: int | None = None) -> Decoded:
    """The outcome of decoding a single image."""
    (outcome,) = decode([[Encoded("x.png", 3, lambda: data)]], size)
    return outcome


@pytest.mark.parametrize(
    ("mode", "form", "shape"),
    [
        ("RGB", "PNG", (8, 8, 3)),
        ("RGB", "JPEG", (8, 8, 3)),
        ("RGB", "BMP", (8, 8, 3)),
        ("RGBA", "PNG", (8, 8, 3)),
        ("CMYK", "JPEG", (8, 8, 3)),
        ("CMYK", "TIFF", (8, 8, 3)),
        ("L", "PNG", (8, 8)),
        ("L", "JPEG", (8, 8)),
        ("LA", "PNG", (8, 8)),
    ],
)
def test_every_mode_becomes_grey_or_rgb(encode: Encode, mode: str, form: str, shape: tuple[int, ...]) -> None:
    """Whatever is stored, bytes come out: one channel for grey, three for colour."""
    pixels = read_image(encode(1, mode=mode, form=form))

    assert pixels.shape == shape
    assert pixels.dtype == np.uint8


def test_lossless_colours_are_untouched(encode: Encode) -> None:
    """A PNG's bytes are the array's; alpha is dropped, the colours under it stay."""
    values = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)

    assert np.array_equal(read_image(encode(Image.fromarray(values[..., :3]))), values[..., :3])
    assert np.array_equal(read_image(encode(Image.fromarray(values))), values[..., :3])


def test_palettes_give_their_colours(encode: Encode) -> None:
    """An indexed image, with and without transparency, is decoded to the colours it names."""
    indexed = Image.fromarray(np.array([[0, 1], [1, 0]], dtype=np.uint8))
    indexed.putpalette([255, 0, 0, 0, 0, 255])

    for data in (encode(indexed), encode(indexed, transparency=bytes([0, 255]))):
        assert read_image(data).tolist() == [[[255, 0, 0], [0, 0, 255]], [[0, 0, 255], [255, 0, 0]]]


def test_black_and_white_and_sixteen_bits_become_bytes(encode: Encode) -> None:
    """One bit becomes 0 or 255; sixteen bits are scaled, not clipped."""
    wide = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)

    assert read_image(encode(Image.fromarray(wide > 300))).tolist() == [[0, 0, 255, 255]]
    assert read_image(encode(Image.fromarray(wide))).tolist() == [[0, 1, 128, 255]]


def test_floating_point_pixels_are_refused(encode: Encode) -> None:
    """There is no telling what range they have."""
    with pytest.raises(ValueError, match="mode F: floating-point pixels have no fixed range"):
        read_image(encode(Image.new("F", (2, 2)), form="TIFF"))


def test_integers_beyond_sixteen_bits_are_refused(encode: Encode) -> None:
    """They would wrap around."""
    with pytest.raises(ValueError, match=r"mode I with values outside 0 \.\.\. 65535"):
        read_image(encode(Image.fromarray(np.array([[70_000]], dtype=np.int32)), form="TIFF"))


def test_the_first_frame_of_an_animation_is_taken(encode: Encode) -> None:
    """The others are ignored."""
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]

    pixels = read_image(encode(frames[0], form="GIF", save_all=True, append_images=frames[1:]))

    assert pixels.tolist() == [[[255, 0, 0]] * 3] * 3


def test_an_orientation_tag_is_applied(encode: Encode) -> None:
    """A photograph taken with the camera turned comes out upright."""
    image = Image.fromarray(np.array([[[0, 0, 0], [255, 255, 255]]], dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6

    assert read_image(encode(image, exif=exif))[..., 0].tolist() == [[0], [255]]


@pytest.mark.parametrize(
    "tags", [b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff\x12", b"Exif\x00\x00nonsense"]
)
def test_a_broken_orientation_tag_is_passed_over(encode: Encode, tags: bytes) -> None:
    """Metadata that cannot be read neither loses the image nor prints a warning."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        outcome = one(encode(1, form="JPEG", exif=tags))

    assert seen == []
    assert np.array_equal(outcome.pixels, read_image(encode(1, form="JPEG")))


def test_a_single_pixel_is_an_image(encode: Encode) -> None:
    """It is read as it is, and enlarged when a size is asked for."""
    pixel = Image.new("RGB", (1, 1), (1, 2, 3))

    assert read_image(encode(pixel)).tolist() == [[[1, 2, 3]]]
    assert read_image(encode(pixel), 4).tolist() == [[[1, 2, 3]] * 4] * 4


@pytest.mark.parametrize("shape", [(40, 80), (80, 40), (31, 33), (3, 200)])
def test_resizing_keeps_the_centre_square(encode: Encode, shape: tuple[int, int]) -> None:
    """The shorter side becomes the size and the middle of the longer one is kept."""
    height, width = shape
    ramp = np.linspace(0, 255, max(shape)).astype(np.uint8)
    image = np.broadcast_to(ramp if width >= height else ramp[:, None], shape)

    pixels = read_image(encode(Image.fromarray(np.ascontiguousarray(image))), 16)

    assert pixels.shape == (16, 16)
    assert abs(float(pixels.mean()) - 127) < 4
    # The slope along the long side is that of the picture scaled by the short one.
    along = pixels if width >= height else pixels.T
    expected = 15 * min(shape) / 16 / (max(shape) - 1) * 255
    assert abs((float(along[8, 15]) - float(along[8, 0])) - expected) < 0.15 * expected + 2


def test_resizing_averages_over_what_it_drops(encode: Encode) -> None:
    """A fine checkerboard becomes grey, not an arbitrary pick of black and white."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)

    pixels = read_image(encode(Image.fromarray(board)), 8)

    assert 120 <= int(pixels.min()) <= int(pixels.max()) <= 135


def test_a_large_jpeg_is_shrunk_like_a_small_one(encode: Encode) -> None:
    """Decoding a JPEG at a fraction of its size gives about what decoding all of it gives."""
    smooth = np.add.outer(np.arange(400), np.arange(400)) * (255 / 798)
    data = encode(Image.fromarray(smooth.astype(np.uint8)), form="JPEG", quality=95)

    whole = np.asarray(Image.fromarray(read_image(data)).resize((16, 16), Image.Resampling.BILINEAR))

    assert np.abs(read_image(data, 16).astype(int) - whole).max() <= 3


def test_arrays_are_resized_like_files(encode: Encode) -> None:
    """Sources that come as arrays use the same filter as those that come as files."""
    values = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)

    resized = fit_all(values, 8)

    for array, pixels in zip(resized, values, strict=True):
        assert np.array_equal(array, read_image(encode(Image.fromarray(pixels)), 8))
    assert fit_all(values[..., :1], 8).shape == (3, 8, 8, 1)
    assert fit_all(values, None) is values


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no bytes"),
        (b"not an image at all", "cannot identify image file"),
        (b"\x89PNG\r\n\x1a\n", ""),
        (b"GIF89a", ""),
    ],
)
def test_what_is_no_image_is_reported(data: bytes, reason: str) -> None:
    """The outcome keeps name and label and gives the reason on one line."""
    name, label, pixels, *_ = one(data)

    assert (name, label) == ("x.png", 3)
    assert isinstance(pixels, str)
    assert reason in pixels
    assert pixels
    assert "\n" not in pixels


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_truncated_files_are_reported(encode: Encode, form: str, kept: float) -> None:
    """A file cut short is bad, never half a picture."""
    data = encode(1, side=32, form=form)

    outcome = one(data[: int(len(data) * kept)])

    assert isinstance(outcome.pixels, str)
    assert outcome.pixels


def test_images_of_many_pixels_are_reported(encode: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the limit an image is not decoded; the reason names the limit and its setting."""
    data = encode(1, side=60)
    monkeypatch.setenv("RAYDDL_MAX_PIXELS", "3599")

    assert one(data).pixels == (
        "3,600 pixels, the limit is 3,599; if this is right, set RAYDDL_MAX_PIXELS to allow more"
    )
    monkeypatch.setenv("RAYDDL_MAX_PIXELS", "3600")
    assert not isinstance(one(data).pixels, str)


def test_a_small_file_of_many_pixels_is_reported(encode: Encode) -> None:
    """400 bytes of WebP can declare 64 million pixels of one colour, 200 MB decoded."""
    assert "pixels for each of its" in str(
        one(encode(Image.new("RGB", (8000, 8000)), form="WEBP", lossless=True)).pixels
    )


def test_a_jpeg_of_many_scans_is_reported(encode: Encode) -> None:
    """Each scan of a progressive JPEG costs as much as a whole image, and takes a few bytes."""
    data = encode(1, side=16, form="JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")

    assert not isinstance(one(data).pixels, str)
    assert "1,008 scans, the limit is 100" in str(one(data[:-2] + data[last:-2] * 998 + data[-2:]).pixels)


@pytest.mark.parametrize(
    "data",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n",
        b"\xc5\xd0\xd3\xc6"
        + b"\x20"
        + bytes(27)
        + b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n",
    ],
)
def test_postscript_is_no_image(data: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """PIL has Ghostscript draw it, which runs what the file says; here no program is started."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)

    assert "cannot identify image file" in str(one(data).pixels)
    assert not (tmp_path / "started").exists()
    with pytest.raises(UnidentifiedImageError):
        opened(data, 3)


@pytest.mark.parametrize("form", ["PCX", "TGA", "ICO", "SGI"])
def test_other_formats_of_pil_are_not_opened(encode: Encode, form: str) -> None:
    """What is opened does not depend on what PIL happens to support."""
    assert "cannot identify image file" in str(one(encode(1, form=form)).pixels)


def test_what_is_narrowed_is_opened_like_others(encode: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only in the listed formats and within the limits, also where its bytes are passed on."""
    with pytest.raises(UnidentifiedImageError):
        narrowed(encode(1, form="TGA"), 4095)
    monkeypatch.setenv("RAYDDL_MAX_PIXELS", "10")
    with pytest.raises(ValueError, match="the limit is 10"):
        narrowed(encode(1), 4095)


def test_a_file_that_cannot_be_opened_is_reported() -> None:
    """An error while reading is the image's, not the run's."""

    def gone() -> bytes:
        raise FileNotFoundError("a.png went away")

    (outcome,) = decode([[Encoded("a.png", 0, gone)]], None)

    assert outcome.pixels == "a.png went away"


@pytest.mark.parametrize("side", [8, 96])
def test_images_come_in_order_over_batches_and_threads(encode: Encode, side: int) -> None:
    """Small ones are decoded here and large ones by threads; the order is that of the batches."""
    datas = [encode(i, side=side) for i in range(12)]
    items = [Encoded(str(i), i, lambda data=data: data) for i, data in enumerate(datas)]  # type: ignore[misc]  # mypy cannot infer a lambda with a default

    outcomes = list(decode([items[:5], [], items[5:]], None))

    assert [o.name for o in outcomes] == [str(i) for i in range(12)]
    for outcome, data in zip(outcomes, datas, strict=True):
        assert np.array_equal(outcome.pixels, read_image(data))


def test_each_image_is_read_once(encode: Encode) -> None:
    """No file is opened a second time, the first of a batch included."""
    data, reads = encode(1), []

    def read(index: int) -> Callable[[], bytes]:
        def get() -> bytes:
            reads.append(index)
            return data

        return get

    list(decode([[Encoded(str(i), 0, read(i)) for i in range(4)]] * 2, None))

    assert sorted(reads) == [0, 0, 1, 1, 2, 2, 3, 3]
