"""Holds out a share of each class of the train split, for sources without a held-out split.

Images are ordered by a hash of the seed and their names, so the split depends on neither the order in which files are
found nor a library's random generator. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rayddl.data.config import SourceConfig
from rayddl.data.sources.refusals import shown
from rayddl.errors import SourceError
from rayddl.filenames import Names
from rayddl.seeds import derive

if TYPE_CHECKING:
    from rayddl.data.sources.listing import Listing

ADVICE = "Without a held-out split, set source.holdout, for example --set source.holdout=0.2."
"""What to do about a missing held-out split."""


def held_out(
    names: Names, labels: NDArray[Any], classes: Sequence[str], config: SourceConfig
) -> NDArray[np.bool_]:
    """Bool [N]: True for the images held out, ``config.holdout`` of each class and at least one.

    ``labels`` are indices into ``classes``. Raises :class:`SourceError` for a class with only one image.
    """
    wanted = dict(enumerate(counts(labels, classes, config)))
    mask = np.zeros(len(labels), np.bool_)
    members = np.argsort(labels, kind="stable")
    edges = np.searchsorted(labels[members], np.arange(len(classes) + 1))
    for label, count in wanted.items():
        own = members[edges[label] : edges[label + 1]]
        named = names.take(own)
        order = sorted(
            (derive(config.holdout_seed, "holdout", name), name, at) for at, name in enumerate(named)
        )
        mask[own[[at for *_, at in order[:count]]]] = True
    return mask


def counts(labels: NDArray[Any], classes: Sequence[str], config: SourceConfig) -> list[int]:
    """The number of images held out of each class. Raises :class:`SourceError` as :func:`held_out` does."""
    assert config.holdout is not None
    present = np.bincount(labels, minlength=len(classes)).tolist()
    single = [name for name, count in zip(classes, present, strict=True) if count == 1]
    if single:
        raise SourceError(
            f"source {config.name} in {config.root}: holdout takes at least one image of each class, and these have "
            f"only one: {shown(single)}. Add images, or remove these classes.",
            code="class-too-small-to-hold-out",
        )
    return [min(count - 1, max(1, round(config.holdout * count))) if count else 0 for count in present]


def part(listed: Listing, split: str, config: SourceConfig) -> Listing:
    """The images of ``listed``, a whole train split, that belong to ``split`` (``train`` or ``test``)."""
    mask = held_out(Names(listed.names), listed.labels, listed.classes, config)
    return listed.take(np.flatnonzero(mask == (split == "test")))


def totals(labels: NDArray[Any], classes: Sequence[str], config: SourceConfig) -> tuple[int, int, int]:
    """The numbers of training images, of held-out images, and of training images of the smallest class, from the labels
    of the whole train split.
    """
    held = np.array(counts(labels, classes, config))
    left = np.bincount(labels, minlength=len(classes)) - held
    return int(left.sum()), int(held.sum()), int(left.min())
