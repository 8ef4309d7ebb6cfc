"""``rayddl init``: looks at images, chooses settings, writes the definition and checks it."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from rayddl.drafts import text
from rayddl.drafts.look import Look, look
from rayddl.drafts.suit import Method, Suited, suit
from rayddl.drafts.text import Duration
from rayddl.errors import UserError
from rayddl.pipeline import plan as plans
from rayddl.pipeline.definition import load as definitions
from rayddl.stages.runtime import machine


@dataclass(frozen=True)
class Draft:
    """A written definition and what it is based on."""

    file: Path
    look: Look
    suited: Suited
    duration: Duration
    command: str
    """The command line that runs it."""


def draft(
    path: str,
    to: str | None = None,
    *,
    ipc: int | None = None,
    size: int | None = None,
    method: Method | None = None,
    force: bool = False,
) -> Draft:
    """Write a definition for the images at ``path`` into ``to``; default: a file here, named like the folder.

    ``ipc``, ``size`` and ``method`` override the choice. The written file is loaded and planned, so it is valid.
    Raises :class:`UserError` if ``to`` exists and not ``force``, and the errors of :func:`rayddl.drafts.look.look` and
    :func:`rayddl.drafts.suit.suit`.
    """
    found = look(path)
    name = _name(to, path)
    file = Path(to or f"{name}.yaml")
    if file.exists() and not force:
        raise UserError(
            f"{file} exists. Give another file with --to, or overwrite it with --force.", code="file-exists"
        )
    gpu = bool(machine.gpu_bytes())
    suited = suit(found, gpu=gpu, ipc=ipc, size=size, method=method)
    took = text.duration(found, suited, gpu=gpu)
    command = f"rayddl run {shlex.quote(str(file))}"
    content = text.written(found, suited, name, took, command)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{file} cannot be written: {error.strerror}. Give another file with --to.",
            code="file-unwritable",
        ) from error
    plans.make(definitions.load(file), "runs")
    return Draft(file, found, suited, took, command)


def _name(to: str | None, path: str) -> str:
    """The run's name: that of the file to write, or of the folder or file of images."""
    raw = Path(to).stem if to else Path(path.rstrip("/") or "images").resolve().name.partition(".")[0]
    plain = re.sub(r"[^a-z0-9._-]+", "-", raw.casefold()).strip("-._")
    return plain or "images"
