"""The state of a matching run, which is the content of a checkpoint, and its update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from safetensors.torch import load, save
from torch import Tensor

from rayddl.methods.matching.gradient import MetaGradient
from rayddl.methods.matching.settings import Settings

LR_RANGE = 100.0
"""The student's learning rate may rise and fall by this factor from its initial value."""
PIXEL_RANGE = 20.0
"""The RMS of an image may grow to this multiple of the initial set's RMS."""


@dataclass(frozen=True)
class State:
    """A matching run after ``iteration`` updates. Immutable."""

    iteration: int
    images: Tensor
    """``[N, C, H, W]`` float32 in model space."""
    logits: Tensor | None
    """Label logits ``[N, K]``; ``None`` if labels are not learned."""
    lr: Tensor
    """alpha, float64 scalar on the CPU."""
    moments: dict[str, Tensor]
    """The optimisers' running averages, by name."""
    scale: float = 1.0
    """Factor of the outer learning rates; a tenth of it after each restart from an earlier state."""
    retries: int = 0
    """Number of restarts from an earlier state."""
    skipped: int = 0
    """Number of windows skipped because the expert hardly moved."""
    averaged: Tensor | None = None
    """The moving average of the images, with ``image_ema`` from the first update on."""

    @property
    def shown(self) -> Tensor:
        """The images of the set: averaged, or the last ones."""
        return self.images if self.averaged is None else self.averaged

    def dump(self, **more: Tensor) -> bytes:
        """The state and the tensors ``more`` as bytes."""
        tensors = {
            "images": self.images,
            "lr": self.lr,
            "numbers": torch.tensor([self.iteration, self.retries, self.skipped]),
            "scale": torch.tensor(self.scale, dtype=torch.float64),
            **{f"moment.{k}": v for k, v in self.moments.items()},
            **({} if self.logits is None else {"logits": self.logits}),
            **({} if self.averaged is None else {"averaged": self.averaged}),
            **{f"more.{k}": v for k, v in more.items()},
        }
        return save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})


def load_state(data: bytes, device: torch.device) -> tuple[State, dict[str, Tensor]]:
    """The state and the further tensors that :meth:`State.dump` wrote."""
    tensors = load(data)
    iteration, retries, skipped = tensors["numbers"].tolist()
    logits, averaged = (tensors.get(name) for name in ("logits", "averaged"))
    state = State(
        iteration,
        tensors["images"].to(device),
        None if logits is None else logits.to(device),
        tensors["lr"],
        # Scalars, such as the momentum of the learning rate, stay on the CPU, as in an uninterrupted run.
        {k[7:]: v.to(device) if v.ndim else v for k, v in tensors.items() if k.startswith("moment.")},
        float(tensors["scale"]),
        retries,
        skipped,
        None if averaged is None else averaged.to(device),
    )
    return state, {k[5:]: v for k, v in tensors.items() if k.startswith("more.")}


def first_state(images: Tensor, logits: Tensor | None, settings: Settings) -> State:
    """The state before the first update."""
    lr = torch.tensor(settings.first_lr, dtype=torch.float64)
    return State(0, images.detach().clone(), logits, lr, {})


def average(gradients: Sequence[MetaGradient]) -> MetaGradient:
    """The mean of several windows' meta-gradients; a single one is returned unchanged."""
    if len(gradients) == 1:
        return gradients[0]
    pick = [(g.loss, g.images, g.labels, g.lr) for g in gradients]
    return MetaGradient(*(torch.stack(parts).mean(0) for parts in zip(*pick, strict=True)))


def update(state: State, gradient: MetaGradient, settings: Settings) -> State:
    """The state after one outer step on images, student learning rate and, if learned, labels."""
    moments = dict(state.moments)
    g_images = gradient.images
    if settings.clip is not None:
        g_images = g_images * (settings.clip / g_images.norm().clamp(min=1e-30)).clamp(max=1.0)
    if settings.image_decay:
        g_images = g_images + settings.image_decay * state.images
    rate = settings.lr_image * state.scale
    if settings.image_optimizer == "adam":
        step = _adam(moments, "images", g_images)
    else:
        step = _momentum(moments, "images", g_images, settings.momentum)
    images = state.images - rate * step
    logits = state.logits
    if logits is not None:
        g_logits = _through_softmax(gradient.labels, logits)
        kept = settings.momentum if settings.momentum_label is None else settings.momentum_label
        logits = logits - settings.lr_label * state.scale * _momentum(moments, "labels", g_logits, kept)
    return replace(
        state,
        iteration=state.iteration + 1,
        images=images,
        logits=logits,
        lr=_next_lr(state, gradient.lr, moments, settings),
        moments=moments,
        averaged=None if settings.image_ema is None else state.shown.lerp(images, 1 - settings.image_ema),
    )


def _momentum(moments: dict[str, Tensor], name: str, gradient: Tensor, momentum: float) -> Tensor:
    old = moments.get(name)
    moments[name] = gradient if old is None else momentum * old + gradient
    return moments[name]


def _adam(moments: dict[str, Tensor], name: str, gradient: Tensor) -> Tensor:
    zero = torch.zeros_like(gradient)
    count = moments.get(f"{name}.count", torch.zeros((), dtype=torch.float64)).cpu() + 1
    first = 0.9 * moments.get(f"{name}.first", zero) + 0.1 * gradient
    second = 0.999 * moments.get(f"{name}.second", zero) + 0.001 * gradient.square()
    moments.update({f"{name}.count": count, f"{name}.first": first, f"{name}.second": second})
    n = float(count)
    step: Tensor = (first / (1 - 0.9**n)) / ((second / (1 - 0.999**n)).sqrt() + 1e-8)
    return step


def _through_softmax(g_probabilities: Tensor, logits: Tensor) -> Tensor:
    p = logits.softmax(1)
    return p * (g_probabilities - (p * g_probabilities).sum(1, keepdim=True))


def _next_lr(state: State, gradient: Tensor, moments: dict[str, Tensor], settings: Settings) -> Tensor:
    if not settings.lr_lr:
        return state.lr
    g = gradient.detach().to("cpu", torch.float64)
    rate = settings.lr_lr * state.scale
    if settings.lr_space == "log":
        lr = (state.lr.log() - rate * _momentum(moments, "lr", g * state.lr, settings.momentum)).exp()
    else:
        lr = state.lr - rate * _momentum(moments, "lr", g, settings.momentum)
    return lr


def bounds(settings: Settings) -> tuple[float, float]:
    """Lowest and highest permitted learning rate of the student."""
    return settings.first_lr / LR_RANGE, settings.first_lr * LR_RANGE


def symptom(state: State, loss: float, settings: Settings, start_rms: float) -> str | None:
    """A description of divergence in an updated state; ``None`` if there is none.

    Checked after every update: non-finite values, a student learning rate outside its range, and
    images with a too large RMS or constant pixels.
    """
    low, high = bounds(settings)
    lr = float(state.lr)
    if not math.isfinite(loss):
        return f"the matching loss is {loss}"
    if not low <= lr <= high:
        return f"the student's learning rate went to {lr:.3g}, outside {low:.3g} to {high:.3g}"
    rms = state.images.square().mean((1, 2, 3)).sqrt()
    worst, flattest = float(rms.max()), float(state.images.flatten(1).std(1).min())
    if not torch.isfinite(rms).all():
        return "pixels are not finite"
    if worst > PIXEL_RANGE * start_rms:
        return f"an image's pixels grew to {worst / start_rms:.0f} times the start's"
    if flattest == 0.0:
        return "an image went flat: all its pixels are equal"
    return None
