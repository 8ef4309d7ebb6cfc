"""The data set card of an exported set: content, method, licence of the images, and accuracy."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rayddl import documents, yaml_text
from rayddl.escapes import on_one_line, visible

if TYPE_CHECKING:
    from rayddl.data.distilled import DistilledSet

LICENCES: Mapping[str, tuple[str, str]] = {
    "digits": ("cc-by-4.0", "UCI's optical recognition of handwritten digits is offered under CC BY 4.0."),
    "cifar10": ("unknown", "The authors of CIFAR-10 state no licence; they ask to be cited."),
    "cifar100": ("unknown", "The authors of CIFAR-100 state no licence; they ask to be cited."),
    "tinyimagenet": ("other", "Images of ImageNet: non-commercial research and education only."),
    "imagenet": ("other", "Images of ImageNet: non-commercial research and education only."),
}
"""Licences of the sources that rayddl knows by name: identifier, and a sentence for the card."""
_OWN = ("imagefolder", "parquet", "webdataset")
"""Sources that are whatever files a user has."""
LESSONS = {
    "distilled": "this set",
    "random": "random real images",
    "distilled-own": "this set, own labels",
    "random-own": "random real images, own labels",
    "whole": "all real images",
    "distilled-bare": "this set, not augmented",
    "random-bare": "random real images, not augmented",
    "distilled-hard": "this set, hard labels",
    "whole-hard": "all real images, hard labels",
}
SCORES = {
    "of_whole": "of the accuracy on all real images",
    "hlr": "short of all real images by hard labels (HLR)",
    "lrs": "label-robust score (LRS)",
    "ars": "augmentation-robust score (ARS)",
}
"""The scores in the card, and their descriptions."""
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**12, "100K<n<1M"))
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_MARKUP = re.compile(r"[&<>\\`*\[\]|~!]")
_APOSTROPHE = "'"
_LONGEST = 300
_ALWAYS_PATHS, _PATHS = ("path", "runs", "replay"), ("weights", "classes")
"""Settings of stages that are paths, and those whose texts are paths but for some names."""
_NO_PATHS = ("DEFAULT", "IMAGENET1K_V1", "IMAGENET1K_V2", "source")
"""These names."""
_INSIDE = re.compile(r"observer(-\d+)?")
"""The folders of observers inside a set's own."""
DATA = "data/train-00000-of-00001.parquet"
"""Path of the Parquet table in the export, as named in the card."""


def card(made: DistilledSet, brought: Sequence[str] = (), lacking: str = "") -> str:
    """The text of ``README.md``, with the YAML header that Hugging Face's tools read.

    ``brought``: names of the files that train on the set as its figures were made. ``lacking``: why there are none.
    """
    parts = [
        f"---\n{yaml_text.dump(_front(made))}---\n",
        _what(made),
        _how(made),
        _whose(made),
        _how_good(made),
        _reached(made, brought, lacking),
        _use(made),
    ]
    return visible("\n".join(parts))


def _source(made: DistilledSet) -> str:
    return str((made.info.get("source") or {}).get("name", "unknown source"))


def _title(made: DistilledSet) -> str:
    """The source's name; of a user's own files that of the definition."""
    name = (made.info.get("definition") or {}).get("name")
    return str(name) if name and _source(made) in _OWN else _source(made)


def _metrics(made: DistilledSet) -> dict[str, Any]:
    found: dict[str, Any] = made.info.get("metrics") or {}
    documents.checked(found, documents.Metrics, "info.metrics of the set", "evaluate the set again")
    return found


def _text(value: Any) -> str:
    """Return a value as Markdown text on one line: no HTML, no heading, and no other markup."""
    line = _MARKUP.sub(lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), on_one_line(str(value)))
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} …"


def _code(value: Any) -> str:
    """Return a value as Markdown code on one line."""
    return f"`{on_one_line(str(value)).replace('`', _APOSTROPHE)[:_LONGEST]}`"


