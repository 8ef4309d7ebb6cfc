"""Pixel spaces: there and back, their statistics, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayddl.data.pixels import space, sums
from rayddl.data.pixels.space import PORTION, ZCA_EPS, Normalise, PixelSpace, Zca, fit
from rayddl.data.pixels.whitening import moments
from rayddl.errors import SourceError
from tests.raising import raises

KINDS = ["normalise", "zca"]


def noise(count: int, shape: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    """Random bytes whose neighbours resemble each other, as those of pictures do."""
    source = torch.Generator().manual_seed(seed)
    base = torch.randint(0, 200, (count, *shape), generator=source)
    smooth = (base + base.roll(1, 3) + base.roll(1, 2)) // 3
    return smooth.to(torch.uint8)


def zca_of(images: torch.Tensor) -> Zca:
    """A fitted whitening, with its own type."""
    space = fit("zca", images)
    assert isinstance(space, Zca)
    return space


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 1000),
    count=st.integers(2, 40),
    shape=st.tuples(st.sampled_from([1, 3]), st.integers(1, 6), st.integers(1, 6)),
)
def test_what_was_encoded_comes_back(kind: str, seed: int, count: int, shape: tuple[int, int, int]) -> None:
    """Every byte of every image returns from model space, for any shape and number of images."""
    images = noise(count, shape, seed)
    space = fit(kind, images)

    encoded = space.encode(images)
    back = space.invert(encoded)

    assert encoded.dtype == back.dtype == torch.float32
    assert encoded.shape == images.shape
    torch.testing.assert_close(back, images.float() / 255, rtol=0, atol=2e-5)
    assert torch.equal((space.decode(encoded) * 255).round().to(torch.uint8), images)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_numbers_restore_bit_for_bit(kind: str) -> None:
    """A space put together from its parts encodes and inverts to the very same bits."""
    images = noise(50, (3, 5, 4))
    space = fit(kind, images)

    restored = PixelSpace.from_parts(space.to_json(), space.tensors())

    assert type(restored) is type(space)
    assert restored.kind == kind
    assert restored.shape == (3, 5, 4)
    assert restored.fingerprint == space.fingerprint
    encoded = space.encode(images)
    assert torch.equal(restored.encode(images), encoded)
    assert torch.equal(restored.invert(encoded), space.invert(encoded))
    assert all(torch.equal(restored.tensors()[name], t) for name, t in space.tensors().items())


def test_normalise_is_mean_and_deviation_per_channel() -> None:
    """The encoded train split has mean 0 and deviation 1 in each channel, as numpy computes them."""
    images = noise(64, (3, 6, 5))
    space = fit("normalise", images)
    assert isinstance(space, Normalise)

    pixels = images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(space.mean.numpy(), pixels.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(space.std.numpy(), pixels.std((0, 2, 3)), rtol=1e-12)
    encoded = space.encode(images).double()
    torch.testing.assert_close(encoded.mean((0, 2, 3)), torch.zeros(3).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        encoded.std((0, 2, 3), correction=0), torch.ones(3).double(), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("kind", KINDS)
def test_floats_are_encoded_as_bytes_are(kind: str) -> None:
    """From 0 to 1, both included; other numbers are refused, also if one of them is."""
    images = noise(6, (3, 4, 4))
    images[0, 0, 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)
    space, pixels = fit(kind, images), images.float() / 255

    for floats in (pixels, pixels.double()):
        torch.testing.assert_close(space.encode(floats), space.encode(images), rtol=0, atol=1e-5)
    for wrong in (
        pixels - 0.01,
        pixels + 0.01,
        pixels.where(pixels < 1, torch.nan),
        images.float(),
        images.int(),
    ):
        with pytest.raises(ValueError, match=r"expected uint8, or floats in 0\.\.1"):
            space.encode(wrong)
    assert torch.equal(pixels, images.float() / 255)


@pytest.mark.parametrize("kind", KINDS)
def test_every_image_has_numbers_of_its_own(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """None is what happened to be in memory, which often is the right number, of an earlier call."""
    images = noise(5, (3, 4, 4))
    space = fit(kind, images)
    encoded = space.encode(images)
    monkeypatch.setattr(torch, "empty", lambda *shape, **how: torch.full(*shape, torch.nan, **how))

    assert torch.equal(space.encode(images), encoded)
    torch.testing.assert_close(space.invert(encoded), images.float() / 255, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_outside_of_pixels_is_clamped(kind: str) -> None:
    """Black is 0 and white 1."""
    images = noise(6, (3, 4, 4))
    space = fit(kind, images)
    far = 9 * space.encode(images)
    inverted, decoded = space.invert(far), space.decode(far)

    assert float(inverted.min()) < 0
    assert float(inverted.max()) > 1
    assert torch.equal(decoded, inverted.maximum(torch.zeros(())).minimum(torch.ones(())))


@pytest.mark.parametrize("kind", KINDS)
def test_a_space_on_a_device_has_its_numbers_there(kind: str) -> None:
    """All of them; on the same device it encodes to the same bits."""
    images = noise(6, (3, 4, 4))
    space = fit(kind, images)
    there = space.on(torch.device("meta"))

    assert {getattr(there, name).device.type for name in space.tensors()} == {"meta"}
    assert there.shape == space.shape
    assert torch.equal(space.on(torch.device("cpu")).encode(images), space.encode(images))


def test_spaces_that_encode_each_number_by_itself_say_so() -> None:
    """In batches of any size it has the same bits then."""
    images = noise(60, (3, 4, 4))
    space = fit("normalise", images)
    assert space.elementwise
    assert torch.equal(torch.cat([space.encode(part) for part in images.split(7)]), space.encode(images))
    assert not fit("zca", images).elementwise


def test_given_constants_are_used_in_place_of_fitted_ones() -> None:
    """A number for each channel, no more and no fewer, of mean and of deviation."""
    images, mean, std = noise(8, (3, 4, 4)), (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    found = fit("normalise", images, (mean, std))
    expected = (images.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    torch.testing.assert_close(found.encode(images).double(), expected, rtol=0, atol=1e-6)
    assert found.shape == (3, 4, 4)
    for other in ((mean[:2], std), (mean, std[:2]), ((*mean, 0.4), std), (mean, (*std, 0.4))):
        with pytest.raises(SourceError) as caught:
            fit("normalise", images, other)
        assert caught.value.code == "scaling-of-other-channels"


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_channel_becomes_zero(kind: str) -> None:
    """A channel that never varies neither divides by zero nor blows up, and comes back."""
    images = noise(20, (3, 4, 4))
    images[:, 1] = 77
    space = fit(kind, images)

    encoded = space.encode(images)

    torch.testing.assert_close(encoded[:, 1], torch.zeros(20, 4, 4), rtol=0, atol=1e-4)
    assert torch.equal((space.decode(encoded) * 255).round().to(torch.uint8), images)


def test_whitening_in_the_eigenbasis() -> None:
    """The whitened covariance is s / (s + eps) along the eigenvectors of the original one."""
    images = noise(400, (3, 4, 4))
    space = zca_of(images)
    flat = images.flatten(1).double() / 255
    values, vectors = torch.linalg.eigh(torch.cov(flat.T))

    whitened = torch.cov(space.encode(images).flatten(1).double().T)

    expected = torch.diag(values / (values + ZCA_EPS))
    torch.testing.assert_close(vectors.T @ whitened @ vectors, expected, rtol=0, atol=1e-5)


def test_whitening_is_the_symmetric_root() -> None:
    """Both matrices are symmetric, inverse to each other, and given by the eigendecomposition."""
    images = noise(100, (1, 5, 5))
    space = zca_of(images)
    values, vectors = torch.linalg.eigh(torch.cov(images.flatten(1).double().T / 255))

    expected = vectors @ torch.diag((values + ZCA_EPS).rsqrt()) @ vectors.T

    torch.testing.assert_close(space.whiten.double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(space.whiten, space.whiten.T)
    assert torch.equal(space.unwhiten, space.unwhiten.T)
    torch.testing.assert_close(space.whiten @ space.unwhiten, torch.eye(25), rtol=0, atol=1e-5)


def test_statistics_are_exact_over_many_chunks() -> None:
    """More images than one exact float32 product may hold, at the extremes of a byte."""
    source = torch.Generator().manual_seed(0)
    images = torch.randint(0, 2, (5000, 1, 2, 3), generator=source).mul(255).to(torch.uint8)
    whole = images.flatten(1).to(torch.int64)
    space = zca_of(images)

    assert torch.equal(space.mean, (whole.sum(0).double() / 5000 / 255).float())
    reversed_ = zca_of(images.flip(0))
    assert reversed_.fingerprint == space.fingerprint


def test_sums_of_a_thousand_products_are_exact() -> None:
    """1,024 products of 2^14 and one of 1: a float32 sum of all would lose the last."""
    images = torch.zeros(1025, 1, 1, 1, dtype=torch.uint8)
    images[-1] = 129
    count, sums, products = moments([images], 1)

    assert (count, sums.tolist(), products.tolist()) == (1025, [1 - 1024 * 128], [[1 + 1024 * 2.0**14]])


@pytest.mark.parametrize("kind", KINDS)
def test_images_in_parts_give_the_same_space(kind: str) -> None:
    """Bit for bit, each part seen once."""
    images = noise(30, (3, 4, 4))
    whole, shape = fit(kind, images), (3, 4, 4)
    sums = [space.summed(kind, iter(part.split(7)), shape) for part in images.split(16)]
    parts = space.of_sums(kind, sums[1].plus(sums[0]), shape)

    assert parts.fingerprint == whole.fingerprint
    assert all(torch.equal(tensor, whole.tensors()[name]) for name, tensor in parts.tensors().items())


@pytest.mark.parametrize("kind", KINDS)
def test_the_fingerprint_follows_the_images(kind: str) -> None:
    """One changed byte changes it; the number of threads and the layout in memory do not."""
    images = noise(30, (3, 4, 4))
    other = images.clone()
    other[3, 1, 2, 2] += 1

    assert fit(kind, images).fingerprint == fit(kind, images.clone()).fingerprint
    assert (
        fit(kind, images.to(memory_format=torch.channels_last)).fingerprint == fit(kind, images).fingerprint
    )
    assert fit(kind, other).fingerprint != fit(kind, images).fingerprint


def test_the_two_kinds_differ() -> None:
    """Spaces of different kinds never share a fingerprint."""
    images = noise(30, (3, 4, 4))

    assert fit("zca", images).fingerprint != fit("normalise", images).fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_encoding_does_not_depend_on_the_batch(kind: str) -> None:
    """Images encoded in parts are those encoded together, up to rounding, and no input is changed."""
    images = noise(60, (3, 4, 4))
    before = images.clone()
    space = fit(kind, images)

    together = space.encode(images)

    torch.testing.assert_close(torch.cat([space.encode(images[:7]), space.encode(images[7:])]), together)
    assert space.encode(images[:0]).shape == (0, 3, 4, 4)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("kind", "fingerprint"),
    [
        ("normalise", "1f756becd30922b82a2961fbc8c8a2b84dbf8fa5e53cbf48c2b5b93059072e77"),
        ("zca", "043fa38eb32f3a9a2599238282c56d39205d9e453e3ea1d07340df1ba50f4a59"),
    ],
)
def test_fingerprints_are_known(kind: str, fingerprint: str) -> None:
    """Of known images, on any machine: changing it makes everybody's results void."""
    images = torch.arange(5 * 12).view(5, 3, 2, 2).mul(37).remainder(256).to(torch.uint8)
    assert fit(kind, images).fingerprint == fingerprint


