"""The state of a training as bytes: module, optimiser and a few tensors. It is restored bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

SPARING = 20
"""A team, which has more workers that may be lost, writes its state at the end of each epoch, while writing takes less
than this part of the time: a twentieth.
"""
_MODULE, _OPTIMISER, _NUMBERS = "module.", "optimiser.", "numbers."


def dump(module: nn.Module, optimiser: torch.optim.Optimizer, numbers: Mapping[str, Tensor]) -> bytes:
    """The state of ``module`` and ``optimiser`` and the tensors ``numbers`` as bytes, for :func:`restore`."""
    tensors = {_MODULE + name: value for name, value in module.state_dict().items()}
    for index, parameter in enumerate(module.parameters()):
        for name, value in optimiser.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{_OPTIMISER}{index}.{name}"] = value
    tensors |= {_NUMBERS + name: value for name, value in numbers.items()}
    return save({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()})


def restore(data: bytes, module: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Restore the state of ``module`` and ``optimiser`` that :func:`dump` saved; returns its ``numbers``."""
    tensors = load(data)
    state = {k.removeprefix(_MODULE): v for k, v in tensors.items() if k.startswith(_MODULE)}
    module.load_state_dict(state)
    parameters = list(module.parameters())
    for name, value in tensors.items():
        if name.startswith(_OPTIMISER):
            index, _, key = name.removeprefix(_OPTIMISER).partition(".")
            parameter = parameters[int(index)]
            if value.dim() == 0:  # a count of steps, which torch keeps on the CPU
                like = torch.empty_like(value)
            elif value.shape == parameter.shape:
                # With the parameter's memory layout: another layout uses other vector instructions.
                like = torch.empty_like(parameter)
            else:
                like = torch.empty_like(value, device=parameter.device)
            optimiser.state[parameter][key] = like.detach().copy_(value)
    return {k.removeprefix(_NUMBERS): v for k, v in tensors.items() if k.startswith(_NUMBERS)}


@contextmanager
def own_noise(device: torch.device) -> Iterator[None]:
    """Restore torch's global generators at the end, so that drawing from them inside has no effect outside."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
