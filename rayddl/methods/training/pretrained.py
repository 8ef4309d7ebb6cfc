"""Pre-trained teachers: torchvision's weights, or a file of parameters."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor, nn

from rayddl import json_text, tensorfiles
from rayddl.data.sources.refusals import shown
from rayddl.errors import ArtifactError
from rayddl.methods.training.input_spec import InputSpec
from rayddl.nets.build import TORCHVISION
from rayddl.nets.config import NetConfig
from rayddl.storage import split

State = Mapping[str, Tensor]
WRAPPERS = (
    "model", "state_dict", "model_state_dict", "net", "network", "module", "weights", "params",
    "state_dict_ema", "model_ema", "ema_state_dict",
)  # fmt: skip
"""Keys under which files store the state dict. The first that is there is taken; averages are taken if alone."""
COUNTERS = ("n_averaged",)
"""Tensors of an average that are no weights."""
_GROUPED = re.compile(r"^layers\.(conv|norm)\.(\d+)\.")


@dataclass(frozen=True, eq=False)
class PretrainedWeights:
    """Parameters, and torchvision's metadata on them."""

    state: State
    classes: tuple[str, ...]
    input_spec: InputSpec


def torchvision_weights(net: NetConfig, *, download: bool, name: str = "DEFAULT") -> PretrainedWeights:
    """Torchvision's weights ``name`` of its network ``net``; ``DEFAULT`` are its best.

    Read from torch hub's cache, or downloaded into it if ``download`` is true. Raises
    :class:`ArtifactError` if they are not in the cache, or torchvision has none of this network or name.
    """
    from torchvision import models

    if not net.name.startswith(TORCHVISION):
        raise ArtifactError(
            f"weights: {name} are torchvision's, and {net.name} is no network of torchvision. Use one of those, "
            f"e.g. net: tv_resnet18, or leave weights out to train {net.name} here.",
            code="weights-not-of-torchvision",
        )
    offered: Any = models.get_model_weights(net.name.removeprefix(TORCHVISION))
    if name not in offered.__members__:
        raise ArtifactError(
            f"torchvision has no weights {name} of {net.name}; it has {', '.join(offered.__members__)}.",
            code="weights-name-unknown",
        )
    weights: Any = offered[name]
    file = os.path.basename(urlparse(weights.url).path)
    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    path = os.path.join(folder, file)
    if download:
        state: State = weights.get_state_dict(progress=False, check_hash=True)
    elif os.path.exists(path):
        with open(path, "rb") as opened:
            state = _checked(opened.read(), path)
    else:
        raise ArtifactError(
            f"the weights of {net.name} are not in torch hub's cache: looked for {path}. Set download: true, or "
            f"put the file from {weights.url} there.",
            code="weights-not-in-cache",
        )
    shown = weights.transforms()
    side = shown.crop_size[0]
    input_spec = InputSpec((3, side, side), tuple(shown.mean), tuple(shown.std))
    return PretrainedWeights(state, tuple(weights.meta["categories"]), input_spec)


def _checked(data: bytes, path: str) -> State:
    # The names of torch hub's files end with the first digits of their hash.
    wanted = os.path.splitext(os.path.basename(path))[0].rpartition("-")[2]
    found = hashlib.sha256(data).hexdigest()
    if not found.startswith(wanted):
        raise ArtifactError(
            f"{path} was altered: its SHA-256 is {found[: len(wanted)]}…, its name says {wanted}. Delete it, "
            "and set download: true to fetch it again.",
            code="weights-altered",
        )
    return unwrapped(data, path)


def read_state(where: str) -> State:
    """The state dict in the file ``where``, a path or URI: ``.safetensors``, or a file of torch.save.

    No code in the file is executed. Raises :class:`ArtifactError` if it cannot be read.
    """
    data = _read(where, "the file of the teacher's weights")
    if where.endswith(".safetensors"):
        try:
            return dict(safetensors.load(data))
        except SafetensorError as error:
            raise ArtifactError(
                f"{where} is no whole safetensors file: {error}.", code="safetensors-damaged"
            ) from error
    return unwrapped(data, where)


def unwrapped(data: bytes, where: str) -> State:
    """The state dict in the bytes of a torch file, taken out of the :data:`WRAPPERS` of published files."""
    try:
        found = tensorfiles.load(io.BytesIO(data))
    except tensorfiles.NotTensors as error:
        raise ArtifactError(
            f"{where} cannot be read as a file of weights: {error}. Only tensors are accepted: save the "
            "network's state_dict() alone, or {'model': state_dict()} without args, optimizer and other objects.",
            code="weights-unreadable",
        ) from error
    while isinstance(found, Mapping):
        inner = next((found[key] for key in WRAPPERS if _holds_tensors(found.get(key))), None)
        if inner is None:
            break
        found = inner
    if not isinstance(found, Mapping) or not found:
        raise ArtifactError(
            f"{where} holds a {type(found).__name__}, expected a state dict of tensors.",
            code="weights-not-a-mapping",
        )
    tensors = {str(k): v for k, v in found.items() if isinstance(v, Tensor) and k not in COUNTERS}
    # DataParallel and averages put the one before all names, torch.compile the other.
    state = {
        name.removeprefix("module.").removeprefix("_orig_mod."): tensor for name, tensor in tensors.items()
    }
    if not state:
        raise ArtifactError(
            f"{where} holds no tensors, expected a state dict, alone or under one of the keys {', '.join(WRAPPERS)}; "
            f"it has {shown([str(key) for key in found], 10)}.",
            code="weights-without-tensors",
        )
    return state


