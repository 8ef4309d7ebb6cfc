"""The soft-label protocol (RDED, section 3.3, with the numbers of its published code).

A new network is trained on the observer's outputs for images that are augmented anew at every step
(:mod:`rayddl.methods.training.mixes`). The loss is the Kullback-Leibler divergence between the two softmax
outputs at temperature 20, averaged over the batch, without the factor T². The optimiser is AdamW; the
learning rate follows the first half of a cosine. The images' own labels are not used.

The accuracy after the last epoch is reported. The published code reports the best of several late
epochs on the test images; this is not offered. Batch norm's running statistics are updated once per
step. The published code updates them twice, because it runs the student once more on each batch to
print its training accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayddl import plugins
from rayddl.methods.training import checkpoint, mixes
from rayddl.methods.training.input_spec import Frame, in_unit
from rayddl.methods.training.mixes import Draws
from rayddl.methods.training.settings import KL, SOFT_EPOCHS, SOFT_LR, StudentSettings
from rayddl.nets.build import TORCHVISION
from rayddl.nets.compiling import compiled
from rayddl.seeds import derive, generator

LR_OF = {
    "vgg11": 5e-4,
    "efficientnet_b0": 2e-3,
    "mobilenet_v2": 2.5e-3,
    "alexnet": 1e-4,
    "vit_b_16": 1e-4,
    "swin_v2_t": 1e-4,
}
"""Learning rates published for some students; the others use :data:`SOFT_LR`."""


class SoftProtocol(StudentSettings):
    """How a student is trained on soft labels."""

    epochs: int = SOFT_EPOCHS
    lr: float = SOFT_LR
    batch: int
    factor: int = 1
    """Patches per side of an image; 1 for real images."""
    weight_decay: float = 0.01
    """Applied to weights of more than one dimension, not to biases and norms."""
    temperature: float = 20.0
    cutmix: bool = True
    plain: bool = False
    """Train without augmentation; only the order of images is random."""
    loss: str = KL
    """The students' loss: the published divergence, or the name of a plugin's loss."""

    def lr_in(self, epoch: int) -> float:
        """The learning rate of ``epoch``, counted from 0."""
        return self.lr * 0.5 * (1 + math.cos(math.pi * epoch / (2 * self.epochs)))

    def draw(self, epoch: int, count: int, sides: tuple[int, int], frame: Frame, seed: int) -> Draws:
        """The random choices of ``epoch`` for ``count`` images; ``seed``: that of the labels or the student."""
        if self.plain:
            own = generator(seed, "soft", epoch)
            return mixes.unmixed(count, sides, batch=self.batch, factor=self.factor, generator=own)
        return mixes.draw(
            count, sides, frame.shape[1:],
            batch=self.batch, factor=self.factor, cutmix=self.cutmix,
            generator=generator(seed, "soft", epoch),
        )  # fmt: skip


def published_lr(net: str) -> float:
    """The published learning rate of the student named ``net``."""
    return LR_OF.get(net.removeprefix(TORCHVISION), SOFT_LR)


def published_batch(ipc: int, classes: int, count: int) -> int:
    """The published batch for ``ipc`` images a class: 10, 50, 100 from IPC 1, 10, 50 on.

    Twice that from 100 classes on, but 100 for the 200 classes of Tiny ImageNet; at most ``count``, the
    number of images of the set.
    """
    batch = 100 if ipc >= 50 else 50 if ipc >= 10 else 10
    if classes == 200:
        batch = 100
    elif classes >= 100:
        batch *= 2
    return max(1, min(batch, count))


@dataclass(frozen=True, eq=False)
class Lecture:
    """The training data of an epoch: the random choices, and the observer's logits if they are stored."""

    draws: Draws
    logits: Tensor | None = None
    """``[N, K]`` in training order."""


Lectures = Callable[[int], Lecture]
"""Maps an epoch, counted from 0, to its training data, with the same result at every call."""


@dataclass(frozen=True)
class Manner:
    """How networks are computed: device, and compiled or not. The precision is part of the network."""

    device: torch.device
    compile: bool = False


class Answers:
    """The observer as a function: normalised images ``[B, C, H, W]`` to float32 logits ``[B, K]``."""

    def __init__(self, module: nn.Module, manner: Manner) -> None:
        """``module`` must be on the device and in eval mode."""

        def answer(x: Tensor) -> Tensor:
            with torch.no_grad():
                logits: Tensor = module(x)
            return logits.float()

        self._plain = answer
        self._fast = compiled(answer, wanted=manner.compile)

    def __call__(self, x: Tensor, whole: bool) -> Tensor:
        """``whole``: the batch has the usual size, for which the function is compiled."""
        return (self._fast if whole else self._plain)(x)


def inputs(images: Tensor, draws: Draws, frame: Frame, device: torch.device) -> Tensor:
    """The networks' input for a batch: float32 ``[B, *frame.shape]`` on ``device``, channels last.

    ``images`` are all images of the set, uint8 or float in 0..1, on any device.
    """
    batch = images[draws.picked.to(images.device)].to(device, non_blocking=True)
    seen = mixes.shown(in_unit(batch), draws.to(device), frame.shape[1:])
    return frame.normalised(seen).contiguous(memory_format=torch.channels_last)


