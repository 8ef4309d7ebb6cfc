"""Judges a distilled set outside a run: what ``rayddl evaluate`` does."""

from __future__ import annotations

import importlib
import time
import uuid
from contextlib import nullcontext, suppress

from rayddl import interrupts
from rayddl.credentials import scrub
from rayddl.pipeline.display.base import Closing, Display, Ending, Hidden
from rayddl.pipeline.session import ray_session
from rayddl.pipeline.sets import find_set
from rayddl.stages.context import Result
from rayddl.storage import Folder

_NAME = "evaluate"


def judge_set(
    where: str,
    *,
    out: str = "runs",
    nets: tuple[str, ...] | None = None,
    seeds: int | None = None,
    epochs: int | None = None,
    root: str | None = None,
    observer: str | None = None,
    display: Display | None = None,
    address: str | None = None,
    num_cpus: int | None = None,
) -> Result:
    """Train students on the set at ``where`` by the protocol stored with it, and show the table.

    What is given replaces single settings of the protocol. Raises :class:`rayddl.errors.RayddlError`.
    """
    display = display or Hidden()
    folder = find_set(where, out)
    began = time.monotonic()
    ending: Ending = "failed"
    with ray_session(display, address, num_cpus) as ray:
        ray.reach({"--out": out})
        stage = importlib.import_module("rayddl.stages.evaluate.stage")
        progress = display.begin(_NAME)
        # A temporary folder of this machine is none of the cluster's other nodes.
        scratch = f".{_NAME}-{uuid.uuid4().hex[:8]}"
        shared = {"scratch": Folder(out).child(scratch)} if address else {}
        try:
            result: Result = stage.evaluate_set(
                folder,
                nets=nets,
                seeds=seeds,
                epochs=epochs,
                root=root,
                observer=observer,
                progress=progress,
                **shared,
            )
            ending = "done"
        except KeyboardInterrupt:
            interrupts.react()
            ending = "interrupted"
            raise
        finally:
            # With the terminal gone, what is raised stays what ended the command.
            with suppress(OSError) if ending == "interrupted" else nullcontext():
                display.end(_NAME, ending, time.monotonic() - began, {})
            if shared:
                Folder(out).clear(scratch)
    places = {"set": scrub(str(folder))}
    display.result(Closing({_NAME: result.table}, places, {"summary": dict(result.summary)}))
    return result
