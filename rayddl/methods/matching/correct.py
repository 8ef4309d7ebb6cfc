"""DATM's starting point (Guo et al. 2024): images that experts classify correctly, and labels of the experts that do.

Its code starts from real images that one expert predicts correctly (``samples_predicted_correctly``), and from the
mean logits of those experts, for each image, that predict it correctly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from rayddl.data.pixels.encoded import Encoded
from rayddl.errors import StageError
from rayddl.seeds import generator

BATCH = 256
"""Images classified at once."""
Logits = Callable[[Tensor], Tensor]
"""A network: images ``[B, C, H, W]`` to logits ``[B, K]``."""


@torch.no_grad()
def chosen(
    experts: Iterable[Logits],
    images: Tensor | Encoded,
    labels: Tensor,
    classes: Sequence[str],
    ipc: int,
    seed: int,
) -> Tensor:
    """Indices, int64 ``[classes * ipc]`` in class order, of ``images`` that an expert classifies correctly.

    Each class is looked through in random order, by the first expert; classes that lack images, by the next one. Raises
    :class:`StageError` if no expert classifies ``ipc`` images of a class correctly.
    """
    order = torch.randperm(len(labels), generator=generator(seed, "images")).to(labels.device)
    found: list[list[int]] = [[] for _ in classes]
    for expert in experts:
        for label, mine in enumerate(found):
            candidates = [i for i in order[labels[order] == label].tolist() if i not in set(mine)]
            for start in range(0, len(candidates), BATCH):
                if len(mine) >= ipc:
                    break
                part = candidates[start : start + BATCH]
                right = expert(images[part]).argmax(1) == label
                mine += [i for i, ok in zip(part, right.tolist(), strict=True) if ok]
            del mine[ipc:]
        if all(len(mine) == ipc for mine in found):
            return torch.tensor(found, device=labels.device).flatten()
    fewest = min(range(len(classes)), key=lambda label: len(found[label]))
    raise StageError(
        f"the experts classify {len(found[fewest])} images of class {classes[fewest]!r} correctly, and "
        f"start_from: correct needs {ipc}. Lower ipc, match later epochs, or set start_from: real.",
        code="too-few-correct-images",
    )


def masked_mean(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean ``[N, K]`` of ``logits`` ``[E, N, K]`` over the experts that predict ``labels`` ``[N]``.

    An image that no expert predicts correctly gets the mean over all.
    """
    right = (logits.argmax(2) == labels).to(logits.dtype)[..., None]
    right = torch.where(right.sum(0) > 0, right, torch.ones_like(right))
    return (logits * right).sum(0) / right.sum(0)
