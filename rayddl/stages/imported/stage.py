"""``kind: imported``: a set made by other code, converted to this source."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from typing import Any

import torch

from rayddl.data.config import DSA
from rayddl.data.distilled import DistilledSet
from rayddl.data.formats import forms, importing, pt_places
from rayddl.data.formats.importing import TargetSource
from rayddl.data.pixels import space
from rayddl.data.sources.registry import load
from rayddl.errors import ArtifactError
from rayddl.stages.context import Context, Result
from rayddl.stages.imported.settings import ImportedConfig
from rayddl.stages.runtime.large import is_large
from rayddl.stages.runtime.sources import fit_space, publish
from rayddl.storage import Folder

BLACK = -0.1
"""An encoding of black below this cannot be mistaken for one of pixels as they are."""
LOGITS = "the labels have negative numbers: they are logits, as DATM saves them, and softmax makes them probabilities"


def run(config: ImportedConfig, context: Context) -> Result:
    """Read the set, convert it to the source, and write it."""
    began = time.perf_counter()
    folder, place = Folder(config.path), None
    if pt_places.is_file(config.path):
        place = pt_places.at(config.path)
    if place is None and not folder.exists():
        alone = pt_places.is_file(config.path)
        what, holding = ("file", "images and labels") if alone else ("folder", forms.LOOKED_FOR)
        raise ArtifactError(
            f"there is no {what} {folder}: it should hold {holding}.",
            code="import-folder-missing",
        )
    form = "pt" if place else config.form or forms.form_of(folder)
    home, note = _home(context), context.progress.note
    made = importing.bring_pt(place, home) if place else importing.bring(folder, form, home, note)
    _refuse_other_classes(made, home, folder)
    if made.info.get("labels_read_as") == "logits":
        note(LOGITS)
    found = digest(made)
    if config.sha256 is not None and config.sha256 != found:
        raise ArtifactError(
            f"the set in {folder} is not the expected one: its images and labels hash to {found}, sha256 says "
            f"{config.sha256}. Put the right one there, or leave sha256 out.",
            code="import-of-another-hash",
        )
    info = {
        "protocol": {"name": "hard", "augment": DSA},
        **made.info,
        "source": context.source.model_dump(mode="json"),
        "imported": {"form": form, "sha256": found},
    }
    if form != "set" or "method" in config.model_fields_set:
        info["method"] = config.method
    kept = replace(made, info=info, lr_student=config.lr_student or made.lr_student)
    kept.save(context.out.child("set"))
    summary = {
        "method": info["method"],
        "form": form,
        "images": len(kept),
        "ipc": kept.ipc,
        "classes": list(kept.classes),
        "sha256": found,
        **_doubts(kept),
        **({"labels_read_as": read_as} if (read_as := made.info.get("labels_read_as")) else {}),
        "seconds": time.perf_counter() - began,
    }
    return Result(summary)


def _home(context: Context) -> TargetSource:
    """The source that the set is brought to; a large train split is decoded by tasks."""
    if is_large(context.source, "train"):
        context.backend.start()
        source = publish(context.source)
        return TargetSource(source.classes, source.shape, fit_space(source, context.out))
    train = load(context.source).train
    fitted = space.fit(context.source.space, train.images, context.source.scaling)
    return TargetSource(train.classes, train.shape, fitted)


def _doubts(made: DistilledSet) -> dict[str, Any]:
    """What lets doubt that the set was read as it was meant, for the kind's cautions."""
    # Learned probabilities may put the largest share of an image anywhere.
    there = set(made.labels.tolist()) if made.labels.ndim == 1 else range(len(made.classes))
    without = [name for label, name in enumerate(made.classes) if label not in there]
    stored = made.stored
    # Black is far below 0 in a space of normalised pixels, so encoded images have numbers on both sides of it.
    black = float(made.space.encode(torch.zeros(1, *made.space.shape)).mean())
    pixels = (
        stored.is_floating_point() and black < BLACK and 0 <= float(stored.min()) <= float(stored.max()) <= 1
    )
    return ({"in_unit": True} if pixels else {}) | ({"without_images": without} if without else {})


def digest(made: DistilledSet) -> str:
    """The SHA-256 of a set's images and labels, in hexadecimal digits."""
    hashed = hashlib.sha256()
    for tensor in (made.stored, made.labels):
        hashed.update(str((tensor.dtype, tuple(tensor.shape))).encode())
        hashed.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return hashed.hexdigest()


def _refuse_other_classes(made: DistilledSet, home: TargetSource, folder: Folder) -> None:
    if tuple(made.classes) != home.classes:
        pairs = zip(made.classes, home.classes, strict=False)
        first = next(
            (p for p in pairs if p[0] != p[1]), (f"{len(made.classes)} classes", f"{len(home.classes)}")
        )
        raise ArtifactError(
            f"the set in {folder} is not of this source: its classes have {first[0]!r} where the source has "
            f"{first[1]!r}. Name the source that it was made from.",
            code="set-of-other-classes",
        )
