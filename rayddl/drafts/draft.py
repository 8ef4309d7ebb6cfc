"""``rayddl init``: looks at images, asks the kinds for settings, writes the definition and checks it."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayddl.data.sources.path_contents import PathContents, read_contents
from rayddl.drafts import text
from rayddl.errors import UserError
from rayddl.pipeline import cautions, estimating
from rayddl.pipeline import plan as plans
from rayddl.pipeline.definition import load as definitions
from rayddl.pipeline.estimating import duration
from rayddl.plugins import suggestion
from rayddl.stages.drafting import Draft, DraftRequest
from rayddl.stages.kinds import known
from rayddl.stages.runtime import machine
from rayddl.stages.speed import Speed


@dataclass(frozen=True)
class Written:
    """A written definition and what it is based on."""

    file: Path
    contents: PathContents
    method: str
    """The kind that makes the set."""
    reason: str
    draft: Draft
    command: str
    """The command line that runs it."""
    takes: str
    """About how long that takes on this machine, in all and stage by stage; empty if it is unknown."""
    warnings: tuple[str, ...]
    """What the images let expect of its results, each with what to change."""


def methods() -> dict[str, Any]:
    """The modules ``draft`` of the kinds that can propose settings, by kind."""
    found = {name: kind.optional("draft") for name, kind in known().items()}
    return {name: module for name, module in found.items() if module is not None}


def draft(
    path: str,
    to: str | None = None,
    *,
    ipc: int | None = None,
    size: int | None = None,
    method: str | None = None,
    force: bool = False,
    follow_links: bool = False,
) -> Written:
    """Write a definition for the images at ``path`` into ``to``; default: a file here, named like the folder.

    ``ipc``, ``size`` and ``method``, a kind, override the choice. With ``follow_links``, links may lead out of
    ``path``. The written file is loaded and planned, so it is valid. Raises :class:`UserError` if ``to`` exists and
    not ``force``, for an unknown ``method`` and an ``ipc`` above the smallest class, and the errors of
    :func:`rayddl.data.sources.path_contents.read_contents`.
    """
    able = methods()
    papers = {name: kind for kind, module in able.items() for name in getattr(module, "ALSO_CALLED", ())}
    method = papers.get((method or "").lower(), method)
    if method is not None and method not in able:
        raise UserError(
            f"--method {method!r} is none that settings can be written for; "
            f"{suggestion(method.lower(), able, 'methods')}",
            code="unknown-method",
        )
    found, name = read_contents(path, follow_links=follow_links), _name(to, path)
    file = Path(to or f"{name}.yaml")
    if file.exists() and not force:
        raise UserError(
            f"{file} exists. Give another file with --to, or overwrite it with --force.", code="file-exists"
        )
    gpu = bool(machine.gpu_bytes())
    half = not gpu and Speed.of(machine.cpu_text(), ()).half > 1
    request = DraftRequest(found, gpu, half, ipc, size)
    chosen = method or max(able, key=lambda kind: able[kind].suits(request)[0])
    made: Draft = able[chosen].draft(request)
    command = f"rayddl run {shlex.quote(str(file))}"
    _write(file, text.written(found, made, name, command))
    expected = estimating.estimate(plans.make(definitions.load(file), "runs"))
    takes, warnings = _takes(expected), tuple(cautions.lines(expected.warnings))
    _write(file, text.written(found, made, name, command, takes))
    return Written(file, found, chosen, able[chosen].suits(request)[1], made, command, takes, warnings)


def _write(file: Path, content: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{file} cannot be written: {error.strerror}. Give another file with --to.",
            code="file-unwritable",
        ) from error


def _takes(found: estimating.Estimates) -> str:
    """How long a plan takes on this machine: ``12 min: experts ~2 min, ...``."""
    if found.seconds is None:
        return ""
    each = [f"{name} {duration(one.seconds)}" for name, one in found.stages.items() if one and one.seconds]
    return f"{duration(found.seconds).lstrip('~')}: {', '.join(each)}"


def _name(to: str | None, path: str) -> str:
    """The run's name: that of the file to write, or of the folder or file of images."""
    raw = Path(to).stem if to else Path(os.path.abspath(path.rstrip("/") or "images")).name.partition(".")[0]
    return re.sub(r"[^a-z0-9._-]+", "-", raw.casefold()).strip("-._") or "images"
