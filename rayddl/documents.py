"""The JSON documents that rayddl reads back: one model for each kind.

Documents may come from anybody: with a set, a run's folder, or from an older version. Each is read by
:func:`rayddl.json_text.parse` and :func:`checked`, so that all later code finds values of the types that it expects.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import ErrorDetails

from rayddl import limits
from rayddl.errors import ArtifactError

_SHOWN = 60
_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "greater_than_equal": "a number from {ge:g} on",
    "greater_than": "a number above {gt:g}",
    "finite_number": "a finite number",
    "string_too_long": "shorter text",
    "string_pattern_mismatch": "the name of a folder inside this one",
    "too_short": "three numbers",
    "too_long": "three numbers",
}


def checked(value: Any, model: type[BaseModel], where: str, again: str) -> Any:
    """Return ``value``, which has the types of ``model``.

    Raises :class:`ArtifactError` that names the file ``where``, the key and the fault; ``again`` says what to do.
    """
    try:
        model.model_validate(value)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        key = ".".join(str(part)[:_SHOWN] for part in fault["loc"])
        raise ArtifactError(
            f"{where} is malformed{f' at {key}' if key else ''}: {_sentence(fault)}; {again}",
            code="document-malformed",
        ) from error
    return value


class Document(BaseModel):
    """The base of all models: types are not converted, unknown keys are kept."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


Name = Annotated[str, StringConstraints(max_length=1000)]
Inside = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}$")]
"""The name of a folder directly inside another."""
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Rows = list[dict[str, str]]


class Format(Document):
    """The head of a document with a format version."""

    format: Count


class File(Document):
    """What a document says of a file."""

    bytes: Count | None = None
    sha256: Name | None = None


class SizedFile(File):
    """What a manifest says of a file."""

    bytes: Count


class Sealed(Document):
    """The head of a document that is stored with files of tensors."""

    format: Name
    version: int
    files: dict[str, File] = {}


class SpaceParts(Document):
    """A pixel space without its tensors."""

    kind: Name
    shape: Annotated[list[Count], Field(min_length=3, max_length=3)]
    fingerprint: Name


class Images(Document):
    """The number and shape of a set's images."""

    count: Count
    per_class: list[Count]


class Spread(Document):
    """A mean with its standard deviation."""

    mean: float
    std: float


class Accuracy(Spread):
    """The accuracies of the students of one network on one kind of training data."""

    data: Name
    images: Count
    net: Name
    accuracies: list[float]
    best: Spread | None = None


class Metrics(Document):
    """The figures of a set's evaluation."""

    accuracy: list[Accuracy] = []
    scores: dict[str, dict[str, Spread]] | None = None
    spent: dict[str, float] | None = None
    bytes: Count | None = None


class Named(Document):
    """Settings with a name."""

    name: Name


class Observing(Document):
    """Where the observer of a set's soft labels is."""

    folder: str | None = None


class StoredProtocol(Document):
    """The settings of the evaluation that a set is stored with."""

    name: Name | None = None
    seed: int | None = None
    observer: Observing | list[Observing] | str | None = None


class Info(Document):
    """How a set was made, and its figures."""

    method: Name | None = None
    source: Named | None = None
    seed: int | None = None
    factor: int | None = None
    definition: dict[str, Any] | None = None
    protocol: StoredProtocol | None = None
    metrics: dict[str, Any] | None = None
    """Anything that the maker of a set measured; :class:`Metrics` where it is shown."""


class DistilledSetDocument(Document):
    """``set.json``."""

    classes: list[Name]
    folders: list[Inside | Name] = []
    images: Images | None = None
    lr_student: float | None = None
    space: SpaceParts
    info: Info
    files: dict[str, File] = {}

    @model_validator(mode="after")
    def _classes_within_the_limit(self) -> DistilledSetDocument:
        if len(self.classes) > limits.CLASSES.value:
            raise ValueError(limits.CLASSES.exceeded(len(self.classes), "classes"))
        return self


class Outputs(Document):
    """The outputs of an observer's network, and which of them are in use."""

    total: Annotated[int, Field(ge=1)]
    kept: list[Count]


