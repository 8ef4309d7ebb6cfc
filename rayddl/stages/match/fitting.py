"""Windows that suit the number of training images: what counts is the number of an expert's steps."""

from __future__ import annotations

import math

WINDOW_STEPS, START_STEPS = 70, 150
"""Steps of an expert from a window's start to its target, and up to the latest start."""
FEWEST_EPOCHS = 2
"""Epochs of a window, and up to the latest start, that 50,000 images have (MTT, one image per class)."""
USUAL_PATH = 3.9
"""Steps of such a window on CIFAR-10, times the experts' learning rate."""


def windows(steps: int, longest: int | None = None, window: float | None = None) -> tuple[float, float]:
    """Return the epochs of a window and of the latest start, for experts of ``steps`` steps an epoch and at most
    ``longest`` epochs. A ``window`` that is given stays.
    """
    most = math.inf if longest is None else longest
    if window is None:
        window = max(FEWEST_EPOCHS, min(round(WINDOW_STEPS / steps), most // 3))
    start = max(FEWEST_EPOCHS, min(round(START_STEPS / steps), most - window))
    return float(window), float(start)


def rates(images: float, lr: float, steps: float, expert_lr: float) -> tuple[float, float]:
    """Return the learning rates of images and of the student's learning rate, which are ``images`` and ``lr`` for long
    windows, for windows of ``steps`` steps by experts of rate ``expert_lr``.

    The loss is relative to the length of an expert's path in a window. So the gradient of the images grows as that gets
    shorter, and the gradient of the student's rate by its square, since the student's own path stays as long.
    """
    share = min(1.0, steps * expert_lr / USUAL_PATH)
    return float(f"{images * share:.1g}"), float(f"{lr * share**2:.1g}")
