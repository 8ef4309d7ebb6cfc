"""DSA against slow references written from the papers' description, and its derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rayddl.data.config import AUGMENTATIONS
from rayddl.data.pixels.augment import Draw, apply, draw, joined

# torch's forward mode loads decompositions that its own jit.script warns about.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is:FutureWarning")

Image = NDArray[np.float64]
SHAPES = [(5, 3, 8, 8), (4, 1, 7, 7), (3, 3, 6, 11), (2, 2, 1, 1)]


def generator(seed: int = 0) -> torch.Generator:
    """A generator of the test's own."""
    return torch.Generator().manual_seed(seed)


def drawn(name: str, shape: tuple[int, int, int, int], seed: int = 0) -> Draw:
    """One draw of the strategy ``name``."""
    result = draw((name,), shape, generator(seed))
    assert result is not None
    return result


def flip_reference(image: Image, flipped: float) -> Image:
    """Columns reversed, one at a time."""
    width = image.shape[2]
    return np.stack([image[:, :, width - 1 - j] if flipped else image[:, :, j] for j in range(width)], 2)


def crop_reference(image: Image, down: float, right: float) -> Image:
    """Every pixel looked up by itself, zero outside."""
    result = np.zeros_like(image)
    height, width = image.shape[1:]
    for i in range(height):
        for j in range(width):
            y, x = i + int(down), j + int(right)
            if 0 <= y < height and 0 <= x < width:
                result[:, i, j] = image[:, y, x]
    return result


def cutout_reference(image: Image, row: float, column: float) -> Image:
    """A square of half the side about the centre, clipped at the border."""
    result = image.copy()
    height, width = image.shape[1:]
    tall, wide = int(0.5 * height + 0.5), int(0.5 * width + 0.5)
    for i in range(int(row) - tall // 2, int(row) - tall // 2 + tall):
        for j in range(int(column) - wide // 2, int(column) - wide // 2 + wide):
            if 0 <= i < height and 0 <= j < width:
                result[:, i, j] = 0
    return result


def color_reference(image: Image, brightness: float, saturation: float, contrast: float) -> Image:
    """The three steps one after the other."""
    bright = image + brightness
    grey = bright.mean(0, keepdims=True)
    saturated = (bright - grey) * saturation + grey
    result: Image = (saturated - saturated.mean()) * contrast + saturated.mean()
    return result


def bilinear(image: Image, y: float, x: float) -> NDArray[np.float64]:
    """The four neighbours of one point, those outside counting as zero."""
    total = np.zeros(image.shape[0])
    for i in (math.floor(y), math.floor(y) + 1):
        for j in (math.floor(x), math.floor(x) + 1):
            if 0 <= i < image.shape[1] and 0 <= j < image.shape[2]:
                total += image[:, i, j] * (1 - abs(y - i)) * (1 - abs(x - j))
    return total


def scale_reference(image: Image, across: float, down: float) -> Image:
    """Each pixel sampled at a multiple of its distance from the centre."""
    result = np.zeros_like(image)
    cy, cx = (image.shape[1] - 1) / 2, (image.shape[2] - 1) / 2
    for i in range(image.shape[1]):
        for j in range(image.shape[2]):
            result[:, i, j] = bilinear(image, cy + down * (i - cy), cx + across * (j - cx))
    return result


def rotate_reference(image: Image, angle: float) -> Image:
    """Each pixel sampled at its place turned about the centre."""
    result = np.zeros_like(image)
    cy, cx = (image.shape[1] - 1) / 2, (image.shape[2] - 1) / 2
    cos, sin = math.cos(angle), math.sin(angle)
    for i in range(image.shape[1]):
        for j in range(image.shape[2]):
            y, x = i - cy, j - cx
            result[:, i, j] = bilinear(image, cy + sin * x + cos * y, cx + cos * x - sin * y)
    return result


REFERENCES: dict[str, Callable[..., Image]] = {
    "flip": flip_reference,
    "crop": crop_reference,
    "cutout": cutout_reference,
    "color": color_reference,
    "scale": scale_reference,
    "rotate": rotate_reference,
}


def test_every_strategy_a_user_can_name_has_a_reference_here() -> None:
    """No strategy goes untested."""
    assert set(REFERENCES) == set(AUGMENTATIONS)


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_batch_equals_the_reference_image_by_image(
    name: str, shape: tuple[int, int, int, int], seed: int
) -> None:
    """Each image is augmented by its own numbers, as a plain loop over pixels does it."""
    x = torch.randn(shape, dtype=torch.float64, generator=generator(seed + 10))
    choice = drawn(name, shape, seed)

    result = apply(x, choice)

    for index in range(shape[0]):
        numbers = [float(p[index]) for p in choice.params]
        expected = REFERENCES[name](x[index].numpy(), *numbers)
        np.testing.assert_allclose(result[index].numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["scale", "rotate"])
def test_sampling_agrees_with_grid_sample(name: str) -> None:
    """On square images the result is that of affine_grid and grid_sample with aligned corners."""
    x = torch.randn(16, 3, 9, 9, dtype=torch.float64, generator=generator(3))
    choice = drawn(name, (16, 3, 9, 9))
    theta = torch.zeros(16, 2, 3, dtype=torch.float64)
    if name == "scale":
        theta[:, 0, 0], theta[:, 1, 1] = choice.params[0].double(), choice.params[1].double()
    else:
        angle = choice.params[0].double()
        theta[:, 0, 0], theta[:, 0, 1] = angle.cos(), -angle.sin()
        theta[:, 1, 0], theta[:, 1, 1] = angle.sin(), angle.cos()

    expected = F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=True), align_corners=True)

    torch.testing.assert_close(apply(x, choice), expected, rtol=0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(AUGMENTATIONS), seed=st.integers(0, 2**31), side=st.integers(2, 9))