def test_whitening_has_a_largest_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 x 64 RGB, and what has no more numbers than that."""
    assert sums.ZCA_LARGEST == 12_288
    monkeypatch.setattr(sums, "ZCA_LARGEST", 12)
    assert fit("zca", noise(3, (3, 2, 2))).kind == "zca"
    with raises("images-too-large-for-zca"):
        fit("zca", noise(3, (3, 1, 5)))
    assert fit("zca", noise(2, (1, 2, 2))).kind == "zca"


def test_a_constant_channel_has_the_least_deviation() -> None:
    """A quarter of a grey level is divided by, and whitening adds a tenth to every variance."""
    images = noise(20, (2, 4, 4))
    images[:, 1] = 77
    assert float(fit("normalise", images).tensors()["std"][1]) == 1e-3
    assert zca_of(images).eps == 0.1


def test_many_images_are_encoded_as_few() -> None:
    """More than are encoded at a time, the last part a single image."""
    images = noise(PORTION + 1, (1, 2, 2))
    whitened = zca_of(images)
    encoded = whitened.encode(images)
    expected = (images.flatten(1).double() / 255 - whitened.mean.double()) @ whitened.whiten.double()

    torch.testing.assert_close(encoded.flatten(1).double(), expected, rtol=0, atol=1e-5)
    assert torch.equal((whitened.decode(encoded) * 255).round().to(torch.uint8), images)
    flat = images.double() / 255
    assert float(fit("normalise", images).tensors()["mean"][0]) == pytest.approx(
        float(flat.mean()), rel=1e-12
    )


def test_too_large_images_are_not_whitened() -> None:
    """The message gives the matrix's size, the limit and both ways out."""
    with pytest.raises(SourceError) as caught:
        fit("zca", torch.zeros(4, 3, 65, 65, dtype=torch.uint8))

    assert str(caught.value) == (
        "space: zca needs a 12,675 x 12,675 matrix for images of 3 x 65 x 65 pixels; it is offered up to "
        "64 x 64 RGB (12,288 numbers per image). Set source.space=normalise, or a smaller source.size."
    )


