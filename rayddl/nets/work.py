"""Floating-point operations of networks by formula, and whether compiling pays. Imports no torch."""

from __future__ import annotations

import itertools

from rayddl.nets.config import NetConfig

COMPILE_SECONDS = 30.0
"""Approximate duration of compiling a step without a cache."""
EAGER_FLOPS = 2e11
"""Floating-point operations per second assumed for a CPU."""
EAGER_OVERHEAD = 4e-3
"""Seconds of Python and dispatch in one uncompiled step."""
GAINS = ("convnet",)
"""Networks that run faster compiled. In measurements on a CPU, ResNet-18 took minutes to compile and then ran
slower than uncompiled."""
TOGETHER_FLOPS = 1.5e7
"""Operations of a batch's forward pass up to which several students of one network train faster together on
a CPU: below, most of a step is dispatch overhead, which they share; above, the grouped convolutions that
vmap generates are slower than plain ones (``tests/bench/evaluate.py``)."""

KEPT_PRODUCTS = 64
"""A matched step keeps a convolution for the way back if each of its results is a sum of at least so many products:
others are computed about as fast as they are read."""

SMALL = 64
"""The largest side in pixels for which ``resnet18`` has a first layer that keeps the resolution."""
_PER_PIXEL = {
    "alexnet": (478_524, 6),
    "vgg11": (298_378, 9),
    "lenet": (1_900, 5),
    "resnet18": (72_288, 21),
    "tv_resnet18": (72_288, 21),
    "tv_resnet50": (162_913, 54),
    "tv_resnet101": (310_881, 105),
    "tv_mobilenet_v2": (11_938, 53),
    "tv_efficientnet_b0": (15_328, 82),
    "tv_vit_b_16": (449_233, 50),
    "tv_swin_v2_t": (118_824, 60),
}
"""Operations of the forward pass for each pixel, and layers, of networks of fixed width."""
_RESNET_SMALL = 1_084_810


def layers(config: NetConfig) -> int | None:
    """The convolutions and linear layers of a network; ``None`` for plugins' networks."""
    if config.name in ("convnet", "mlp"):
        return config.depth
    return _PER_PIXEL[config.name][1] if config.name in _PER_PIXEL else None


def operations(config: NetConfig, shape: tuple[int, int, int], classes: int) -> int | None:
    """Floating-point operations of one image's forward pass, as :func:`rayddl.nets.cost.forward_flops` counts them:
    exact for ``convnet`` and ``mlp``, within a few percent for others; ``None`` for plugins' networks.
    """
    channels, *sides = shape
    height, width = (32, 32) if sides == [28, 28] and config.name == "convnet" else sides
    if config.name == "mlp":
        widths = [channels * height * width, *[config.width] * (config.depth - 1), classes]
        return 2 * sum(a * b for a, b in itertools.pairwise(widths))
    if config.name != "convnet":
        each = _PER_PIXEL.get(config.name, (None, 0))[0]
        if config.name == "resnet18" and max(height, width) <= SMALL:
            each = _RESNET_SMALL
        return None if each is None else each * height * width
    found = 0
    for _ in range(config.depth):
        found += 2 * 9 * channels * config.width * height * width
        channels, height, width = config.width, height // 2, width // 2
    return found + 2 * channels * height * width * classes


def pays(name: str, flops: float, *, steps: int, batch: int, passes: int = 3) -> bool:
    """True if ``steps`` uncompiled steps of the network ``name``, of ``flops`` an image, are expected to take longer
    than compilation and compiled steps.
    """
    return (
        name in GAINS and seconds_of_flops(flops, steps=steps, batch=batch, passes=passes) > COMPILE_SECONDS
    )


def seconds_of_flops(flops: float, *, steps: int, batch: int, passes: int = 3) -> float:
    """Estimated seconds of ``steps`` uncompiled steps on a CPU, for a network of ``flops`` an image.

    ``passes``: the cost of a step in forward passes; 3 for a gradient, 12 for a matched student step.
    """
    return flops * passes * batch * steps / EAGER_FLOPS + steps * EAGER_OVERHEAD * passes / 3
