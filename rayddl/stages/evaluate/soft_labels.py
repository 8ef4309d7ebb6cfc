"""The observer of an evaluation: where it is found, and its copy within the set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayddl.data.distilled import DistilledSet
from rayddl.errors import ArtifactError
from rayddl.methods.training.input_spec import Frame
from rayddl.methods.training.observer import Observer, is_observer, size_of
from rayddl.methods.training.softlabels import StoredLabels, has_labels
from rayddl.stages.context import Context
from rayddl.stages.evaluate.settings import NO_OBSERVER, EvaluateConfig
from rayddl.storage import Folder

CARRIED_BYTES = 64 * 2**20
"""Observers of fewer bytes are copied into the sets evaluated with them."""
INSIDE, LABELS = "observer", "labels"
"""Folders within a set's folder."""


@dataclass(frozen=True)
class Teaching:
    """The origin of soft labels: an observer, logits stored with the set, or both."""

    observer: Observer | None
    stored: Folder | None = None
    """A folder of soft labels, complete or still to be computed."""
    where: Mapping[str, Any] | None = None
    """The description of the observer that is stored with the set."""

    @property
    def frame(self) -> Frame:
        """The input specification of the students."""
        if self.observer is not None:
            return self.observer.frame
        assert self.stored is not None
        return StoredLabels(self.stored).index.frame


def of_stage(config: EvaluateConfig, made: DistilledSet, context: Context) -> Teaching | None:
    """The teaching that an evaluate stage's settings name; ``None`` for hard labels.

    Raises :class:`ArtifactError` for a set made for soft labels if no observer is named.
    """
    if config.observer is None:
        if soft(config, made):
            raise ArtifactError(
                f"the set of {config.set!r} was made for soft labels; {NO_OBSERVER}.",
                code="observer-not-named",
            )
        return None
    folder = context.inputs[config.observer].folder.child("observer")
    observer = Observer.load(folder).pruned(made.classes)
    inside = size_of(folder) < CARRIED_BYTES
    where = {
        "stage": config.observer,
        "net": observer.net.label,
        "accuracy": observer.accuracy,
        "folder": INSIDE if inside else str(folder),
    }
    stored = context.out.child("set").child(LABELS) if config.labels == "stored" else None
    return Teaching(observer, stored, where)


def carry(teaching: Teaching, into: Folder) -> None:
    """Copy a small observer into the set's folder ``into``."""
    if teaching.observer is not None and teaching.where and teaching.where["folder"] == INSIDE:
        teaching.observer.save(into.child(INSIDE))


def of_set(config: EvaluateConfig, made: DistilledSet, folder: Folder, given: str | None) -> Teaching | None:
    """The observer, or the stored logits, that the set in ``folder`` was evaluated with.

    ``given`` is the folder of an observer or a teacher stage, and replaces the stored one. Raises
    :class:`ArtifactError` if the protocol needs soft labels and none are available.
    """
    if given is None and not soft(config, made):
        return None
    noted = dict(made.info.get("protocol", {}).get("observer") or {})
    found = observer_of(folder, noted, given)
    labels = folder.child(LABELS)
    stored = labels if given is None and has_labels(labels) else None
    if stored is not None and (config.epochs or 0) > StoredLabels(stored).index.protocol.epochs and found:
        stored = None
    if found is None and stored is None:
        raise ArtifactError(
            f"{folder} was made for soft labels, and the observer that gives them is not there"
            + (f" (looked for {noted['folder']})" if noted.get("folder") else "")
            + ". Name it with --observer PATH: the folder of the teacher stage.",
            code="observer-gone",
        )
    observer = None if found is None else Observer.load(found).pruned(made.classes)
    return Teaching(observer, stored, noted or None)


def observer_of(folder: Folder, noted: Mapping[str, Any], given: str | None) -> Folder | None:
    """The observer at ``given``, else that in the set's ``folder``, else that at the place ``noted`` with the set;
    ``None`` if there is none. Raises :class:`ArtifactError` if ``given`` is no observer.
    """
    if given is not None:
        places: Sequence[Folder] = (Folder(given), Folder(given).child("observer"))
        found = next((place for place in places if is_observer(place)), None)
        if found is None:
            raise ArtifactError(
                f"there is no observer in {given}: looked for observer.json there and in its folder observer. "
                "Name the folder of a teacher stage.",
                code="no-observer-here",
            )
        return found
    places = [folder.child(INSIDE)]
    if noted.get("folder") and noted["folder"] != INSIDE:
        places.append(Folder(str(noted["folder"])))
    return next((place for place in places if is_observer(place)), None)


def soft(config: EvaluateConfig, made: DistilledSet) -> bool:
    """True if the students train on soft labels: by the settings, else by the set's default."""
    if config.protocol is not None or config.observer is not None:
        return config.protocol != "hard"
    return bool(made.info.get("protocol", {}).get("name") == "soft")
