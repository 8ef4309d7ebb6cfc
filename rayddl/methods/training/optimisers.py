"""The optimisers of students of soft labels: AdamW as published, SGD, and Muon."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

SGD_LR = 0.1
"""The learning rate of SGD if none is set (EDC's)."""
MOMENTUM = 0.9
BETAS = (0.9, 0.999)


def groups(module: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups: weight decay on parameters named weight of more than one dimension, none on the others."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(True)
        (decayed if "weight" in name and parameter.ndim > 1 else plain).append(parameter)
    found: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in found if group["params"]]


def adamw(module: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW on :func:`groups`, as in RDED's published code."""
    return torch.optim.AdamW(groups(module), lr=lr, betas=BETAS, weight_decay=weight_decay)


def sgd(module: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """SGD with momentum on :func:`groups`."""
    return torch.optim.SGD(groups(module), lr=lr, momentum=MOMENTUM, weight_decay=weight_decay)


class Muon(torch.optim.Optimizer):
    """torch's Muon for the weights of hidden layers, and AdamW for the last layer, biases and norms.

    A convolution's weight is a matrix with a row for each output. Updates have the root mean square of AdamW's
    (``match_rms_adamw``), so that its learning rates can be used.
    """

    def __init__(self, module: nn.Module, lr: float, weight_decay: float) -> None:
        super().__init__(groups(module), {"lr": lr, "weight_decay": weight_decay})
        weights = [p for p in self.param_groups[0]["params"] if p.ndim > 1]
        self._hidden = weights[:-1]
        # Views of the parameters' memory: a step changes the parameters.
        self._matrices = [nn.Parameter(_matrix(p.detach(), p)) for p in self._hidden]
        hidden = {id(p) for p in self._hidden}
        rest = [
            {**group, "params": [p for p in group["params"] if id(p) not in hidden]}
            for group in self.param_groups
        ]
        self._muon = torch.optim.Muon(
            self._matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        ) if self._matrices else None  # fmt: skip
        self._adamw = torch.optim.AdamW([g for g in rest if g["params"]], betas=BETAS)
        if self._muon is not None:
            for parameter, matrix in zip(self._hidden, self._matrices, strict=True):
                self.state[parameter] = self._muon.state[matrix]
        for group in self._adamw.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = self._adamw.state[parameter]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update all parameters with the learning rate of the first group."""
        del closure
        for parameter, matrix in zip(self._hidden, self._matrices, strict=True):
            assert parameter.grad is not None
            matrix.grad = _matrix(parameter.grad, parameter)
        for inner in (self._muon, self._adamw):
            if inner is not None:
                for group in inner.param_groups:
                    group["lr"] = self.param_groups[0]["lr"]
                inner.step()  # type: ignore[no-untyped-call]  # torch annotates Muon's only in part


def _matrix(tensor: Tensor, like: Tensor) -> Tensor:
    """``tensor`` of the parameter ``like`` as a matrix in the order of its memory. Muon treats all orders alike."""
    last = (
        like.ndim == 4 and not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last)
    )
    return tensor.permute(0, 2, 3, 1).flatten(1) if last else tensor.flatten(1)


MAKERS: dict[str, Callable[[nn.Module, float, float], torch.optim.Optimizer]] = {
    "adamw": adamw,
    "sgd": sgd,
    "muon": Muon,
}