def labelled(
    answers: Answers, images: Tensor, draws: Draws, protocol: SoftProtocol, frame: Frame, device: torch.device
) -> Tensor:
    """The observer's logits of an epoch, in the batches of training: float16 ``[N, K]`` on the CPU."""
    whole = min(protocol.batch, len(draws.picked))
    parts = [
        answers(inputs(images, part, frame, device), len(part.picked) == whole).half().cpu()
        for part in draws.batches(protocol.batch)
    ]
    return torch.cat(parts)


class SoftTraining:
    """The training of a student by the soft-label protocol."""

    def __init__(
        self,
        student: nn.Module,
        protocol: SoftProtocol,
        frame: Frame,
        images: Tensor,
        lectures: Lectures,
        observer: nn.Module | None,
        manner: Manner,
        seed: int,
    ) -> None:
        """``images`` ``[N, C, H, W]`` are uint8 or float in 0..1. ``observer`` maps normalised images to logits;
        it may be ``None`` if all epochs have stored logits. ``seed`` is the student's.
        """
        self.student: nn.Module = student.to(manner.device).to(memory_format=torch.channels_last)
        self.epoch = 0
        """Number of finished epochs."""
        self.losses: list[float] = []
        """The mean loss of each finished epoch."""
        self._protocol, self._frame, self._images = protocol, frame, images
        self._lectures, self._manner, self._seed = lectures, manner, seed
        self._answers = None if observer is None else Answers(observer, manner)
        self._optimiser = adamw(self.student, protocol)
        self._criterion = criterion(protocol)

        def loss(x: Tensor, targets: Tensor) -> Tensor:
            return self._criterion(self.student(x).float(), targets)

        self._plain = loss
        self._fast = compiled(loss, wanted=manner.compile)

    def dump(self) -> bytes:
        """The state of the training as bytes, for :meth:`resume`."""
        numbers = {"losses": torch.tensor(self.losses, dtype=torch.float64)}
        return checkpoint.dump(self.student, self._optimiser, numbers)

    def resume(self, data: bytes) -> None:
        """Continue from the state that :meth:`dump` returned."""
        self.losses = checkpoint.restore(data, self.student, self._optimiser)["losses"].tolist()
        self.epoch = len(self.losses)

    def run(self, on_epoch: Callable[[SoftTraining], None] = lambda _: None) -> nn.Module:
        """Train to the last epoch and return the student in eval mode. ``on_epoch`` is called after each epoch."""
        with checkpoint.own_noise(self._manner.device):
            while self.epoch < self._protocol.epochs:
                self.losses.append(self._one_epoch())
                self.epoch += 1
                on_epoch(self)
        self.student.eval()
        return self.student

    def _one_epoch(self) -> float:
        torch.manual_seed(derive(self._seed, "noise", self.epoch))
        self.student.train()
        for group in self._optimiser.param_groups:
            group["lr"] = self._protocol.lr_in(self.epoch)
        lecture, device = self._lectures(self.epoch), self._manner.device
        total, done, count = torch.zeros((), device=device), 0, len(lecture.draws.picked)
        for part in lecture.draws.batches(self._protocol.batch):
            size = len(part.picked)
            whole = size == min(self._protocol.batch, count)
            if size == 1 and not whole:
                break  # batch norm needs a variance: a single remaining image is skipped
            x = inputs(self._images, part, self._frame, device)
            said = self._said(lecture, done, x, whole)
            loss = (self._fast if whole else self._plain)(x, targets_of(said, self._protocol))
            self._optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self._optimiser.step()
            total += loss.detach() * size
            done += size
        return float(total) / count

    def _said(self, lecture: Lecture, done: int, x: Tensor, whole: bool) -> Tensor:
        if lecture.logits is not None:
            return lecture.logits[done : done + len(x)].to(x.device).float()
        assert self._answers is not None  # there is an observer, or logits of all epochs
        return self._answers(x, whole)


def criterion(protocol: SoftProtocol) -> Callable[[Tensor, Tensor], Tensor]:
    """The protocol's loss, a function of the student's logits and the observer's :func:`targets_of`."""
    if protocol.loss != KL:
        found: Callable[[Tensor, Tensor], Tensor] = plugins.find("losses", protocol.loss)  # type: ignore[assignment]
        return found
    return lambda logits, targets: divergence(logits, targets, protocol.temperature)


def targets_of(logits: Tensor, protocol: SoftProtocol) -> Tensor:
    """The loss's targets ``[B, K]``: probabilities, or the observer's logits for a plugin's loss."""
    return softened(logits, protocol.temperature) if protocol.loss == KL else logits


def softened(logits: Tensor, temperature: float) -> Tensor:
    """``softmax(logits / temperature)``, ``[B, K]``."""
    return F.softmax(logits / temperature, dim=1)


def divergence(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """KL(targets || softmax(logits / temperature)), averaged over the batch, a scalar."""
    return F.kl_div(F.log_softmax(logits / temperature, dim=1), targets, reduction="batchmean")


def adamw(module: nn.Module, protocol: SoftProtocol) -> torch.optim.AdamW:
    """AdamW, with weight decay on parameters that are named weight and have more than one dimension."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(True)
        (decayed if "weight" in name and parameter.ndim > 1 else plain).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=protocol.lr,
        betas=(0.9, 0.999),
        weight_decay=protocol.weight_decay,
    )
