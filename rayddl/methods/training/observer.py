"""The observer of RDED: a trained network that scores patches and labels images.

On disk it is a folder with ``observer.safetensors``, the network's state dict, and ``observer.json``,
written last, with the network's settings, the class names of the outputs in order, shape and scaling of
the input, the measured accuracy, and the hash of the tensors.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from safetensors import torch as safetensors
from torch import Tensor, nn

from rayddl import documents, plugins, sealed
from rayddl.data.pixels.space import Normalise
from rayddl.errors import ArtifactError, NetError
from rayddl.methods.training.input_spec import InputSpec, Shape
from rayddl.nets.build import build
from rayddl.nets.config import NetConfig
from rayddl.storage import Folder

_TENSORS, _META = "observer.safetensors", "observer.json"
KIND = sealed.Kind(
    "rayddl observer",
    1,
    _META,
    "observer",
    "an",
    "run the teacher stage again",
    documents.ObserverDocument,
)
_SHOWN = 5


class SelectedOutputs(nn.Module):
    """A network restricted to some of its outputs, in a given order."""

    def __init__(self, net: nn.Module, outputs: Sequence[int], total: int) -> None:
        super().__init__()
        self.net, self.total = net, total
        self.outputs: Tensor
        self.register_buffer("outputs", torch.tensor(list(outputs), dtype=torch.int64), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits[:, self.outputs]


@dataclass(frozen=True, eq=False)
class Observer:
    """A trained network that scores patches and labels images, with the class names of its outputs."""

    module: nn.Module
    """Maps normalised images ``[B, C, H, W]`` to logits ``[B, K]``; in eval mode, float32, without gradients."""
    net: NetConfig
    classes: tuple[str, ...]
    """Class name of each output."""
    shape: Shape
    """(C, H, W) of the input."""
    mean: tuple[float, ...]
    """Mean per channel, of pixels in 0..1."""
    std: tuple[float, ...]
    accuracy: float | None = None
    """Top-1 accuracy on the held-out split, 0..1; ``None`` if it was not measured for these classes."""

    @property
    def input_spec(self) -> InputSpec:
        """Shape and scaling of its input."""
        return InputSpec(self.shape, self.mean, self.std)

    @property
    def space(self) -> Normalise:
        """The pixel space of its input."""
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (self.mean, self.std))
        return Normalise(self.shape, mean, std)

    def on(self, device: torch.device, precision: str = "fp32") -> Observer:
        """A copy on ``device``, channels last, whose convolutions are computed in ``precision``."""
        base, kept, total = _parts(self.module, len(self.classes))
        module = _built(self.net, self.shape, base.state_dict(), kept, total, precision)
        return replace(self, module=frozen(module.to(device).to(memory_format=torch.channels_last)))

    def pruned(self, classes: Sequence[str]) -> Observer:
        """The observer restricted to one output for each of ``classes``, in that order, matched by name.

        Raises :class:`ArtifactError`, with their names, if classes have no output or several.
        """
        if tuple(classes) == self.classes:
            return self
        _refuse_unmatched(self.classes, classes)
        wanted = [self.classes.index(name) for name in classes]
        base, kept, total = _parts(self.module, len(self.classes))
        module = SelectedOutputs(base, [kept[i] for i in wanted], total)
        same = len(classes) == len(self.classes)
        return replace(
            self,
            module=frozen(module.to(next(base.parameters()).device)),
            classes=tuple(classes),
            accuracy=self.accuracy if same else None,
        )

    def reduced(self, classes: Sequence[str]) -> Observer:
        """The observer :meth:`pruned` to ``classes``, as a network with an output for each of them and no others.

        Raises the errors of :meth:`pruned`.
        """
        pruned = self.pruned(classes)
        base, kept, total = _parts(pruned.module, len(classes))
        if kept == list(range(total)):
            return pruned
        state = base.state_dict()
        # The last layer of every network is linear, with a row for each output.
        for name in list(state)[-2:]:
            state[name] = state[name][kept]
        return replace(
            pruned, module=frozen(_built(self.net, self.shape, state, list(range(len(kept))), len(kept)))
        )

    def save(self, folder: Folder) -> None:
        """Write the observer into ``folder``; other files are not changed."""
        folder.delete(_META)
        for name, data in self.contents().items():
            folder.write(name, data)

    def contents(self) -> dict[str, bytes]:
        """The content of its files by name; the document is the last."""
        base, kept, total = _parts(self.module, len(self.classes))
        state = {k: v.detach().cpu().contiguous().clone() for k, v in base.state_dict().items()}
        data = safetensors.save(state)
        meta = {
            **KIND.head(),
            "net": self.net.model_dump(mode="json"),
            "classes": list(self.classes),
            "outputs": {"total": total, "kept": list(kept)},
            "shape": list(self.shape),
            "mean": list(self.mean),
            "std": list(self.std),
            "accuracy": self.accuracy,
            "files": {_TENSORS: sealed.entry(data)},
        }
        return {_TENSORS: data, _META: sealed.document(meta)}

    @classmethod
    def load(cls, folder: Folder) -> Observer:
        """The observer in ``folder``, bit for bit as it was saved.

        Raises :class:`ArtifactError` if it is incomplete, was altered, or has a newer format.
        """
        meta = KIND.read(folder)
        tensors = KIND.file(folder, meta, _TENSORS)
        try:
            net = NetConfig.model_validate(meta["net"])
            shape = (int(meta["shape"][0]), int(meta["shape"][1]), int(meta["shape"][2]))
            total, kept = int(meta["outputs"]["total"]), [int(i) for i in meta["outputs"]["kept"]]
            _refuse_another_network(net, shape, total, tensors)
            return cls(
                module=frozen(_built(net, shape, tensors, kept, total)),
                net=net,
                classes=tuple(meta["classes"]),
                shape=shape,
                mean=tuple(float(value) for value in meta["mean"]),
                std=tuple(float(value) for value in meta["std"]),
                accuracy=meta["accuracy"],
            )
        except (
            KeyError,
            IndexError,
            TypeError,
            ValueError,
            ArithmeticError,
            RuntimeError,
            NetError,
        ) as error:
            raise ArtifactError(
                f"the observer in {folder} is incomplete or inconsistent: {error}. Run its teacher stage again.",
                code="observer-inconsistent",
            ) from error


def _refuse_another_network(net: NetConfig, shape: Shape, total: int, state: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` unless ``state`` has the tensors of the network, which is not built for that.

    A document of a few bytes can describe a network of terabytes. Networks of plugins are not checked: their code
    may need values.
    """
    if plugins.owner("nets", net.name):
        return
    with torch.device("meta"):
        described = build(net, shape, total, seed=0).state_dict()
    other = sorted(
        {name for name in {*described, *state} if name not in described or name not in state}
        or {name for name, tensor in described.items() if tensor.shape != state[name].shape}
    )
    if other:
        raise ValueError(
            f"the tensors are not those of {net.label} for {total:,} outputs: {other[0][:100]!r}"
        )