class Scaled(Document):
    """The shape and scaling of a network's input, each scaling a number for each channel."""

    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=3, max_length=3)]
    mean: list[float]
    std: list[Annotated[float, Field(gt=0)]]

    @model_validator(mode="after")
    def _one_number_a_channel(self) -> Scaled:
        if not len(self.mean) == len(self.std) == self.shape[0]:
            raise ValueError("mean and std need a number for each channel")
        return self


class ObserverDocument(Sealed, Scaled):
    """``observer.json``."""

    net: dict[str, Any]
    classes: list[Name]
    outputs: Outputs
    accuracy: float | None

    @model_validator(mode="after")
    def _an_output_for_each_class(self) -> ObserverDocument:
        kept, total = self.outputs.kept, self.outputs.total
        if len(kept) != len(self.classes) or max(kept, default=0) >= total:
            raise ValueError(
                f"outputs.kept names {len(kept)} of {total} outputs for {len(self.classes)} classes, expected one "
                "for each class"
            )
        return self


class LabelsProtocol(Document):
    """The settings of soft labels that numbers of files and images follow from."""

    epochs: Annotated[int, Field(ge=1)]
    batch: Annotated[int, Field(ge=1)]
    factor: Annotated[int, Field(ge=1)] = 1


class LabelsDocument(Sealed):
    """``labels.json`` of soft labels."""

    classes: list[Name]
    frame: Scaled
    protocol: LabelsProtocol
    images: Name
    count: Annotated[int, Field(ge=1)]
    epochs_a_part: Annotated[int, Field(ge=1)]
    top: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _a_file_for_each_part(self) -> LabelsDocument:
        epochs = self.protocol.epochs
        parts = -(-epochs // self.epochs_a_part)
        if parts != len(self.files):
            raise ValueError(
                f"{parts:,} files are expected for {epochs} epochs, it names {len(self.files):,}"
            )
        return self


class ExpertHeader(Format):
    """The header of an expert's file."""

    keep: Name
    sizes: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
    epochs: Annotated[list[Count], Field(min_length=2)]
    info: dict[str, Any]


class Reading(Document):
    """What a manifest says of a stage that it read."""

    fingerprint: Name


class SourceSettings(Named):
    """The settings of a source in a manifest."""

    root: str | None = None
    space: Name = "normalise"


class SourceOf(Document):
    """What a manifest says of the source."""

    config: SourceSettings


class Manifest(Document):
    """``manifest.json`` of a stage."""

    format: Count
    stage: Name
    kind: Name
    fingerprint: Name
    config: dict[str, Any]
    inputs: dict[str, Reading]
    source: SourceOf
    seed: int
    summary: dict[str, Any]
    files: dict[str, SizedFile]
    table: Rows
    more: dict[str, Rows] = {}
    seconds: Seconds = 0.0
    versions: dict[str, str | None] = {}
    plugins: dict[str, str] = {}
    read_files: dict[str, str] = {}
    """By place, the identity of the files that the stage has read and no stage has made."""
    definition: dict[str, Any] | None = None


class Progress(Document):
    """The progress of a running stage."""

    done: float
    total: float
    rate: float | None = None
    left: float | None = None
    metric: str | None = None


class StageRecord(Document):
    """What a run's record says of a stage."""

    kind: Name
    folder: Inside
    fingerprint: Name
    state: Name
    heard: Name | None = None
    seconds: Seconds | None = None
    summary: dict[str, Any] = {}
    table: Rows = []
    error: str = ""
    progress: Progress | Annotated[dict[str, Any], Field(max_length=0)] = {}


class RunRecord(Document):
    """``<name>.run.json``."""

    format: Count
    name: Name
    stages: dict[str, StageRecord]
    order: list[str] = []
    file: str | None = None
    overrides: list[str] = []
    rayddl: Name | None = None
    definition: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _order_names_stages(self) -> RunRecord:
        unknown = [name for name in self.order if name not in self.stages]
        if unknown:
            raise ValueError(f"order names {unknown[0][:_SHOWN]!r}, which is not among the stages")
        return self


class CheckedTeacher(Document):
    """``checked.json`` of a teacher stage."""

    accuracy: float | None
    images: Count


def _sentence(fault: ErrorDetails) -> str:
    error = fault["type"]
    if error == "missing":
        return "it is missing"
    if error == "value_error":
        return str(fault["ctx"]["error"])
    expected = _EXPECTED.get(error, "another value").format(**fault.get("ctx", {}))
    return f"found {_shown(fault['input'])}, expected {expected}"


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
