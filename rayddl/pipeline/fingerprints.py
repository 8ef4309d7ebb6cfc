"""What a stage's output depends on: its fingerprint, with plugins and with files that no stage has made."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rayddl import plugins
from rayddl.config import registered
from rayddl.errors import ArtifactError
from rayddl.pipeline import artifacts, outside
from rayddl.pipeline.definition.load import Definition, Stage
from rayddl.stages.settings import StageConfig, without_resources
from rayddl.storage import Folder

SHOWN_DIGITS = 12
"""Number of digits of a fingerprint in a folder's name."""


def fingerprint(
    stages: Mapping[str, Stage],
    name: str,
    done: Mapping[str, str],
    source: str,
    definition: Definition,
    files: Mapping[str, str],
) -> str:
    """Return the hash of all that the stage's output depends on: no time, host or resources. ``files``: by place, the
    identity of those that no stage has made.
    """
    stage = stages[name]
    settings = without_resources(stage.config)
    for link, names in stage.links.items():
        settings[link] = [done[name] for name in names]
    parts = {
        "kind": stage.kind.name,
        "version": stage.kind.version,
        "stage": stage.name,
        "settings": settings,
        "source": source,
        "space": definition.source.space_key,
        "seed": definition.seed,
    }
    if stage.config.produces == "page":
        parts["run"] = [definition.name, definition.description]  # they are on it
    if stage.templates:
        parts["templates"] = [_template(stages[template], definition) for template in stage.templates]
    if changes := stage.config.revisions(definition.source):
        parts["revisions"] = list(changes)
    if files:
        parts["files"] = dict(files)
    if used := plugins_of(stage, stages):
        parts["plugins"] = used
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _template(stage: Stage, definition: Definition) -> dict[str, Any]:
    settings = without_resources(stage.config)
    parts = {
        "kind": stage.kind.name,
        "version": stage.kind.version,
        "stage": stage.name,
        "settings": settings,
    }
    if changes := stage.config.revisions(definition.source):
        parts["revisions"] = list(changes)
    return parts


def plugins_of(stage: Stage, stages: Mapping[str, Stage]) -> dict[str, str]:
    """Return the versions of the plugins that register the stage's kind or a name in its settings, by plugin."""
    named = [("kinds", each.kind.name) for each in (stage, *(stages[name] for name in stage.templates))]
    if plugins.active():
        for config in configs_of(stage, stages):
            named += registered(config)
    found = {owner for group, name in named if (owner := plugins.owner(group, name)) is not None}
    return {plugin.name: plugin.version for plugin in sorted(found, key=lambda plugin: plugin.name)}


def configs_of(stage: Stage, stages: Mapping[str, Stage]) -> list[StageConfig]:
    """The settings of the stage and of those that it runs itself, with every value that it tries."""
    templates = {name: stages[name].config for name in stage.templates}
    return [stage.config, *stage.config.varied(templates)]


def files_of(
    stage: Stage, stages: Mapping[str, Stage], out: Folder, printed: Callable[[Mapping[str, str]], str]
) -> dict[str, str]:
    """By place, the identity of the files that ``stage`` reads and no stage has made. Of places that have none any
    more, or cannot be read now, as the finished stage in ``out`` that was written last has read them; ``printed`` is
    the fingerprint of ``stage`` with given identities.

    Raises :class:`ArtifactError` for places that cannot be read and that no finished stage has read.
    """
    found = outside.identities(configs_of(stage, stages))
    there = {where: files for where, files in found.items() if isinstance(files, str) and files}
    lost = found.keys() - there.keys()
    if not lost:
        return there
    matching: dict[str, dict[str, str]] = {}
    for folder in folders_of(out, stage.name):
        try:
            manifest = artifacts.open_artifact(folder).manifest
            written = folder.modified(artifacts.MANIFEST)
        except (ArtifactError, OSError):
            continue
        read = manifest.get("read_files") or {}
        as_then = there | {where: files for where, files in read.items() if where in lost}
        if as_then != there and printed(as_then) == manifest["fingerprint"]:
            matching["" if written is None else written.isoformat()] = as_then
    if matching:
        return matching[max(matching)]
    for unreadable in found.values():
        if isinstance(unreadable, ArtifactError):
            raise unreadable
    return there


def folders_of(out: Folder, name: str) -> Iterator[Folder]:
    """The folders in ``out`` of stages with this name, whatever their fingerprint and state."""
    named = re.compile(rf"{re.escape(name)}-[0-9a-f]{{{SHOWN_DIGITS}}}")
    yield from (out.child(each) for each in out.folders() if named.fullmatch(each))
