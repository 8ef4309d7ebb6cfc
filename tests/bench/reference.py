"""The published MTT code, imported from a checkout, behind two plain functions.

The checkout is the user's (``--reference``); nothing of it is in this repository. Its modules import
packages that the functions used here do not need; those are stood in for.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

import torch
from torch import Tensor


def load(checkout: str) -> types.SimpleNamespace:
    """The checkout's network, parameter wrapper and augmentation."""
    # Looks modules up by name, so it has to come before the stand-ins.
    importlib.import_module("torchvision")
    for name in ("kornia", "wandb", "tqdm", "scipy.ndimage.interpolation"):
        if name not in sys.modules:
            stand_in: Any = types.ModuleType(name)
            stand_in.rotate = stand_in.tqdm = None
            sys.modules[name] = stand_in
    sys.path.insert(0, checkout)
    try:
        import networks
        import reparam_module
        import utils
    finally:
        sys.path.remove(checkout)
    return types.SimpleNamespace(
        net=lambda: networks.ConvNet(3, 10, 128, 3, "relu", "instancenorm", "avgpooling", (32, 32)),
        wrap=reparam_module.ReparamModule,
        augment=utils.DiffAugment,
        augmentation=utils.ParamDiffAug(),
        epoch=utils.epoch,
    )


def outer_iteration(
    code: types.SimpleNamespace, images: Tensor, labels: Tensor, steps: int, batch: int
) -> Any:
    """A function that does one outer iteration with the checkout's parts, in its own order: unroll the
    student with graphs kept, then one backward pass to the images and the learning rate.
    """
    student = code.wrap(code.net().to(images.device)).train()
    start = torch.cat([p.detach().reshape(-1) for p in code.net().to(images.device).parameters()])
    target = start + 0.01 * torch.randn_like(start)
    images = images.clone().requires_grad_()
    lr = torch.tensor(0.01, device=images.device, requires_grad=True)
    criterion = torch.nn.CrossEntropyLoss()

    def iterate() -> float:
        theta = start.clone().requires_grad_()
        chunks: list[Tensor] = []
        for _ in range(steps):
            chunks = chunks or list(torch.randperm(len(images)).split(batch))
            picked = chunks.pop()
            x = code.augment(images[picked], "color_crop_cutout_flip_scale_rotate", param=code.augmentation)
            loss = criterion(student(x, flat_param=theta), labels[picked])
            gradient = torch.autograd.grad(loss, theta, create_graph=True)[0]
            theta = theta - lr * gradient
        distance = (theta - target).square().sum() / (start - target).square().sum()
        images.grad = lr.grad = None
        distance.backward()
        return distance.item()

    return iterate
