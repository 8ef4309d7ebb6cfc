"""The files with which others reach the figure of an exported set: ``train.py`` in plain PyTorch, and what it reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files as resources
from typing import Any

import jinja2
from safetensors import torch as safetensors

from rayddl import documents
from rayddl.data.config import SourceConfig, recorded_source
from rayddl.data.dataset import ImageDataset
from rayddl.data.distilled import DistilledSet
from rayddl.data.pixels.decode import DEEPEST, FORMATS
from rayddl.data.sources import registry as sources
from rayddl.data.sources.refusals import advising
from rayddl.data.sources.trees import EXTENSIONS
from rayddl.errors import ArtifactError
from rayddl.methods.training.hard import Protocol
from rayddl.methods.training.input_spec import InputSpec
from rayddl.methods.training.losses import GIFT_WEIGHT, GT_WEIGHT
from rayddl.methods.training.observer import Observer
from rayddl.methods.training.optimisers import MOMENTUM, SGD_LR
from rayddl.methods.training.settings import HARD_BATCH, HARD_EPOCHS, KL, zoomed
from rayddl.methods.training.soft import SoftProtocol, published_lr
from rayddl.methods.training.soft_settings import GIFT, MSE_GT, recipe
from rayddl.methods.training.softlabels import StoredLabels, has_labels
from rayddl.nets.config import NetConfig
from rayddl.nets.plain import Plain, plain
from rayddl.report import numbers
from rayddl.stages.evaluate import soft_labels
from rayddl.stages.evaluate.protocol import nets_of, soft_protocol
from rayddl.stages.evaluate.settings import EvaluateConfig
from rayddl.stages.evaluate.stage import read, settings_of
from rayddl.stages.revisions import side_of, zooms
from rayddl.storage import Folder

SCRIPT, PARTS, TEST = "train.py", "parts.py", "test.safetensors"
"""Names of files in the export: the script, the module that it imports, and the held-out images."""
FREE = ("digits",)
"""Sources whose held-out images are part of every export: small, and under a licence that allows it."""
_BY_CLASS = ("imagefolder", "imagenet")
"""Sources whose held-out images are in a folder for each class."""
_CIFAR = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}
_MODULES = (
    "argparse",
    "collections",
    "functools",
    "json",
    "math",
    "os",
    "pathlib",
    "random",
    "statistics",
    "sys",
)
_NAMES = ("BATCH", "CLASSES", "DEVICE", "SET", "augment", "counted", "encode", "held_out", "lessons")
"""What the script may import from the module, in addition to the network's function."""
_SCHEDULES = {
    "half_cosine": "LR * 0.5 * (1 + math.cos(math.pi * epoch / (2 * epochs)))",
    "cosine": "LR * 0.5 * (1 + math.cos(math.pi * epoch / epochs))",
    "linear": "LR * (1 - epoch / epochs)",
    "constant": "LR",
}
_OPTIMIZERS = {
    "adamw": "AdamW(groups, LR, weight_decay={decay})",
    "sgd": f"SGD(groups, LR, momentum={MOMENTUM}, weight_decay={{decay}})",
}
_GIFT = f"F.normalize(said, dim=1) + {GIFT_WEIGHT} * F.normalize(own, dim=1)"
_LOSSES = {
    KL: "F.kl_div(F.log_softmax(logits / {t}, 1), F.softmax(said / {t}, 1), reduction='batchmean')",
    MSE_GT: f"F.mse_loss(logits, said) + {GT_WEIGHT} * F.cross_entropy(logits, own)",
    GIFT: f"1 - F.cosine_similarity(logits, {_GIFT}).mean()",
}


class _NoScript(Exception):
    """Why there is no script for a set, as a sentence."""


@dataclass(frozen=True)
class ExportFiles:
    """The files that an export brings with a set."""

    files: Mapping[str, Callable[[], bytes]]
    """By name, functions that return the content."""
    why_not: str = ""
    """Why there is no script, as a sentence; empty if there is one."""
    test: str = "file"
    """Where the script finds the held-out images: ``file`` in the export, else ``own`` files of the source, or
    ``none`` that it could read."""