def test_a_single_image_is_not_whitened() -> None:
    """One image has no covariance."""
    with raises("too-few-images-for-zca"):
        fit("zca", torch.zeros(1, 3, 4, 4, dtype=torch.uint8))


def test_images_of_another_shape_are_refused() -> None:
    """A space fitted on one shape does not silently broadcast over another."""
    space = fit("normalise", noise(10, (3, 4, 4)))

    with pytest.raises(ValueError, match=r"fitted on images of shape \(3, 4, 4\), got \(1, 4, 4\)"):
        space.encode(noise(2, (1, 4, 4)))
    with pytest.raises(ValueError, match=r"fitted on images of shape \(3, 4, 4\), got \(1, 4, 4\)"):
        space.invert(torch.zeros(2, 1, 4, 4))


def test_an_unknown_kind_is_refused() -> None:
    """Both fitting and restoring name the kinds there are."""
    space = fit("normalise", noise(10, (3, 4, 4)))

    with pytest.raises(ValueError, match="unknown pixel space 'pca'; known: normalise, zca"):
        fit("pca", noise(10, (3, 4, 4)))
    with raises("unknown-pixel-space"):
        PixelSpace.from_parts({**space.to_json(), "kind": "pca"}, space.tensors())


@pytest.mark.parametrize("kind", KINDS)
def test_missing_or_altered_numbers_are_refused(kind: str) -> None:
    """A number that is missing, cut short or belongs to another space is not used."""
    space, other = fit(kind, noise(10, (3, 4, 4))), fit(kind, noise(10, (3, 4, 4), seed=1))
    tensors = space.tensors()

    with raises("pixel-space-incomplete"):
        PixelSpace.from_parts(space.to_json(), {n: t for n, t in tensors.items() if n != "mean"})
    parts = {**space.to_json(), "fingerprint": other.fingerprint}
    with raises("pixel-space-altered"):
        PixelSpace.from_parts(parts, tensors)
    with raises("pixel-space-incomplete"):
        PixelSpace.from_parts(space.to_json(), {name: t[:1] for name, t in tensors.items()})