def _fenced(text: str, language: str) -> str:
    """Return a block of code whose end no line of ``text`` can be."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}{fence}\n"


def _front(made: DistilledSet) -> dict[str, Any]:
    return {
        "pretty_name": f"{_title(made)} distilled to {len(made)} images",
        "license": LICENCES.get(_source(made), ("unknown", ""))[0],
        "task_categories": ["image-classification"],
        "size_categories": [next(name for most, name in _SIZES if len(made) < most)],
        "tags": ["dataset-distillation", "rayddl"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": DATA}]}],
    }


def _what(made: DistilledSet) -> str:
    channels, height, width = made.space.shape
    labels = "hard labels" if made.labels.ndim == 1 else "soft labels (a distribution over the classes)"
    if _protocol(made) == "soft":
        labels += ". **Its figures come from other labels**: those that an observer gives to each crop, at every step"
    return (
        f"# {_text(_title(made))}, distilled\n\n"
        f"{len(made)} images of {len(made.classes)} classes ({made.ipc} a class), {height} x {width} pixels, "
        f"{'grey' if channels == 1 else 'colour'}, with {labels}. They stand for the whole training set: a network is "
        f"trained on them alone. Method: {_text(made.info.get('method') or 'not stated')}.\n"
    )


def _how(made: DistilledSet) -> str:
    definition = without_places(made.info).get("definition")
    text = "## How it was made\n\nBy rayddl"
    if not definition:
        return text + "; the definition was not kept.\n"
    return f"{text}, from this definition:\n\n{_fenced(yaml_text.dump(definition), 'yaml')}"


def without_places(info: Mapping[str, Any]) -> dict[str, Any]:
    """``info`` without file paths: they are useless to others, and may disclose private data."""
    kept = copy.deepcopy({key: value for key, value in info.items() if key != "evaluated_by"})
    definition = kept.get("definition") or {}
    for holder in (kept, definition):
        if isinstance(holder.get("source"), dict):
            holder["source"].pop("root", None)
    stages = definition.get("stages")
    for stage in stages.values() if isinstance(stages, dict) else ():
        _drop_paths(stage)
    protocol = kept.get("protocol") or {}
    observers = protocol.get("observer")
    for observer in observers if isinstance(observers, list) else (observers,):
        if isinstance(observer, dict) and not _INSIDE.fullmatch(str(observer.get("folder"))):
            observer.pop("folder", None)
    if isinstance(observers, str) and not _INSIDE.fullmatch(observers):
        del protocol["observer"]
    return kept


def _drop_paths(settings: Any) -> None:
    """Remove the paths from a stage's settings; in those of a search, keys are ``<stage>.<key>``, too."""
    if not isinstance(settings, dict):
        return
    for key in [key for key, value in settings.items() if _is_path(str(key).rpartition(".")[2], value)]:
        del settings[key]
    for inner in settings.values():
        _drop_paths(inner)


def _is_path(key: str, value: Any) -> bool:
    if key in _PATHS and isinstance(value, dict):
        return any(_is_path(key, each) for name in ("choice", "grid") for each in value.get(name) or ())
    return key in _ALWAYS_PATHS or (key in _PATHS and isinstance(value, str) and value not in _NO_PATHS)


def _whose(made: DistilledSet) -> str:
    name = _source(made)
    if name in _OWN:
        what = (
            f"The images were made from images of their maker's own ({_code(name)}), whose terms bind what is made "
            "from them."
        )
    else:
        what = f"The images were made from {_code(name)}, and its terms bind what is made from it."
    licence, known = LICENCES.get(name, ("unknown", "Nothing is known of the licence of the source."))
    missing = (
        " **Before you share this set, check them and state them here:** _licence of the source: to be filled in_."
        if licence == "unknown"
        else ""
    )
    return f"## Source and licence\n\n{what} {known if name not in _OWN else ''}".rstrip() + f"{missing}\n"


