"""Crops: decoding, cutting, bringing to size, and what is done about unusual files."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from rayddl.data.pixels.cutting import cut, opened, reduction


def _picture(height: int, width: int, wave: float = 20.0) -> Image.Image:
    """Smooth colours, which JPEG keeps well."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [127 + 120 * np.sin(x / wave), 127 + 120 * np.cos(y / wave), (x + y) * 255 / (height + width)]
    return Image.fromarray(np.stack(planes, 2).astype(np.uint8))


def _bytes(image: Image.Image, format_: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format_, **options)  # type: ignore[arg-type]  # PIL takes any option
    return sink.getvalue()


def _boxes(*rows: tuple[int, int, int]) -> np.ndarray:  # type: ignore[type-arg]  # any dtype will do here
    return np.array(rows, np.int32)


@pytest.mark.parametrize("format_", ["PNG", "JPEG"])
def test_a_crop_is_the_box_resized_with_antialiasing(format_: str) -> None:
    """Against PIL's pixels, cut by slicing and resized in float: at most one grey level apart."""
    data = _bytes(_picture(90, 140), format_)
    whole = torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)
    boxes = _boxes((5, 9, 60), (0, 0, 90), (30, 100, 16))
    found = cut(opened(data, 3), boxes, 24, reduced=False)
    for crop, (top, left, side) in zip(found, boxes.tolist(), strict=True):
        part = whole[None, :, top : top + side, left : left + side].float()
        expected = F.interpolate(part, size=(24, 24), mode="bilinear", antialias=True)[0]
        assert float((crop.float() - expected).abs().max()) <= 1.01


def test_a_crop_of_the_asked_size_is_untouched() -> None:
    """No filter runs where none is needed."""
    image = _picture(20, 30)
    found = cut(opened(_bytes(image, "PNG"), 3), _boxes((2, 3, 8)), 8, reduced=False)
    assert np.array_equal(found[0].permute(1, 2, 0).numpy(), np.array(image)[2:10, 3:11])


def test_a_jpeg_is_decoded_smaller_when_every_crop_allows_it() -> None:
    """The reduced way gives nearly the same crop of a large image."""
    data, boxes = _bytes(_picture(600, 800, 100.0), "JPEG", quality=95), _boxes((40, 60, 480), (0, 200, 500))
    plain = cut(opened(data, 3), boxes, 56, reduced=False).float()
    reduced = cut(opened(data, 3), boxes, 56, reduced=True).float()
    assert opened(data, 3).pixels(8)[0].shape == (3, 75, 100)
    assert float((plain - reduced).abs().mean()) < 2.0


@pytest.mark.parametrize(
    ("sides", "size", "expected"), [((480,), 56, 8), ((480, 230), 56, 4), ((111,), 56, 1), ((112,), 56, 2)]
)
def test_no_crop_is_enlarged_for_the_sake_of_speed(sides: tuple[int, ...], size: int, expected: int) -> None:
    """The narrowest crop decides by how much the image may be shrunk."""
    assert reduction(_boxes(*((0, 0, s) for s in sides)), size) == expected


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "I;16"])
def test_every_mode_becomes_what_the_observer_takes(mode: str) -> None:
    """Grey, alpha, palette, bilevel, CMYK and 16-bit images are converted; to grey as well."""
    image = _picture(16, 16).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.array(image).astype(np.uint16) * 257)
    data = _bytes(image, "TIFF" if mode == "CMYK" else "PNG")
    for channels in (1, 3):
        found = cut(opened(data, channels), _boxes((0, 0, 16)), 8, reduced=True)
        assert found.shape == (1, channels, 8, 8)
        assert found.dtype == torch.uint8


def test_a_cmyk_jpeg_is_read() -> None:
    """The rare four-channel JPEG goes through the reader that knows it."""
    found = cut(
        opened(_bytes(_picture(16, 16).convert("CMYK"), "JPEG"), 3), _boxes((0, 0, 16)), 8, reduced=True
    )
    assert found.shape == (1, 3, 8, 8)


def test_a_one_pixel_image_gives_a_flat_patch() -> None:
    """One pixel is an image too."""
    data = _bytes(Image.new("RGB", (1, 1), (10, 20, 30)), "PNG")
    found = cut(opened(data, 3), _boxes((0, 0, 1)), 4, reduced=False)
    assert found[0, :, 2, 2].tolist() == [10, 20, 30]


def test_a_cut_off_jpeg_is_an_error_not_a_grey_half() -> None:
    """Half a file is refused, though a decoder could make up the rest."""
    data = _bytes(_picture(200, 200), "JPEG")
    with pytest.raises(OSError, match="truncated"):
        cut(opened(data[: len(data) // 2], 3), _boxes((0, 0, 50)), 8, reduced=False)


@pytest.mark.parametrize("data", [b"", b"not an image at all"])
def test_bytes_that_are_no_image_are_an_error(data: bytes) -> None:
    """Empty and meaningless files raise, for the caller to count."""
    with pytest.raises((ValueError, OSError)):
        opened(data, 3)


def test_a_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image of more pixels than the limit is not decoded."""
    data = _bytes(_picture(40, 40), "JPEG")
    monkeypatch.setenv("RAYDDL_MAX_PIXELS", "1000")
    with pytest.raises(ValueError, match=r"1,600 pixels, the limit is 1,000"):
        opened(data, 3)


def test_arrays_pass_through_and_are_never_written() -> None:
    """Pixels out of shared memory are read only."""
    pixels = np.arange(3 * 8 * 8, dtype=np.uint8).reshape(3, 8, 8)
    pixels.flags.writeable = False
    found = cut(opened(pixels, 3), _boxes((0, 0, 8)), 8, reduced=False)
    assert np.array_equal(found[0].numpy(), pixels)
    grey = opened(pixels, 1).pixels(1)[0]
    assert torch.allclose(
        grey[0].float(),
        (torch.from_numpy(pixels.copy()).float() * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0),
        atol=0.51,
    )


def test_a_turned_photograph_stands_upright() -> None:
    """An EXIF orientation is applied, as for sources that are decoded whole."""
    image, tags = _picture(20, 40), Image.Exif()
    tags[0x0112] = 6
    found = opened(_bytes(image, "JPEG", exif=tags.tobytes()), 3)
    assert (found.height, found.width) == (40, 20)