def _holds_tensors(found: Any) -> bool:
    """True for a state dict, and for a dictionary around one."""
    if not isinstance(found, Mapping):
        return False
    return any(isinstance(v, Tensor) or (k in WRAPPERS and _holds_tensors(v)) for k, v in found.items())


def _read(where: str, what: str) -> bytes:
    folder, name = split(where)
    try:
        return folder.read(name)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{what} cannot be read: {where} ({error}).", code="teacher-file-unreadable"
        ) from error


def fill(module: nn.Module, state: State, net: NetConfig, where: str) -> None:
    """Load ``state`` into ``module``: by name, or by order if all shapes are equal in sequence.

    RDED's released ConvNets group layers by type, and are matched by name. Other small networks have the
    published code's order of parameters, but other names; the accuracy check finds an order that matches
    only by accident. A safetensors file has no order. Raises
    :class:`ArtifactError` if neither names nor shapes match.
    """
    own = module.state_dict()
    state = _by_block(state)
    if own.keys() != state.keys():
        fits = [t.shape for t in own.values()] == [t.shape for t in state.values()]
        if not fits or where.endswith(".safetensors"):
            raise ArtifactError(
                f"the weights in {where} are not those of {net.label}: {_misfit(own, state)}",
                code="weights-of-other-parameters",
            )
        state = dict(zip(own, state.values(), strict=True))
    wrong = next((name for name, t in own.items() if t.shape != state[name].shape), None)
    if wrong is not None:
        raise ArtifactError(
            f"the weights in {where} are not those of {net.label}: {wrong} is {list(state[wrong].shape)}, expected "
            f"{list(own[wrong].shape)}. Compare net, the images' size and the number of classes with the weights'.",
            code="weights-of-another-shape",
        )
    module.load_state_dict(dict(state))


def _by_block(state: State) -> State:
    """``state`` with the names of RDED's ConvNet, ``layers.conv.0.weight``, as ours, ``blocks.0.conv.weight``."""
    return {_GROUPED.sub(r"blocks.\2.\1.", name): value for name, value in state.items()}


def _misfit(own: State, state: State) -> str:
    lacking = [name for name in own if name not in state]
    more = [name for name in state if name not in own]
    return (
        f"{len(lacking)} of {len(own)} tensors are missing (first {lacking[0] if lacking else 'none'!r}), {len(more)} "
        f"are unknown (first {more[0] if more else 'none'!r}). Set net to the network that they were trained as."
    )


def outputs_of(own: State, state: State) -> int:
    """Number of outputs of the network with weights ``state``; ``own`` are the weights of the network as built.

    The last bias is the classifier's; in a file without order it is found by its name in ``own``.
    """
    last = [name for name, t in own.items() if t.ndim > 0 and name.endswith(("weight", "bias"))][-1]
    found = state[last] if last in state else list(state.values())[-1]
    return int(found.shape[0]) if found.ndim else 1


def read_names(where: str) -> tuple[tuple[str, ...], ...]:
    """The class names of each output, from a file; any name of an output may match.

    A text file has a line per output, with names separated by tabs; JSON is a list of names or of lists
    of names, or an object from output number to either. Raises :class:`ArtifactError` for other content.
    """
    text = _read(where, "the file of the teacher's classes").decode("utf-8-sig", errors="replace")
    if not where.endswith(".json"):
        lines = [line.strip() for line in text.splitlines()]
        return tuple(tuple(p.strip() for p in line.split("\t")) for line in lines if line)
    try:
        found = json_text.parse(text.encode())
        if isinstance(found, dict):
            found = [found[str(i)] for i in range(len(found))]
        # The first name of each is taken by itself, because there has to be one.
        return tuple((n,) if isinstance(n, str) else (str(n[0]), *map(str, n[1:])) for n in found)
    except (ValueError, LookupError, TypeError) as error:
        raise ArtifactError(
            f"{where} does not name outputs: {error!r}. Expected a list of names, or an object with the keys "
            '"0", "1", …',
            code="class-file-malformed",
        ) from error


def named(outputs: Sequence[Sequence[str]], wanted: Sequence[str]) -> tuple[str, ...]:
    """One name for each output: the one that is in ``wanted``, or its first."""
    known = set(wanted)
    return tuple(next((name for name in names if name in known), names[0]) for names in outputs)
