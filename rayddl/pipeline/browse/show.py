"""``rayddl show``: a stage, a set or a run in readable form."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from rayddl import documents, yaml_text
from rayddl.credentials import scrub
from rayddl.errors import ArtifactError, UserError
from rayddl.pipeline import artifacts, records
from rayddl.pipeline.artifacts import Artifact
from rayddl.pipeline.display import pace
from rayddl.pipeline.sets import SET_FILE, find_record, opened
from rayddl.pipeline.tables import places_table, rows_table
from rayddl.storage import Folder

_YAML = 76
"""Columns of a definition, which is indented by two."""


@dataclass(frozen=True)
class Inspected:
    """A description of a stage, a set or a run, for people and as JSON."""

    title: str
    head: Mapping[str, str]
    """Short values by name."""
    blocks: Mapping[str, Any]
    """Nested JSON values by heading."""
    tables: Mapping[str, Sequence[Mapping[str, str]]]
    """Rows of tables by heading."""
    value: Any
    """The JSON document itself."""

    def parts(self) -> list[RenderableType]:
        """Return the texts and tables for a terminal."""
        parts: list[RenderableType] = [Text(self.title, style="bold"), places_table(self.head)]
        for heading, block in self.blocks.items():
            if block:
                parts += [Text(), Text(heading, style="bold"), Text(_readable(block))]
        for heading, rows in self.tables.items():
            if rows:
                parts += [Text(), rows_table(rows, heading)]
        return parts


def inspect(where: str, out: str, *, verify: bool = False) -> Inspected:
    """Describe what ``where`` names: a stage's folder, a set's folder, a run record, or a run's name in ``out``.

    With ``verify``, every file is compared with its hash. Raises :class:`ArtifactError` and :class:`UserError`.
    """
    folder = opened(where)
    try:
        if folder.has(artifacts.MANIFEST):
            return _stage(artifacts.open_artifact(folder, verify=verify), verify)
        if folder.has(SET_FILE):
            return _set(folder, verify)
        found = find_record(where, out)
        if found:
            return _run(*found, verify)
        held = folder.files()
    except ValueError as error:
        raise UserError(
            f"{scrub(where)!r} cannot be read as a folder or URI: {scrub(str(error))}",
            code="place-unreadable",
        ) from error
    if artifacts.ERROR in held:
        raise ArtifactError(
            f"the stage in {scrub(where)} did not finish; its error is in {artifacts.ERROR} there. "
            "Run its definition again to go on",
            code="stage-failed",
        )
    raise ArtifactError(
        f"nothing to show at {scrub(where)!r}: looked for {artifacts.MANIFEST}, {SET_FILE} and a run of that "
        f"name in {scrub(out)!r}; rayddl list shows what there is",
        code="nothing-to-show",
    )


def _stage(artifact: Artifact, verified: bool) -> Inspected:
    manifest = artifact.manifest
    files = _counted(len(artifact.files), artifact.bytes)
    head = {
        "folder": scrub(str(artifact.folder)),
        "fingerprint": artifact.fingerprint,
        "reads": ", ".join(f"{name} ({i['fingerprint'][:12]})" for name, i in manifest["inputs"].items()),
        "source": f"{_named(manifest['source'])}, seed {manifest['seed']}",
        "files": f"{files}, {'all hashes match' if verified else 'sizes match'}",
        "took": pace.duration(artifact.seconds),
        "made with": _versions(manifest.get("versions", {})),
        "plugins": _versions(manifest.get("plugins", {})),
    }
    blocks = {"settings": _settings(manifest["config"]), "summary": manifest["summary"]}
    title = f"{artifact.stage}: a stage of kind {artifact.kind}"
    return Inspected(title, _known(head), blocks, artifact.tables("result"), manifest)


def _versions(known: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in known.items() if version)


def _set(folder: Folder, verify: bool) -> Inspected:
    meta = folder.read_document(SET_FILE, documents.DistilledSetDocument, "make the set again")
    checked = _verified(folder, meta) if verify else ""
    _refuse_wrong_numbers(folder, meta)
    files = folder.files()
    head = {
        "folder": scrub(str(folder)),
        "classes": ", ".join(str(name) for name in meta.get("classes", [])),
        "files": _counted(len(files), sum(files.values())) + checked,
    }
    rest = {key: value for key, value in meta.items() if key not in ("classes", "files", "folders", "format")}
    return Inspected("a distilled set", head, {"set": rest}, {}, meta)


def _refuse_wrong_numbers(folder: Folder, meta: Mapping[str, Any]) -> None:
    from rayddl.data.distilled import KIND, DistilledSet

    if meta.get("format") == KIND.format and folder.has("set.safetensors"):
        DistilledSet.load(folder)


def _verified(folder: Folder, meta: Mapping[str, Any]) -> str:
    listed = meta.get("files", {})
    for name, entry in listed.items():
        if not folder.has(name):
            raise ArtifactError(
                f"{scrub(folder.path(name))} is missing; copy the whole set, or make it again",
                code="set-file-missing",
            )
        actual, expected = hashlib.sha256(folder.read(name)).hexdigest(), entry.get("sha256")
        if actual != expected:
            raise ArtifactError(
                f"{scrub(folder.path(name))} was altered: its sha256 is {actual}, {SET_FILE} says "
                f"{expected}; restore it, or make the set again",
                code="set-file-altered",
            )
    return f", the hash of {', '.join(listed)} matches" if listed else ", none with a hash"


def _run(out: Folder, file: str, verify: bool) -> Inspected:
    record = records.read(out, file)
    rows: list[Mapping[str, str]] = []
    tables: dict[str, Sequence[Mapping[str, str]]] = {"stages": rows}
    for name in record.get("order", record["stages"]):
        entry = record["stages"][name]
        folder = out.child(entry["folder"])
        state: str = artifacts.state(folder)
        if state == "done":
            artifact = artifacts.open_artifact(folder, fingerprint=entry["fingerprint"], verify=verify)
            tables |= artifact.tables(name)
        else:
            # The record says why a stage is not done; its state "running" may be outdated.
            state = entry["state"] if entry["state"] in ("failed", "interrupted") else state
        rows.append({"stage": name, "kind": entry["kind"], "state": state, "folder": entry["folder"]})
    head = {
        "record": scrub(out.path(file)),
        "from": str(record.get("file") or "Python"),
        "overrides": ", ".join(record.get("overrides", [])),
        "made with": f"rayddl {record.get('rayddl', '?')}",
        "checked": "all hashes match" if verify else "",
    }
    errors = {n: e["error"] for n, e in record["stages"].items() if e.get("error")}
    blocks = {"definition": record.get("definition"), "errors": errors}
    return Inspected(f"the run {record['name']}", _known(head), blocks, tables, record)


def _known(head: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in head.items() if value}


def _counted(files: int, size: int) -> str:
    return f"{files} file{'' if files == 1 else 's'}, {pace.size(size)}"


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    resources = config.get("resources")
    unset = isinstance(resources, dict) and all(value is None for value in resources.values())
    return {k: v for k, v in config.items() if k != "resources" or (v and not unset)}


def _named(source: Mapping[str, Any]) -> str:
    config = source["config"]
    place = f" in {config['root']}" if config.get("root") else ""
    return f"{config['name']}{place} ({config.get('space', 'normalise')})"


def _readable(value: Any) -> str:
    if isinstance(value, str):
        return "\n".join(f"  {line}" for line in value.splitlines())
    nested = isinstance(value, dict) and any(isinstance(item, dict | list) for item in value.values())
    # In PyYAML, None writes collections without nested ones on one line.
    style = None if nested else False
    text = yaml_text.dump(value, allow_unicode=True, default_flow_style=style, width=_YAML)
    return "\n".join(f"  {line}" for line in text.rstrip().splitlines())
