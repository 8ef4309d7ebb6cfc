"""The soft-label protocol (RDED, section 3.3, with the numbers of its published code).

A new network is trained on the observer's outputs for images that are augmented anew at every step
(:mod:`rayddl.methods.training.mixes`). The loss is the Kullback-Leibler divergence between the two softmax
outputs at temperature 20, averaged over the batch, without the factor T². The optimiser is AdamW; the
learning rate follows the first half of a cosine. The images' own labels are not used.

These are the defaults; :mod:`rayddl.methods.training.soft_settings` lists the choices. By default, batch norm's
running statistics are updated once per step, and the accuracy is that after the last epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rayddl import plugins
from rayddl.methods.training import checkpoint, losses, mixes, optimisers
from rayddl.methods.training.feeding import lane_to, through
from rayddl.methods.training.input_spec import InputSpec, in_unit
from rayddl.methods.training.mixes import Draws
from rayddl.methods.training.settings import KL, SOFT_EPOCHS, SOFT_LR, StudentSettings
from rayddl.methods.training.soft_settings import GIFT, MSE_GT, SoftSettings
from rayddl.methods.training.steps import one_hot
from rayddl.methods.training.team import ALONE, Team, joined
from rayddl.methods.training.top_logits import TopLogits
from rayddl.nets.build import TORCHVISION
from rayddl.nets.compiling import compiled
from rayddl.seeds import derive, generator

OWN = "own"
"""The cross-entropy with the images' own labels, mixed as CutMix mixes the images. Needs no observer."""
_EMA = "ema."
LR_OF = {
    "vgg11": 5e-4,
    "efficientnet_b0": 2e-3,
    "mobilenet_v2": 2.5e-3,
    "alexnet": 1e-4,
    "vit_b_16": 1e-4,
    "swin_v2_t": 1e-4,
}
"""Learning rates published for some students; the others use :data:`SOFT_LR`."""


class SoftProtocol(StudentSettings, SoftSettings):
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
    """The students' loss: one of :data:`LOSSES`, :data:`OWN`, or the name of a plugin's loss."""
    crop_within_patch: bool = False
    optimizer: Literal["adamw", "sgd", "muon"] = "adamw"
    schedule: Literal["half_cosine", "cosine", "linear", "constant"] = "half_cosine"
    ema: float = 0.0
    zoom: bool = False
    statistics: Literal["once", "twice"] = "once"

    def lr_in(self, epoch: int) -> float:
        """The learning rate of ``epoch``, counted from 0."""
        if self.schedule in ("half_cosine", "cosine"):
            stretch = 2 if self.schedule == "half_cosine" else 1
            return self.lr * 0.5 * (1 + math.cos(math.pi * epoch / (stretch * self.epochs)))
        return self.lr * (1 - epoch / self.epochs) if self.schedule == "linear" else self.lr

    @property
    def with_own_labels(self) -> bool:
        """True if the loss uses the images' own labels."""
        return self.loss in (OWN, MSE_GT, GIFT)

    def draw(self, epoch: int, count: int, sides: tuple[int, int], input_spec: InputSpec, seed: int) -> Draws:
        """The random choices of ``epoch`` for ``count`` images; ``seed``: that of the labels or the student."""
        if self.plain:
            own = generator(seed, "soft", epoch)
            return mixes.unmixed(count, sides, batch=self.batch, factor=self.factor, generator=own)
        return mixes.draw(
            count, sides, input_spec.shape[1:],
            batch=self.batch, factor=self.factor, cutmix=self.cutmix,
            generator=generator(seed, "soft", epoch),
            least=self.crop_min, within_patch=self.crop_within_patch,
        )  # fmt: skip


def published_lr(net: str) -> float:
    """The published learning rate of the student named ``net``."""
    return LR_OF.get(net.removeprefix(TORCHVISION), SOFT_LR)


@dataclass(frozen=True, eq=False)
class EpochData:
    """The training data of an epoch: the random choices, and the observer's logits if they are stored."""

    draws: Draws
    logits: Tensor | TopLogits | None = None
    """``[N, K]`` in training order."""


Lectures = Callable[[int], EpochData]
"""Maps an epoch, counted from 0, to its training data, with the same result at every call."""


@dataclass(frozen=True, eq=False)
class OwnLabels:
    """The images' own labels, as probabilities for a batch at a time."""

    labels: Tensor
    """int64 ``[N]``, or probabilities ``[N, K]``."""
    classes: int

    def at(self, picked: Tensor) -> Tensor:
        """The labels of the images at ``picked``, int64 ``[B]``: float32 ``[B, K]``."""
        return one_hot(self.labels[picked.to(self.labels.device)], self.classes)


@dataclass(frozen=True)
class Execution:
    """How networks are computed: device, compiled or not, and by which processes. The precision is part of the
    network.
    """

    device: torch.device
    compile: bool = False
    team: Team = ALONE