def _how_good(made: DistilledSet) -> str:
    rows: Sequence[Mapping[str, Any]] = _metrics(made).get("accuracy", [])
    if not rows:
        return "## Accuracy\n\nNot measured. `rayddl evaluate` on the set measures it.\n"
    random = {row["net"]: row["mean"] for row in rows if row["data"] == "random"}
    lines = [
        f"| {LESSONS.get(row['data']) or _text(row['data'])}{_below(row, random)} | {row['images']:,} "
        f"| {_text(row['net'])} | {_accuracy(row)} | {len(row['accuracies'])} |"
        for row in rows
    ]
    protocol = _text(_protocol(made))
    return (
        f"## Accuracy\n\nTop-1 on the source's held-out images{f', {protocol}-label protocol' if protocol else ''}; "
        "mean ± standard deviation over networks trained from different seeds.\n\n"
        "| trained on | images | network | accuracy % | seeds |\n| --- | ---: | --- | ---: | ---: |\n"
        + "\n".join(lines)
        + "\n"
        + _worth(_metrics(made))
    )


def _below(row: Mapping[str, Any], random: Mapping[str, float]) -> str:
    worse = row["data"] == "distilled" and row["mean"] < random.get(row["net"], 0.0)
    return ", below random" if worse else ""


def _accuracy(row: Mapping[str, Any]) -> str:
    best = row.get("best")
    late = f" (best of late epochs {100 * best['mean']:.1f})" if best else ""
    spread = f" ± {100 * row['std']:.1f}" if len(row["accuracies"]) > 1 else ""
    return f"{100 * row['mean']:.1f}{spread}{late}"


def _score(spread: Mapping[str, float]) -> str:
    # One student has no deviation.
    deviation = f" ± {100 * spread['std']:.1f}" if spread["std"] else ""
    return f"{100 * spread['mean']:.1f}{deviation}"


def _worth(metrics: Mapping[str, Any]) -> str:
    """Sentences on the scores and on the cost of the set, if known."""
    lines = [
        f"- {_text(net)}: {_score(found[name])} % {words}"
        for net, found in (metrics.get("scores") or {}).items()
        for name, words in SCORES.items()
        if name in found
    ]
    if lines:
        lines.insert(
            0,
            "\nBeside all real images, and by DD-Ranking's scores (mean ± standard deviation over seeds):\n",
        )
    spent = sum((metrics.get("spent") or {}).values())
    if metrics.get("bytes") is not None:
        lines.append(f"\nImages and labels take {metrics['bytes']:,} bytes.")
    if spent:
        lines.append(f"Making them took {spent:,.0f} seconds, every stage behind them included.")
    return "\n".join([*lines, ""]) if lines else ""


def _protocol(made: DistilledSet) -> str:
    """The name of the protocol that the set's figures, or the set itself, were made for; empty if unknown."""
    return str((made.info.get("protocol") or {}).get("name") or "")


def _reached(made: DistilledSet, brought: Sequence[str], lacking: str) -> str:
    """How to train on the set by the protocol of its figures."""
    soft = _protocol(made) == "soft"
    if "train.py" not in brought:
        why = lacking or "the export brings no script for it"
        own = " Trained on the labels in this folder alone, networks stay below the figures." if soft else ""
        return f"## Training as measured\n\nNot possible from this folder: {_text(why)}.{own}\n"
    test = "test.safetensors" in brought
    labels = (
        "`labels/` has the observer's logits for every crop of every epoch. "
        if "labels/labels.json" in brought
        else "`observer/` has the network that labels every crop. "
        if soft
        else ""
    )
    images = (
        "`test.safetensors` has the held-out images. "
        if test
        else "TEST are the source's held-out images, which are not part of this folder (`rayddl export --format hf "
        "--with-test` brings them); `python train.py -h` says in what form. "
    )
    return (
        f"## Training as measured\n\n```bash\npython train.py{'' if test else ' TEST'}\n```\n\n"
        "The script needs torch, torchvision and safetensors, and trains by the protocol above. "
        f"{labels}{images}\n"
    )


def _use(made: DistilledSet) -> str:
    # The learned rate is for students of hard labels.
    rate = "" if _protocol(made) == "soft" else ", made.lr_student"
    return (
        "## Loading it\n\n"
        '```python\nimport datasets, rayddl\n\npath = "."  # this folder\n'
        'pictures = datasets.load_dataset(path)["train"]\n'
        f"made = rayddl.load_set(path)  # the exact tensors\nmade.images, made.labels{rate}\n```\n\n"
        "The table's pictures are rounded to bytes. `set.safetensors` has the exact tensors, as networks were "
        "trained on them, with the pixel space; `set.json` says what they are.\n"
    )