def export_files(folder: Folder, observer: str | None = None, *, with_test: bool = False) -> ExportFiles:
    """The script that trains on the set in ``folder`` by the protocol stored with it, and the files that it reads.

    ``observer``: the folder of the teacher whose labels the set was evaluated with, if it is not part of the set.
    ``with_test``: also the held-out images of the set's source; those of the digits always. Raises
    :class:`ArtifactError` and :class:`~rayddl.errors.SourceError`.
    """
    made = DistilledSet.load(folder)
    stored = _stored(folder)
    # Not one at a place that the set names: a set from outside may name any.
    found = soft_labels.observers_of(folder, (), () if observer is None else (observer,))
    teacher = Observer.load(found[0]).reduced(made.classes) if found else None
    given = made.info.get("source")
    source = None if given is None else read(SourceConfig, recorded_source(given), folder)
    test = _held_out(source, with_test=with_test)
    files: dict[str, Callable[[], bytes]] = {}
    if stored is not None:
        files |= {f"{soft_labels.LABELS}/{name}": part for name, part in stored.contents().items()}
    if teacher is not None:
        files |= {
            f"{soft_labels.INSIDE}/{name}": _constant(data) for name, data in teacher.contents().items()
        }
    if test is not None:
        held_out = {"images": test.images.contiguous(), "labels": test.labels}
        files[TEST] = lambda: safetensors.save(held_out)
    try:
        values = _values(made, folder, stored, teacher, source, test) | {"test": _kind_of_test(source, test)}
    except (_NoScript, ArtifactError) as why:
        return ExportFiles(files, str(why))
    place = "file" if test is not None else "own" if given is None or reads_held_out(given) else "none"
    files |= {name: _constant(text.encode()) for name, text in _programs(values).items()}
    return ExportFiles(files, test=place)


def reads_held_out(source: Mapping[str, Any]) -> bool:
    """True if the script can read the held-out images of ``source`` where they are: as CIFAR's download, or in a folder
    for each class of the set. Those that ``holdout`` chooses, and those of tables and tar files, it cannot.
    """
    name = source.get("name")
    if name in _CIFAR:
        return source.get("size") is None
    return name in _BY_CLASS and source.get("holdout") is None and source.get("subset") is None


def _constant(data: bytes) -> Callable[[], bytes]:
    return lambda: data


def _stored(folder: Folder) -> StoredLabels | None:
    labels = folder.child(soft_labels.LABELS)
    return StoredLabels(labels) if has_labels(labels) else None


def _held_out(source: SourceConfig | None, *, with_test: bool) -> ImageDataset | None:
    """The held-out images at the source's size; ``None`` if they are not part of the export."""
    if source is None or not (with_test or source.name in FREE):
        return None
    with advising(
        "The set records this folder of its source: copy the files there, or export without --with-test."
    ):
        listed = sources.listing(source, "test")
        return sources.load(source).test if listed is None else sources.decoded(source, listed)[0]


def _kind_of_test(source: SourceConfig | None, test: ImageDataset | None) -> str:
    """Where the script finds the held-out images."""
    if test is not None:
        return "file"
    return "cifar" if source is not None and source.name in _CIFAR and source.size is None else "folders"


def _values(
    made: DistilledSet,
    folder: Folder,
    stored: StoredLabels | None,
    teacher: Observer | None,
    source: SourceConfig | None,
    test: ImageDataset | None,
) -> dict[str, Any]:
    """The values of the script's template. Numbers only: a set from outside puts no code into the script."""
    protocol: Mapping[str, Any] = made.info.get("protocol") or {}
    config = read(EvaluateConfig, settings_of(protocol, other=False), folder)
    soft = soft_labels.soft(config, made)
    if soft and stored is None and isinstance(protocol.get("observer"), list):
        raise _NoScript(
            "the means of several observers label its crops; evaluate the set with labels: stored"
        )
    if stored is not None and stored.index.top is not None:
        raise _NoScript("its labels keep the largest logits only; evaluate the set without label_top")
    if soft and stored is None and teacher is None:
        raise _NoScript(
            "the set's soft labels come from an observer that is not part of it; name its teacher stage's folder with "
            "--observer, or evaluate the set with labels: stored"
        )
    if soft:
        usual = recipe(config.recipe, made.ipc, len(made.classes), len(made))
        chosen = {k: v for k, v in usual.items() if getattr(config, k) is None}
        chosen["zoom"] = config.zoom if source is None else zooms(config.zoom, source)
        config = config.model_copy(update=chosen)
    sides = _sides(source, test)
    own = _of_soft(config, made, stored, teacher, sides) if soft else _of_hard(config, made)
    net, student = _network(config, made, own["shape"], dropout=soft)
    if soft:
        own["lr"] = config.lr or (SGD_LR if config.optimizer == "sgd" else published_lr(net.name))
    functions = [student.function]
    if soft and stored is None and teacher is not None:
        seeing = plain(teacher.net, teacher.shape, dropout=False)
        if seeing is None:
            raise _NoScript(f"the observer's network {teacher.net.name} is a plugin's")
        own["observer"] = seeing.call
        functions += [seeing.function] if seeing.function != student.function else []
    recorded = _recorded(made, net)
    return own | {
        "soft": soft,
        "net": net.label,
        "student": student.call,
        "functions": [each.rstrip() for each in functions],
        "classes": len(made.classes),
        "seeds": config.seeds,
        "space": made.space.kind,
        "bytes": not made.stored.is_floating_point(),
        "cifar": _CIFAR.get(source.name if source else ""),
        "endings": EXTENSIONS,
        "formats": FORMATS,
        "white": (source.range if source else None) or DEEPEST,
        "grey": made.space.shape[0] == 1,
        "size": _size(made, source),
        "recorded": recorded,
        "notes": _notes(recorded, made, net, config),
    }