class ObserverLogits:
    """The observer as a function: normalised images ``[B, C, H, W]`` to float32 logits ``[B, K]``."""

    def __init__(self, module: nn.Module, execution: Execution) -> None:
        """``module`` must be on the device and in eval mode."""

        def answer(x: Tensor) -> Tensor:
            with torch.no_grad():
                logits: Tensor = module(x)
            return logits.float()

        self._plain = answer
        self._fast = compiled(answer, wanted=execution.compile)

    def __call__(self, x: Tensor, whole: bool) -> Tensor:
        """``whole``: the batch has the usual size, for which the function is compiled."""
        return (self._fast if whole else self._plain)(x)


def inputs(images: Tensor, draws: Draws, input_spec: InputSpec, device: torch.device) -> Tensor:
    """The networks' input for a batch: float32 ``[B, *input_spec.shape]`` on ``device``, channels last.

    ``images`` are all images of the set, uint8 or float in 0..1, on any device.
    """
    batch = images[draws.picked.to(images.device)].to(device, non_blocking=True)
    return prepared(batch, draws.to(device), input_spec)


def prepared(batch: Tensor, draws: Draws, input_spec: InputSpec) -> Tensor:
    """The networks' input for the images of ``draws.picked``, on the same device; otherwise as :func:`inputs`."""
    seen = mixes.shown(in_unit(batch), draws, input_spec.shape[1:])
    return input_spec.normalised(seen).contiguous(memory_format=torch.channels_last)


def labelled(
    answers: ObserverLogits,
    images: Tensor,
    draws: Draws,
    protocol: SoftProtocol,
    input_spec: InputSpec,
    device: torch.device,
) -> Tensor:
    """The observer's logits of an epoch, in the batches of training: float16 ``[N, K]`` on the CPU."""
    whole = min(protocol.batch, len(draws.picked))
    there = images.device == device

    def answer(batch: Tensor, *numbers: Tensor) -> Tensor:
        shown = prepared(images[batch] if there else batch, Draws(*numbers), input_spec)
        return answers(shown, len(batch) == whole).half()

    # Images that are on the device are gathered there; others are gathered here, and copied.
    parts = (
        (part.picked if there else images[part.picked], *(getattr(part, f.name) for f in fields(part)))
        for part in draws.batches(protocol.batch)
    )
    return torch.cat(list(through(parts, answer, lane_to(device))))


class SoftTraining:
    """The training of a student by the soft-label protocol."""

    def __init__(
        self,
        student: nn.Module,
        protocol: SoftProtocol,
        input_spec: InputSpec,
        images: Tensor,
        epoch_data: Lectures,
        observer: nn.Module | None,
        execution: Execution,
        seed: int,
        labels: OwnLabels | None = None,
    ) -> None:
        """``images`` ``[N, C, H, W]`` are uint8 or float in 0..1. ``observer`` maps normalised images to logits;
        it may be ``None`` if all epochs have stored logits, or the loss uses none. ``seed`` is the student's.
        ``labels`` are for losses that use them.
        """
        if protocol.with_own_labels and labels is None:
            raise ValueError(f"loss {protocol.loss} needs the images' own labels")
        self._norms = joined(student, execution.team)
        self.student: nn.Module = student.to(execution.device).to(memory_format=torch.channels_last)
        self.epoch = 0
        """Number of finished epochs."""
        self.losses: list[float] = []
        """The mean loss of each finished epoch."""
        self._protocol, self._frame, self._images = protocol, input_spec, images
        self._lectures, self._manner, self._seed = epoch_data, execution, seed
        self.looks: list[float] = []
        """Accuracies of late epochs, for ``report: best``."""
        self._labels = labels
        self._answers = None if observer is None else ObserverLogits(observer, execution)
        self._optimiser = optimisers.MAKERS[protocol.optimizer](
            self.student, protocol.lr, protocol.weight_decay
        )
        self._averaged = averaged(self.student, protocol.ema) if protocol.ema else None
        self._criterion = criterion(protocol)

        def loss(x: Tensor, targets: Tensor) -> Tensor:
            return self._criterion(self.student(x).float(), targets)

        self._usable = False
        self._plain = loss
        self._fast = compiled(loss, wanted=execution.compile)

    def dump(self) -> bytes:
        """The state of the training as bytes, for :meth:`resume`."""
        numbers = {
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "looks": torch.tensor(self.looks, dtype=torch.float64),
        }
        if self._averaged is not None:
            numbers |= {_EMA + name: value for name, value in self._averaged.module.state_dict().items()}
        return checkpoint.dump(self.student, self._optimiser, numbers)

    def resume(self, data: bytes) -> None:
        """Continue from the state that :meth:`dump` returned."""
        numbers = checkpoint.restore(data, self.student, self._optimiser)
        self.losses = numbers["losses"].tolist()
        self.looks = numbers["looks"].tolist() if "looks" in numbers else []
        self.epoch = len(self.losses)
        if self._averaged is not None:
            state = {k.removeprefix(_EMA): v for k, v in numbers.items() if k.startswith(_EMA)}
            self._averaged.module.load_state_dict(state)

    @property
    def tested(self) -> nn.Module:
        """The network that is tested: the student, or the moving average of it."""
        return self.student if self._averaged is None else self._averaged.module

    def run(self, on_epoch: Callable[[SoftTraining], None] = lambda _: None) -> nn.Module:
        """Train to the last epoch and return the student in eval mode. ``on_epoch`` is called after each epoch."""
        with checkpoint.own_noise(self._manner.device):
            while self.epoch < self._protocol.epochs:
                self.losses.append(self._one_epoch())
                self.epoch += 1
                on_epoch(self)
        self.tested.eval()
        return self.tested

    def _one_epoch(self) -> float:
        team = self._manner.team
        torch.manual_seed(derive(self._seed, "noise", self.epoch, *team.noise))
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
            rows, usual = team.rows(size), whole and team.even(size)
            own = part.of(rows)
            for norm in self._norms:
                norm.apart = size < team.size
            x = inputs(self._images, own, self._frame, device)[: rows.stop - rows.start]
            targets = self._targets(lecture, own, done + rows.start, x, usual)
            if not self._usable:
                losses.refuse_unusable(self._protocol.loss, self._criterion, targets)
                self._usable = True
            if self._protocol.statistics == "twice":
                self._show_unmixed(own, len(x))
            loss = (self._fast if usual else self._plain)(x, targets)
            self._optimiser.zero_grad(set_to_none=True)
            total += team.backward(loss, size, self.student.parameters()) * size
            self._optimiser.step()
            if self._averaged is not None:
                self._averaged.update_parameters(self.student)
            done += size
        return float(total) / count

    def _targets(self, lecture: EpochData, part: Draws, done: int, x: Tensor, whole: bool) -> Tensor:
        own = None if self._labels is None else self._labels.at(part.picked).to(x.device)
        if self._protocol.loss == OWN:
            assert own is not None
            return mixed(own, part, x.shape[2:])[: len(x)]
        own = None if own is None else own[: len(x)]
        return targets_of(self._said(lecture, done, x, whole), self._protocol, own)

    @torch.no_grad()
    def _show_unmixed(self, part: Draws, count: int) -> None:
        plain = replace(part, cuts=torch.zeros_like(part.cuts))
        self.student(inputs(self._images, plain, self._frame, self._manner.device)[:count])

    def _said(self, lecture: EpochData, done: int, x: Tensor, whole: bool) -> Tensor:
        if lecture.logits is not None:
            return lecture.logits[done : done + len(x)].to(x.device).float()
        assert self._answers is not None  # there is an observer, or logits of all epochs
        return self._answers(x, whole)


