"""Experts trained by themselves."""

from __future__ import annotations

from typing import Any

import torch

from rayddl.methods.trajectories.expert import Lanes, Training, training_steps


def train_expert(*args: Any, **more: Any) -> Training:
    """What :func:`training_steps` returns, trained at a stretch."""
    lanes = Lanes([training_steps(*args, **more)], torch.device("cpu"))
    ended: list[tuple[int, Training]] = []
    while not ended:
        ended = lanes.turn()
    return ended[0][1]