def _network(
    config: EvaluateConfig, made: DistilledSet, shape: tuple[int, int, int], *, dropout: bool
) -> tuple[NetConfig, Plain]:
    """The first of the protocol's networks that can be written as text, and the text."""
    nets = nets_of(config, made)
    for net in nets:
        found = plain(net, shape, dropout=dropout)
        if found is not None:
            return net, found
    raise _NoScript(f"the network {nets[0].name} is a plugin's")


def _of_hard(config: EvaluateConfig, made: DistilledSet) -> dict[str, Any]:
    settled = {"lr": config.lr or made.lr_student, "epochs": config.epochs or HARD_EPOCHS}
    protocol = Protocol.of(config, batch=config.batch or HARD_BATCH, **settled)
    return {
        "shape": made.space.shape,
        "batch": protocol.batch,
        "epochs": protocol.epochs,
        "lr": protocol.lr,
        "augment": protocol.augmentations,
    }


def _of_soft(
    config: EvaluateConfig,
    made: DistilledSet,
    stored: StoredLabels | None,
    teacher: Observer | None,
    sides: tuple[int, ...] | None,
) -> dict[str, Any]:
    protocol = soft_protocol(config, made, stored)
    if protocol.loss not in _LOSSES or protocol.optimizer not in _OPTIMIZERS:
        name = protocol.loss if protocol.loss not in _LOSSES else protocol.optimizer
        raise _NoScript(f"the script has no {name}, by which the set was evaluated")
    assert stored is not None or teacher is not None
    input_spec = stored.index.input_spec if stored is not None else teacher.input_spec  # type: ignore[union-attr]  # one of the two
    channels, height, width = input_spec.shape
    return {
        "shape": (channels, height, width),
        "mean": [float(value) for value in input_spec.mean],
        "std": [float(value) for value in input_spec.std],
        "batch": protocol.batch,
        "epochs": protocol.epochs,
        "stored": stored is not None,
        "a_part": stored.index.epochs_a_part if stored is not None else 0,
        "schedule": _SCHEDULES[protocol.schedule],
        "optimizer": _OPTIMIZERS[protocol.optimizer].format(decay=protocol.weight_decay),
        "loss": _LOSSES[protocol.loss].format(t=protocol.temperature),
        "own": _own(protocol, made) if protocol.loss != KL else "",
        "ema": protocol.ema,
        "twice": protocol.statistics == "twice",
        "augment": (),
        **_of_crops(protocol, input_spec),
        **_of_sides(made, sides, input_spec, zoom=protocol.zoom),
    }


def _own(protocol: SoftProtocol, made: DistilledSet) -> str:
    """The smoothed own labels, as an expression."""
    usual = 0.1 if protocol.loss == GIFT else 0.0
    smoothing = usual if protocol.label_smoothing is None else protocol.label_smoothing
    share = smoothing / max(len(made.classes) - 1, 1)
    labels = 'SET["labels"]' if made.labels.ndim == 2 else 'F.one_hot(SET["labels"], CLASSES)'
    return f"{labels} * {1 - smoothing - share} + {share}"


