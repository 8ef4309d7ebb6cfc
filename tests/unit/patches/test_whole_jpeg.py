"""Whole images in place of crops, and images as JPEG files leave them."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from rayddl.data.pixels.cutting import as_jpeg
from rayddl.methods.patches import boxes
from rayddl.stages.rded.settings import RdedConfig


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pils_with_its_default_quality(channels: int) -> None:
    """75 is what PIL takes if a file's name ends in .jpg, as in RDED's code."""
    image = torch.randint(256, (channels, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    stream = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()).save(stream, "JPEG")
    expected = np.asarray(Image.open(stream)).reshape(16, 16, channels).transpose(2, 0, 1)
    assert np.array_equal(as_jpeg(image, 75).numpy(), expected)
    assert not torch.equal(as_jpeg(image, 75), image)


def test_whole_images_have_one_candidate_the_centre_square() -> None:
    """Whatever the number of crops is."""
    assert boxes.whole(30, 51).tolist() == [[0, 10, 30]]
    config = RdedConfig(kind="rded", teacher="t", ipc=1, num_crops=5)
    assert config.candidates == 5
    assert config.model_copy(update={"whole": True}).candidates == 1