def test_a_draw_replays_exactly(name: str, seed: int, side: int) -> None:
    """The same generator state gives the same draw, and the same draw the same result, bit for bit."""
    shape = (3, 3, side, side)
    x = torch.randn(shape, generator=generator(seed % 97))
    first, second = drawn(name, shape, seed), drawn(name, shape, seed)

    assert first.name == second.name
    assert all(torch.equal(a, b) for a, b in zip(first.params, second.params, strict=True))
    assert torch.equal(apply(x, first), apply(x, second))
    assert torch.equal(apply(x, first), apply(x, first))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), side=st.integers(2, 12))
def test_flip_and_crop_move_pixels_without_changing_them(seed: int, side: int) -> None:
    """A flip is undone by itself, and a crop holds only pixels of the image and zeros."""
    shape = (4, 3, side, side)
    x = torch.rand(shape, generator=generator(seed % 89)) + 1
    flip = drawn("flip", shape, seed)

    assert torch.equal(apply(apply(x, flip), flip), x)

    cropped = apply(x, drawn("crop", shape, seed))

    kept = cropped[cropped != 0]
    assert torch.isin(kept, x).all()


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_derivatives_of_every_mode_and_order(name: str) -> None:
    """Reverse, forward, batched, reverse over reverse and forward over reverse all check in float64."""
    shape = (2, 2, 4, 4)
    x = torch.randn(shape, dtype=torch.float64, generator=generator(1)).requires_grad_()
    choice = drawn(name, shape)

    def f(z: torch.Tensor) -> torch.Tensor:
        return apply(z, choice).square()

    assert torch.autograd.gradcheck(
        f, (x,), check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )
    assert torch.autograd.gradgradcheck(f, (x,), check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_forward_derivative_of_the_gradient_function(name: str) -> None:
    """jvp(grad(loss)) along a direction equals the product with the Hessian by finite differences."""
    shape = (2, 3, 6, 6)
    x = torch.randn(shape, dtype=torch.float64, generator=generator(1))
    direction = torch.randn(shape, dtype=torch.float64, generator=generator(2))
    choice = drawn(name, shape)

    def gradient(z: torch.Tensor) -> torch.Tensor:
        slope: torch.Tensor = torch.func.grad(lambda y: apply(y, choice).pow(4).sum())(z)
        return slope

    product = torch.func.jvp(gradient, (x,), (direction,))[1]

    step = 1e-5
    difference = (gradient(x + step * direction) - gradient(x - step * direction)) / (2 * step)
    torch.testing.assert_close(product, difference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_draw_works_under_vmap(name: str) -> None:
    """Several sets of images augmented by one draw under vmap are those augmented one by one."""
    shape = (3, 3, 6, 6)
    stacked = torch.randn(4, *shape, generator=generator(1))
    choice = drawn(name, shape)

    result = torch.vmap(lambda z: apply(z, choice))(stacked)

    torch.testing.assert_close(result, torch.stack([apply(z, choice) for z in stacked]))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_result_is_affine(name: str) -> None:
    """A weighted mean of images is augmented to the weighted mean of their results."""
    shape = (4, 3, 8, 8)
    a, b = (torch.randn(shape, dtype=torch.float64, generator=generator(s)) for s in (1, 2))
    choice = drawn(name, shape)

    mixed = apply(0.3 * a + 0.7 * b, choice)

    torch.testing.assert_close(mixed, 0.3 * apply(a, choice) + 0.7 * apply(b, choice))


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_type_and_memory_format_are_kept(name: str, dtype: torch.dtype) -> None:
    """The result has the images' type and layout; half precision is rounded once from float32."""
    shape = (4, 2, 8, 8)
    x = torch.randn(shape, generator=generator(1)).to(dtype)
    choice = drawn(name, shape)

    plain = apply(x, choice)
    last = apply(x.to(memory_format=torch.channels_last), choice)

    assert plain.dtype == dtype
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last.contiguous(), plain)
    if dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(plain, apply(x.float(), choice).to(dtype))


def test_the_numbers_are_those_of_the_papers() -> None:
    """Every number of every strategy fills its published range and does not leave it."""
    count = 4000
    shape = (count, 3, 32, 32)
    ranges: dict[str, list[tuple[float, float]]] = {
        "crop": [(-4, 4), (-4, 4)],
        "cutout": [(0, 32), (0, 32)],
        "color": [(-0.5, 0.5), (0, 2), (0.5, 1.5)],
        "scale": [(1 / 1.2, 1.2), (1 / 1.2, 1.2)],
        "rotate": [(-math.radians(15), math.radians(15))],
    }

    for name, expected in ranges.items():
        params = drawn(name, shape).params
        assert len(params) == len(expected)
        for numbers, (low, high) in zip(params, expected, strict=True):
            assert numbers.shape == (count,)
            assert low <= float(numbers.min()) <= low + 0.01 * (high - low)
            assert high - 0.01 * (high - low) <= float(numbers.max()) <= high + 1e-6
    flipped = drawn("flip", shape).params[0].double().mean()
    assert abs(float(flipped) - 0.5) < 0.04


def test_an_odd_cutout_has_one_centre_less() -> None:
    """A square of odd side is centred on a pixel, so its centre stays inside the image."""
    rows = drawn("cutout", (2000, 1, 6, 6)).params[0]

    assert (int(rows.min()), int(rows.max())) == (0, 5)


def test_one_strategy_is_drawn_uniformly_per_call() -> None:
    """Over many calls each name comes up about equally often."""
    source = generator(5)
    names = [draw(AUGMENTATIONS, (1, 3, 8, 8), source) for _ in range(1200)]

    counts = {name: sum(d is not None and d.name == name for d in names) for name in AUGMENTATIONS}

    assert all(150 < count < 250 for count in counts.values())


def test_no_names_leave_the_images_alone() -> None:
    """An empty tuple draws nothing, takes nothing from the generator, and returns the same tensor."""
    source = generator()
    before = source.get_state()
    x = torch.randn(2, 3, 4, 4)

    assert draw((), (2, 3, 4, 4), source) is None
    assert torch.equal(source.get_state(), before)
    assert apply(x, None) is x


def test_draws_of_several_batches_are_one_after_the_other() -> None:
    """One draw for all images has what each batch's own draw has; without augmentation there is none."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.rand(count, 3, 8, 8, generator=generator) for count in (3, 1, 4)]
    draws = [draw(("crop",), batch.shape, generator) for batch in batches]
    parts = [apply(batch, drawn) for batch, drawn in zip(batches, draws, strict=True)]

    torch.testing.assert_close(apply(torch.cat(batches), joined(draws)), torch.cat(parts), rtol=0, atol=0)
    assert joined([None, None]) is None
    assert joined(draws[:1]) is draws[0]


def test_the_global_generator_is_not_touched() -> None:
    """Drawing takes random numbers from the generator it is given and from nowhere else."""
    before = torch.get_rng_state()

    for name in AUGMENTATIONS:
        apply(torch.ones(2, 3, 8, 8), drawn(name, (2, 3, 8, 8)))

    assert torch.equal(torch.get_rng_state(), before)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    """The message names the unknown strategy and lists the known ones."""
    with pytest.raises(ValueError, match=r"unknown augmentation 'blur'; known: color, crop, cutout, flip"):
        draw(("flip", "blur"), (1, 3, 8, 8), generator())


def test_a_draw_for_another_number_of_images_is_refused() -> None:
    """Numbers for five images are not silently broadcast over four."""
    with pytest.raises(ValueError, match="drawn for 5 images, applied to 4"):
        apply(torch.zeros(4, 3, 8, 8), drawn("flip", (5, 3, 8, 8)))


KNOWN = {
    "color": [0.059092, -0.408543, 0.420006, 0.014389, 0.538962, 1.492895],
    "crop": [-1, 0, 1, -1],
    "cutout": [3, 4, 2, 3],
    "flip": [0, 1],
    "scale": [1.038334, 0.866867, 0.910334, 0.835971],
    "rotate": [0.030941, -0.213913],
}


def test_known_draws_are_known() -> None:
    """Nothing but the seed decides, in any process: changing a draw makes everybody's results void."""
    for name, numbers in KNOWN.items():
        assert torch.stack(drawn(name, (2, 3, 8, 8), 4).params).double().flatten().tolist() == pytest.approx(
            numbers, abs=1e-6
        )
    chosen = draw(AUGMENTATIONS, (2, 3, 8, 8), generator(4))
    assert chosen is not None
    assert chosen.name == "scale"