def criterion(protocol: SoftProtocol) -> Callable[[Tensor, Tensor], Tensor]:
    """The protocol's loss, a function of the student's logits and of :func:`targets_of`."""
    own: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        KL: lambda logits, targets: divergence(logits, targets, protocol.temperature),
        MSE_GT: lambda logits, targets: losses.mse_gt(logits, targets[0], targets[1]),
        GIFT: losses.cosine,
        OWN: F.cross_entropy,
    }
    if protocol.loss in own:
        return own[protocol.loss]
    found: Callable[[Tensor, Tensor], Tensor] = plugins.find("losses", protocol.loss)  # type: ignore[assignment]
    return found


def targets_of(said: Tensor, protocol: SoftProtocol, own: Tensor | None = None) -> Tensor:
    """The loss's targets for the observer's logits ``said`` ``[B, K]`` and the images' own labels ``[B, K]``.

    ``[B, K]``; for ``mse_gt`` ``[2, B, K]``, logits and own labels. A plugin's loss gets the logits.
    """
    if protocol.loss == KL:
        return softened(said, protocol.temperature)
    if protocol.loss not in (MSE_GT, GIFT):
        return said
    assert own is not None
    usual = 0.1 if protocol.loss == GIFT else 0.0
    smoothing = usual if protocol.label_smoothing is None else protocol.label_smoothing
    probabilities = losses.smoothed(own, smoothing)
    return (
        torch.stack([said, probabilities]) if protocol.loss == MSE_GT else losses.refined(said, probabilities)
    )


def mixed(own: Tensor, part: Draws, sides: Sequence[int]) -> Tensor:
    """The labels ``own`` ``[B, K]`` of a batch of images with ``sides``, mixed by the areas of CutMix's box."""
    top, left, bottom, right = part.cuts[0].tolist()
    share = (bottom - top) * (right - left) / (sides[0] * sides[1])
    blend: Tensor = (1 - share) * own + share * own[part.partners.to(own.device)]
    return blend


def averaged(student: nn.Module, decay: float) -> AveragedModel:
    """The exponential moving average of ``student``'s parameters, from now on; other state is the student's."""
    model = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(decay))
    model.update_parameters(student)
    return model


def softened(logits: Tensor, temperature: float) -> Tensor:
    """``softmax(logits / temperature)``, ``[B, K]``."""
    return F.softmax(logits / temperature, dim=1)


def divergence(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """KL(targets || softmax(logits / temperature)), averaged over the batch, a scalar."""
    return F.kl_div(F.log_softmax(logits / temperature, dim=1), targets, reduction="batchmean")
