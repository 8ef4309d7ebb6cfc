"""``rayddl evaluate``: evaluates a distilled set outside a run."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any

from rayddl import hosts, interrupts
from rayddl.credentials import scrub
from rayddl.errors import UserError
from rayddl.pipeline import artifacts, cautions, hub
from rayddl.pipeline.artifacts import ordered_json
from rayddl.pipeline.display.base import Closing, Display, Ending, Hidden
from rayddl.pipeline.plugging import Given, use
from rayddl.pipeline.session import ray_session
from rayddl.pipeline.sets import find_set, stage_of
from rayddl.plugins import names, unknown
from rayddl.stages.context import Result
from rayddl.stages.kinds import Kind, judges
from rayddl.storage import Folder

_NAME = "evaluate"


def judge_set(
    where: str,
    *,
    out: str = "runs",
    stage: str | None = None,
    nets: tuple[str, ...] | None = None,
    seeds: int | None = None,
    epochs: int | None = None,
    root: str | None = None,
    observer: str | Sequence[str] | None = None,
    display: Display | None = None,
    address: str | None = None,
    num_cpus: int | None = None,
    plugins: Sequence[Given] = (),
    allow_remote: bool = False,
) -> Result:
    """Train students on the set at ``where`` by the protocol stored with it; show and return the result, and keep it
    as JSON in ``evaluations/`` under ``out``.

    ``stage`` is as for :func:`rayddl.pipeline.sets.find_set`. ``nets``, ``seeds``, ``epochs``, ``root`` and
    ``observer`` replace single settings of the protocol. Contacts only hosts that the arguments name, with
    ``allow_remote`` also those that the set names. Raises :class:`rayddl.errors.RayddlError`.
    """
    display = display or Hidden()
    use(plugins)
    refuse_unknown_nets(nets or ())
    folder = find_set(where, out, stage)
    began = time.monotonic()
    ending: Ending = "failed"
    teachers = (observer,) if isinstance(observer, str) else tuple(observer or ())
    named = hosts.only(where, out, root, *teachers, allow=allow_remote)
    with named, ray_session(display, address, num_cpus) as ray:
        ray.reach({"--out": out})
        evaluate_set = _judge(folder)
        progress = display.begin(_NAME)
        # The other nodes of a cluster cannot read a temporary folder of this machine.
        scratch = f".{_NAME}-{uuid.uuid4().hex[:8]}"
        shared = {"scratch": Folder(out).child(scratch)} if address else {}
        try:
            result: Result = evaluate_set(
                folder,
                name=scrub(where),
                nets=nets,
                seeds=seeds,
                epochs=epochs,
                root=root,
                observer=teachers,
                progress=progress,
                **shared,
            )
            ending = "done"
        except KeyboardInterrupt:
            interrupts.react()
            ending = "interrupted"
            raise
        finally:
            # A closed terminal must not replace the exception that ended the command.
            with suppress(OSError) if ending == "interrupted" else nullcontext():
                display.end(_NAME, ending, time.monotonic() - began, {})
            if shared:
                Folder(out).clear(scratch)
    # The Hub's local cache is no place that a user knows.
    places = {"set": scrub(where if where.startswith(hub.SCHEME) else str(folder))}
    warnings = tuple(cautions.lines({_NAME: _kind(folder).cautions_after(result.summary)}))
    try:
        kept = {"place": places["set"], **result.summary, "warnings": list(warnings)}
        places["result"] = scrub(_kept(Folder(out), kept))
    except (OSError, ValueError) as error:
        display.note(f"the result could not be kept in {scrub(out)}: {scrub(str(error))}")
    display.result(Closing({_NAME: result.table}, places, {"summary": dict(result.summary)}, warnings))
    return result


def _kept(out: Folder, summary: Mapping[str, Any]) -> str:
    """Write a summary as JSON into a folder of evaluations under ``out``; the file's path."""
    into = out.child(artifacts.EVALUATIONS)
    name = f"{time.strftime('%Y-%m-%d-%H-%M-%S')}-{uuid.uuid4().hex[:4]}.json"
    into.write(name, ordered_json(scrub(dict(summary))))
    return into.path(name)


def refuse_unknown_nets(nets: Sequence[str]) -> None:
    """Raise :class:`UserError` for a network that is not registered, before Ray starts."""
    if nets:
        judges("")  # their settings register the networks that are part of rayddl
    for net in nets:
        if net not in names("nets"):
            raise UserError(f"--net {scrub(net)!r} {unknown('nets', net)}", code="unknown-net")


def _judge(folder: Folder) -> Callable[..., Result]:
    """Return ``evaluate_set`` of the kind that judges the set in ``folder``."""
    found: Callable[..., Result] = _kind(folder).module("stage").evaluate_set
    return found


def _kind(folder: Folder) -> Kind:
    """Return the kind that evaluated the set in ``folder``; else the first kind that can evaluate sets on their own."""
    stage = stage_of(folder)
    before = artifacts.open_artifact(stage).kind if stage else ""
    return next(kind for kind in judges(before) if hasattr(kind.module("stage"), "evaluate_set"))
