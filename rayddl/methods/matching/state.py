"""The state of a matching run, and its update: everything that a checkpoint holds."""

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
"""The student's learning rate may go this factor up and down from its start."""
PIXEL_RANGE = 20.0
"""An image's RMS may grow to this multiple of the starting set's."""


@dataclass(frozen=True)
class State:
    """A matching run after ``iteration`` updates. Values, never changed in place."""

    iteration: int
    images: Tensor
    """``[N, C, H, W]`` float32 in model space."""
    logits: Tensor | None
    """Label logits ``[N, K]`` where labels are learned."""
    lr: Tensor
    """alpha, float64 scalar on the CPU."""
    moments: dict[str, Tensor]
    """The optimisers' running averages, by name."""
    scale: float = 1.0
    """What rates are multiplied with after a run was taken back."""
    retries: int = 0
    """How often it was taken back."""
    skipped: int = 0
    """Windows passed over because the expert hardly moved."""

    def dump(self, **more: Tensor) -> bytes:
        """The state as bytes, with further tensors beside it."""
        tensors = {
            "images": self.images,
            "lr": self.lr,
            "numbers": torch.tensor([self.iteration, self.retries, self.skipped]),
            "scale": torch.tensor(self.scale, dtype=torch.float64),
            **{f"moment.{k}": v for k, v in self.moments.items()},
            **({} if self.logits is None else {"logits": self.logits}),
            **{f"more.{k}": v for k, v in more.items()},
        }
        return save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})


def load_state(data: bytes, device: torch.device) -> tuple[State, dict[str, Tensor]]:
    """The state that :meth:`State.dump` wrote, and the tensors beside it."""
    tensors = load(data)
    iteration, retries, skipped = tensors["numbers"].tolist()
    logits = tensors.get("logits")
    state = State(
        iteration,
        tensors["images"].to(device),
        None if logits is None else logits.to(device),
        tensors["lr"],
        # Numbers, such as the rate's momentum, stay on the CPU, as in an undisturbed run.
        {k[7:]: v.to(device) if v.ndim else v for k, v in tensors.items() if k.startswith("moment.")},
        float(tensors["scale"]),
        retries,
        skipped,
    )
    return state, {k[5:]: v for k, v in tensors.items() if k.startswith("more.")}


def first_state(images: Tensor, logits: Tensor | None, settings: Settings) -> State:
    """The state before the first update."""
    lr = torch.tensor(settings.first_lr, dtype=torch.float64)
    return State(0, images.detach().clone(), logits, lr, {})


def average(gradients: Sequence[MetaGradient]) -> MetaGradient:
    """The mean of several windows' meta-gradients; of one, that one unchanged."""
    if len(gradients) == 1:
        return gradients[0]
    pick = [(g.loss, g.images, g.labels, g.lr) for g in gradients]
    return MetaGradient(*(torch.stack(parts).mean(0) for parts in zip(*pick, strict=True)))


def update(state: State, gradient: MetaGradient, settings: Settings) -> State:
    """One outer step: images, learning rate and, where learned, labels."""
    moments = dict(state.moments)
    g_images = gradient.images
    if settings.clip is not None:
        g_images = g_images * (settings.clip / g_images.norm().clamp(min=1e-30)).clamp(max=1.0)
    if settings.image_decay:
        g_images = g_images + settings.image_decay * state.images
    step = _adam if settings.image_optimizer == "adam" else _momentum
    rate = settings.lr_image * state.scale
    images = state.images - rate * step(moments, "images", g_images, settings)
    logits = state.logits
    if logits is not None:
        g_logits = _through_softmax(gradient.labels, logits)
        logits = logits - settings.lr_label * state.scale * _momentum(moments, "labels", g_logits, settings)
    return replace(
        state,
        iteration=state.iteration + 1,
        images=images,
        logits=logits,
        lr=_next_lr(state, gradient.lr, moments, settings),
        moments=moments,
    )


def _momentum(moments: dict[str, Tensor], name: str, gradient: Tensor, settings: Settings) -> Tensor:
    old = moments.get(name)
    moments[name] = gradient if old is None else settings.momentum * old + gradient
    return moments[name]


def _adam(moments: dict[str, Tensor], name: str, gradient: Tensor, settings: Settings) -> Tensor:
    del settings
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
        lr = (state.lr.log() - rate * _momentum(moments, "lr", g * state.lr, settings)).exp()
    else:
        lr = state.lr - rate * _momentum(moments, "lr", g, settings)
    return lr


def bounds(settings: Settings) -> tuple[float, float]:
    """The range that the student's learning rate is held in."""
    return settings.first_lr / LR_RANGE, settings.first_lr * LR_RANGE


def symptom(state: State, loss: float, settings: Settings, start_rms: float) -> str | None:
    """What is wrong with a state just updated, in words; ``None`` when nothing is.

    Looked at after every update: not-finite numbers, a student learning rate outside its range, and
    images that blew up or went flat.
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
