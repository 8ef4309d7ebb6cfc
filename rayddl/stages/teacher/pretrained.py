"""Pretrained observers: their weights, and the classes of their outputs."""

from __future__ import annotations

import re

from rayddl.errors import ArtifactError
from rayddl.methods.training import pretrained as ready
from rayddl.methods.training.input_spec import InputSpec
from rayddl.methods.training.observer import Observer, frozen
from rayddl.nets.build import build
from rayddl.stages.runtime.sources import SharedSource, moments
from rayddl.stages.teacher.settings import AS_SOURCE, NAMED, TeacherConfig


def observer_of(config: TeacherConfig, source: SharedSource) -> Observer:
    """The observer with the given weights, restricted to outputs of the source's classes."""
    state, names, input_spec = _weights(config, source)
    known = input_spec or _scaled(config, source)
    given = known or InputSpec(source.shape, *moments(source))
    shape = (given.shape[0], *((config.size,) * 2 if config.size else given.shape[1:]))
    mean, std = config.mean or given.mean, config.std or given.std
    if not len(mean) == len(std) == shape[0]:
        raise ArtifactError(
            f"mean and std have {len(mean)} and {len(std)} numbers, and the network sees {shape[0]} channels: give "
            "one for each.",
            code="mean-of-other-channels",
        )
    module = build(config.net, shape, len(names), seed=0)
    _refuse_other_number(names, ready.outputs_of(module.state_dict(), state))
    ready.fill(module, state, config.net, str(config.weights))
    return Observer(frozen(module), config.net, names, shape, mean, std).pruned(source.classes)


def _scaled(config: TeacherConfig, source: SharedSource) -> InputSpec | None:
    """The source's shape with the pixel scaling of the settings; ``None`` if they give none."""
    return InputSpec(source.shape, config.mean, config.std) if config.mean and config.std else None


def _weights(
    config: TeacherConfig, source: SharedSource
) -> tuple[ready.State, tuple[str, ...], InputSpec | None]:
    if config.weights in NAMED:
        found = ready.torchvision_weights(config.net, download=config.download, name=str(config.weights))
        names = _names(config, source) if config.classes is not None else _known(found.classes, source)
        return found.state, names, found.input_spec
    return ready.read_state(str(config.weights)), _names(config, source), None


def _names(config: TeacherConfig, source: SharedSource) -> tuple[str, ...]:
    if config.classes == AS_SOURCE:
        return source.classes
    if isinstance(config.classes, str):
        return ready.named(ready.read_names(config.classes), source.classes)
    return tuple(config.classes or ())


def _known(names: tuple[str, ...], source: SharedSource) -> tuple[str, ...]:
    """Torchvision's names; for the whole of ImageNet its WordNet ids, the order of torchvision's outputs."""
    wnids = all(re.fullmatch(r"n\d{8}", name) for name in source.classes)
    if wnids and len(source.classes) == len(names):
        return tuple(sorted(source.classes))
    if wnids:
        raise ArtifactError(
            f"the source's classes are WordNet ids ({source.classes[0]!r} …) and torchvision names its outputs in "
            f"words ({names[0]!r} …). Set classes: to a file with a line for each of its {len(names)} outputs, "
            "WordNet id first.",
            code="classes-are-wordnet-ids",
        )
    return names


def _refuse_other_number(names: tuple[str, ...], outputs: int) -> None:
    if len(names) != outputs:
        raise ArtifactError(
            f"classes: names {len(names)} outputs, and the weights have {outputs}. Name every output, in order.",
            code="classes-miscounted",
        )