def _of_crops(protocol: SoftProtocol, input_spec: InputSpec) -> dict[str, Any]:
    """The random crops of observed images."""
    factor, (_, height, width) = protocol.factor, input_spec.shape
    high, wide = height // factor, width // factor
    inside = protocol.crop_within_patch
    return {
        "factor": factor,
        "least": 1 / factor if protocol.crop_min is None else protocol.crop_min,
        "within": f"PIXELS[0, :, :{high}, :{wide}]" if inside else "PIXELS[0]",
        "offsets": [[side * i for i in range(factor)] for side in (high, wide)] if inside else None,
    }


def _size(made: DistilledSet, source: SourceConfig | None) -> int | None:
    """The side of the squares that the source's images are resized to; ``None`` where they are used as stored."""
    if source is not None:
        return source.size
    _, height, width = made.space.shape
    return height if height == width else None


def _sides(source: SourceConfig | None, test: ImageDataset | None) -> tuple[int, ...] | None:
    """Height and width of the source's images, which those of a set need not have; ``None`` if only files show them."""
    if test is not None:
        return tuple(test.images.shape[2:])
    side = None if source is None else side_of(source)
    return None if side is None else (side, side)


def _of_sides(
    made: DistilledSet, sides: tuple[int, ...] | None, input_spec: InputSpec, *, zoom: bool
) -> dict[str, Any]:
    """How the set's images, and test images of ``sides``, are brought to the network's input, and whether they are."""
    _, height, width = input_spec.shape
    wanted = zoomed(min(height, width))
    zoom = zoom and wanted != min(height, width)
    return {
        "wanted": wanted,
        "zoom": zoom,
        "refit": made.space.shape[1:] != (height, width),
        "fits": zoom or sides != (height, width),
    }


def _recorded(made: DistilledSet, net: NetConfig) -> str:
    """The accuracy of ``net`` that is stored with the set, as ``87.7 ± 1.2 %, 3 students``; empty if there is none."""
    metrics: Mapping[str, Any] = made.info.get("metrics") or {}
    documents.checked(metrics, documents.Metrics, "info.metrics of the set", "evaluate the set again")
    rows: Sequence[Mapping[str, Any]] = metrics.get("accuracy") or []
    for row in rows:
        if row["data"] == "distilled" and row["net"] == net.label:
            count = len(row["accuracies"])
            return (
                f"{numbers.in_percent(row['mean'], row['std'], count)} %, {count} student{'s' * (count != 1)}"
            )
    return ""


def _notes(recorded: str, made: DistilledSet, net: NetConfig, config: EvaluateConfig) -> list[str]:
    """Sentences for the script's head: the stored figure, and where it is not reached."""
    lines = [f"Stored with the set: {recorded}."] if recorded else []
    if config.lr_grid is not None:
        lines.append(
            f"Its learning rate was the best of {', '.join(f'{lr:g}' for lr in config.lr_grid)}: set LR to it."
        )
    lines = lines or ["The set was not evaluated: its accuracy is not known."]
    others = [other.label for other in nets_of(config, made) if other.label != net.label]
    if others:  # in the same line: the script may be at its limit
        lines[-1] += f" Also in its protocol, but not trained here: {', '.join(others)}."
    return lines


def _programs(values: Mapping[str, Any]) -> dict[str, str]:
    """The texts of the script and of the module that it imports, by name."""
    functions = [
        found for each in values["functions"] for found in re.findall(r"^def (\w+)", each, re.MULTILINE)
    ]
    names = sorted({*_NAMES, *functions})

    def program(file: str) -> str:
        template = _template(f"{file}.jinja")
        body = template.render(values, modules=(), parts=())
        modules = [name for name in _MODULES if re.search(rf"\b{name}\.", body)]
        parts = [name for name in names if re.search(rf"\b{name}\b", body)]
        return (
            re.sub("\n{4,}", "\n\n\n", template.render(values, modules=modules, parts=parts)).strip() + "\n"
        )

    return {file: program(file) for file in (SCRIPT, PARTS)}


def _template(name: str) -> jinja2.Template:
    text = resources(__package__).joinpath(name).read_text(encoding="utf-8")
    # The text of a program, into which only numbers and rayddl's own words are put: nothing is escaped.
    made = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)  # noqa: S701
    return made.from_string(text)
