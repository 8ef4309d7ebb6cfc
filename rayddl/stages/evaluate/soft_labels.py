"""The observers of an evaluation: where they are found, and their copies within the set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from rayddl.data.distilled import DistilledSet
from rayddl.errors import ArtifactError
from rayddl.methods.training.input_spec import InputSpec
from rayddl.methods.training.observer import Observer, is_observer, size_of
from rayddl.methods.training.observers import Labeller, together
from rayddl.methods.training.softlabels import StoredLabels, has_labels
from rayddl.stages.context import Context
from rayddl.stages.evaluate.settings import NO_OBSERVER, EvaluateConfig
from rayddl.storage import Folder

CARRIED_BYTES = 64 * 2**20
"""Observers of fewer bytes are copied into the sets evaluated with them."""
INSIDE, LABELS = "observer", "labels"
"""Folders within a set's folder; several observers are in ``observer-0``, ``observer-1`` and so on."""
MatchProgress: TypeAlias = str | Mapping[str, Any] | Sequence[Mapping[str, Any]] | None
"""The description of an observer, or of each of several, that is stored with a set; a text is its folder."""


@dataclass(frozen=True)
class LabelSource:
    """The origin of soft labels: one or several observers, logits stored with the set, or both."""

    observer: Labeller | None
    stored: Folder | None = None
    """A folder of soft labels, complete or still to be computed."""
    where: MatchProgress = None

    @property
    def members(self) -> Sequence[Observer]:
        """The observers."""
        if self.observer is None:
            return ()
        return (self.observer,) if isinstance(self.observer, Observer) else self.observer.members

    @property
    def input_spec(self) -> InputSpec:
        """The input specification of the students."""
        if self.observer is not None:
            return self.observer.input_spec
        assert self.stored is not None
        return StoredLabels(self.stored).index.input_spec


def of_stage(config: EvaluateConfig, made: DistilledSet, context: Context) -> LabelSource | None:
    """The label source that an evaluate stage's settings name; ``None`` for hard labels.

    Raises :class:`ArtifactError` for a set made for soft labels if no observer is named.
    """
    if config.observer is None:
        if soft(config, made):
            raise ArtifactError(
                f"the set of {config.set!r} was made for soft labels; {NO_OBSERVER}.",
                code="observer-not-named",
            )
        return None
    folders = [context.inputs[name].folder.child("observer") for name in config.observers]
    members = [Observer.load(folder).pruned(made.classes) for folder in folders]
    inside = sum(size_of(folder) for folder in folders) < CARRIED_BYTES
    where = [
        {
            "stage": name,
            "net": member.net.label,
            "accuracy": member.accuracy,
            "folder": place if inside else str(folder),
        }
        for name, member, folder, place in zip(
            config.observers, members, folders, _inside(len(members)), strict=True
        )
    ]
    stored = context.out.child("set").child(LABELS) if config.labels == "stored" else None
    return LabelSource(together(members), stored, where if len(where) > 1 else where[0])


def _inside(count: int) -> list[str]:
    """The folders of ``count`` observers within a set's folder."""
    return [INSIDE] if count == 1 else [f"{INSIDE}-{k}" for k in range(count)]


def carry(label_source: LabelSource, into: Folder) -> None:
    """Copy small observers into the set's folder ``into``."""
    for member, where in zip(label_source.members, _listed(label_source.where), strict=True):
        if where["folder"] in _inside(len(label_source.members)):
            member.save(into.child(str(where["folder"])))


def of_set(
    config: EvaluateConfig, made: DistilledSet, folder: Folder, given: Sequence[str] = ()
) -> LabelSource | None:
    """The observers, or the stored logits, that the set in ``folder`` was evaluated with.

    ``given`` are folders of observers or teacher stages, and replace the stored ones. Raises
    :class:`ArtifactError` if the protocol needs soft labels and none are available.
    """
    if not given and not soft(config, made):
        return None
    where = made.info.get("protocol", {}).get("observer") or None
    noted = _listed(where)
    found = observers_of(folder, noted, given)
    labels = folder.child(LABELS)
    stored = labels if not given and has_labels(labels) else None
    if stored is not None and (config.epochs or 0) > StoredLabels(stored).index.protocol.epochs and found:
        stored = None
    if not found and stored is None:
        looked_for = ", ".join(str(each["folder"]) for each in noted if each.get("folder"))
        raise ArtifactError(
            f"{folder} was made for soft labels, and the observer that gives them is not there"
            + (f" (looked for {looked_for})" if looked_for else "")
            + ". Name it with --observer PATH: the folder of the teacher stage.",
            code="observer-gone",
        )
    members = [Observer.load(place).pruned(made.classes) for place in found]
    return LabelSource(together(members) if members else None, stored, where)


def _listed(where: MatchProgress) -> Sequence[Mapping[str, Any]]:
    """The description of each observer."""
    if isinstance(where, str):
        return [{"folder": where}]
    return [] if where is None else [where] if isinstance(where, Mapping) else where


def observers_of(folder: Folder, noted: Sequence[Mapping[str, Any]], given: Sequence[str]) -> list[Folder]:
    """The observers at ``given``, else those in the set's ``folder`` or at the places ``noted`` with it.

    Empty if one of them is missing. Raises :class:`ArtifactError` if one of ``given`` is no observer.
    """
    if given:
        return [_given(path) for path in given]
    inside = [folder.child(name) for name in _inside(max(1, len(noted)))]
    elsewhere = [str(each.get("folder") or "") for each in noted] or [""]
    found = []
    for own, other in zip(inside, elsewhere, strict=True):
        places = [own, *([Folder(other)] if other and other not in _inside(len(noted)) else [])]
        found += [next((place for place in places if is_observer(place)), None)]
    return [place for place in found if place is not None] if None not in found else []


def _given(path: str) -> Folder:
    places = (Folder(path), Folder(path).child("observer"))
    found = next((place for place in places if is_observer(place)), None)
    if found is None:
        raise ArtifactError(
            f"there is no observer in {path}: looked for observer.json there and in its folder observer. "
            "Name the folder of a teacher stage.",
            code="no-observer-here",
        )
    return found


def soft(config: EvaluateConfig, made: DistilledSet) -> bool:
    """True if the students train on soft labels: by the settings, else by the set's default."""
    if config.protocol is not None or config.observer is not None:
        return config.protocol != "hard"
    return bool(made.info.get("protocol", {}).get("name") == "soft")