def _built(
    net: NetConfig,
    shape: Shape,
    state: Mapping[str, Tensor],
    kept: list[int],
    total: int,
    precision: str = "fp32",
) -> nn.Module:
    module = build(net, shape, total, seed=0, precision=precision)
    module.load_state_dict(state)
    return module if kept == list(range(total)) else SelectedOutputs(module, kept, total)


def size_of(folder: Folder) -> int:
    """Size of the observer in ``folder``, in bytes."""
    return sum(folder.size(name) for name in (_TENSORS, _META))


def is_observer(folder: Folder) -> bool:
    """True if ``folder`` contains a complete observer."""
    return folder.has(_META)


def frozen(module: nn.Module) -> nn.Module:
    """``module`` in eval mode and without gradients."""
    return module.requires_grad_(False).eval()


def _parts(module: nn.Module, classes: int) -> tuple[nn.Module, list[int], int]:
    """The full network, the indices of the outputs in use, and the number of all outputs."""
    if isinstance(module, SelectedOutputs):
        return module.net, [int(i) for i in module.outputs.tolist()], module.total
    return module, list(range(classes)), classes


def _refuse_unmatched(known: Sequence[str], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in known]
    if missing:
        names = ", ".join(repr(name) for name in missing[:_SHOWN])
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        near = difflib.get_close_matches(missing[0], known, n=1, cutoff=0.6) or list(known[:3])
        raise ArtifactError(
            f"the observer has no output for {len(missing)} of {len(wanted)} classes: {names}{more}. It knows "
            f"{len(known)} classes, such as {', '.join(repr(n) for n in near)}. Classes are matched by name: "
            "take a teacher of this source, or say with the teacher's classes: what its outputs stand for.",
            code="observer-lacks-classes",
        )
    twice = [name for name, count in Counter(known).items() if count > 1 and name in wanted]
    if twice:
        raise ArtifactError(
            f"the observer has two outputs named {twice[0]!r}, so its classes cannot be distinguished by name. Give "
            "the teacher classes: a file with a name of its own for every output.",
            code="observer-outputs-ambiguous",
        )
