"""Estimates of work, memory and storage of the stages that will run, on this machine.

Each stage kind makes its own estimate; this module collects and shows them. Nothing is started on a cluster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from rayddl.data.sources.refusals import bad_images_rule
from rayddl.errors import ArtifactError
from rayddl.pipeline import cautions, records, reusable
from rayddl.pipeline.display.pace import count
from rayddl.pipeline.plan import Plan, PlannedStage
from rayddl.pipeline.tables import rows_table

if TYPE_CHECKING:
    from rayddl.stages.estimates import Estimate, Machine, Outlook, Stages


@dataclass(frozen=True)
class Estimates:
    """The estimate of each stage that will run, in the order they run."""

    machine: Machine
    stages: Mapping[str, Estimate | None]
    """``None`` for a kind without an estimate."""
    warnings: Mapping[str, Sequence[str]]
    """By stage, what will disappoint and what to change; stages without warnings are left out."""
    seconds: float | None = None
    """About how long a run of these stages takes on this machine; ``None`` if a stage's time is unknown."""
    price: float | None = None
    """Money for an hour of a GPU; for an hour of the machine if it has no GPU."""
    remarks: Sequence[str] = ()
    """What was noticed about the source."""

    @property
    def cost(self) -> float | None:
        """Money for the run; ``None`` without a price, or if its time is unknown."""
        if self.price is None or self.seconds is None:
            return None
        return self.price * max(1, len(self.machine.gpus)) * self.seconds / 3600

    def to_json(self, plan: Plan) -> dict[str, Any]:
        """Return the plan with its estimates, as JSON values."""
        planned = plan.to_json()
        for stage in planned["stages"]:
            found = self.stages.get(stage["stage"])
            stage["estimate"] = None if found is None else found.to_json()
            stage["warnings"] = list(self.warnings.get(stage["stage"], ()))
        whole = {"seconds": self.seconds, **({} if self.price is None else {"cost": self.cost})}
        remarks = {"remarks": list(self.remarks)} if self.remarks else {}
        return {**planned, **whole, **remarks, "machine": self.machine.to_json()}

    def __rich__(self) -> RenderableType:
        """Return a line about the machine, a row for each stage, and the notes."""
        machine, known = self.machine, {name: e for name, e in self.stages.items() if e is not None}
        gpus = f"{len(machine.gpus)} GPUs" if machine.gpus else "no GPU"
        head = f"expected on this machine: {machine.cpus} CPUs, {_size(machine.memory)} free, {gpus}"
        notes = [f"{name}: {note}" for name, found in known.items() for note in found.notes]
        if any(found.memory and not found.measured for found in known.values()):
            notes.append(
                "memory is the peak of each worker, ~ an estimate by formula; with --measure a matching step is tried"
            )
        notes.extend((*self._whole(), *self.remarks))
        rows = [{"stage": name, **_expected(found)} for name, found in self.stages.items()]
        shown = [Text(f"warning: {line}", "yellow") for line in cautions.lines(self.warnings)]
        return Group(
            Text(f"\n{head}", "dim"), rows_table(rows), *(Text(note, "dim") for note in notes), *shown
        )

    def _whole(self) -> Iterator[str]:
        """Yield how long a run takes, and what it costs."""
        guess = self.machine.speed.guess
        unsure = (
            f"a guess, since the speed of {guess} is not known"
            if guess
            else "within a factor of 2 if nothing else runs here"
        )
        if self.seconds is not None:
            yield f"in all {duration(self.seconds)}, {unsure}"
        elif self.stages:
            yield f"how long it takes is unknown: {', '.join(self._untimed())} cannot be estimated"
        if self.cost is not None:
            what = f"{len(self.machine.gpus)} GPUs" if self.machine.gpus else "this machine"
            yield f"price {self.cost:,.2f}, at {self.price:g} an hour of {'a GPU' if self.machine.gpus else what}"

    def _untimed(self) -> list[str]:
        return [name for name, found in self.stages.items() if found is None or found.seconds is None]


def duration(seconds: float) -> str:
    """Return about ``seconds`` as ``~40 s``, ``~12 min`` or ``~3.5 h``."""
    if seconds < 90:
        return f"~{max(5, round(seconds / 5) * 5)} s"
    if seconds < 5400:
        return f"~{seconds / 60:.0f} min"
    hours = seconds / 3600
    return (
        f"~{hours:.1f} h" if hours < 10 else f"~{hours:,.0f} h" if hours < 72 else f"~{hours / 24:,.0f} days"
    )


def _expected(found: Estimate | None) -> dict[str, str]:
    if found is None:
        return {"work": "?"}
    peak = "?" if found.memory is None else f"{'' if found.measured else '~'}{_size(found.memory)}"
    return {
        "takes": "?" if found.seconds is None else duration(found.seconds),
        "work": found.work,
        "at once": str(found.at_once),
        f"{'GPU ' if found.device == 'GPU' else ''}memory": peak,
        "written": "?" if found.written is None else f"~{_size(found.written)}",
    }


def _size(count: int) -> str:
    from rayddl.stages.estimates import shown

    return shown(count)


def estimate(plan: Plan, *, measure: bool = False, price: float | None = None) -> Estimates:
    """Return the estimates of all stages of ``plan`` that are not done.

    ``price`` is that of an hour of a GPU, or of the machine if it has none. With ``measure``, kinds that can measure
    run one step in another process, which takes about a minute.
    Raises :class:`~rayddl.errors.SourceError` if the images cannot be listed.
    """
    from rayddl.stages.kinds import outlook

    definition = plan.definition
    configs = {stage.name: stage.config for stage in definition.stages}
    with plan.known.used():
        view = outlook(definition.source)
        found = {
            planned.name: _remaining(plan, planned, configs, view, measure=measure)
            for planned in plan.chosen
            if planned.state != "done"
        }
        remarks = tuple(_remarks(view))
    seconds = whole_seconds(plan, found)
    return Estimates(view.machine, found, cautions.before(plan, view), seconds, price, remarks)


def _remaining(
    plan: Plan, planned: PlannedStage, configs: Stages, view: Outlook, *, measure: bool
) -> Estimate | None:
    """The estimate of a stage, in which the time is that of the work that earlier runs have not done."""
    from rayddl.stages.speed import STAGE

    kind, config = planned.stage.kind, planned.stage.config
    whole = kind.estimate(config, configs, view, measure=measure)
    if whole is None or whole.seconds is None:
        return whole
    if made := reusable.units_made(plan, planned):
        left = getattr(config, config.unit_count) - made
        rest = (
            kind.estimate(config.model_copy(update={config.unit_count: left}), configs, view)
            if left
            else None
        )
        seconds = STAGE if rest is None or rest.seconds is None else rest.seconds
        return replace(whole, seconds=seconds, work=f"{whole.work}, {made} made already")
    done, total = _progress(plan, planned)
    if not done or not whole.counted:
        return whole
    seconds = STAGE + max(0.0, whole.seconds - STAGE) * max(0.0, 1 - done / total)
    return replace(whole, seconds=seconds, work=f"{whole.work}, {count(done, total)} done")


def _progress(plan: Plan, planned: PlannedStage) -> tuple[float, float]:
    """Units done and all units of a partial stage, by the run's record; (0, 1) where it does not say."""
    if planned.state == "partial":
        with suppress(ArtifactError, OSError):
            entry = records.read(plan.out, f"{plan.definition.name}{records.SUFFIX}")["stages"].get(
                planned.name, {}
            )
            progress = entry.get("progress") or {}
            done, total = progress.get("done"), progress.get("total")
            if entry.get("folder") == planned.folder_name and done and total:
                return min(float(done), float(total)), float(total)
    return 0.0, 1.0


def _remarks(view: Outlook) -> Iterator[str]:
    """Yield a sentence on unreadable images among the few whose headers the outlook needs."""
    seen, source = view.source_summary, view.source
    if seen.unreadable:
        yield (
            f"source: {seen.unreadable} of {seen.looked_at} images looked at cannot be read; "
            + bad_images_rule(source.max_bad_fraction)
        )


def whole_seconds(plan: Plan, stages: Mapping[str, Estimate | None]) -> float | None:
    """Return the time of a run: its longest chain of stages, or the work of all of them if that fills the machine."""
    from rayddl.stages.speed import START

    chain: dict[str, float] = {}
    work = START
    for planned in plan.chosen:
        found = stages.get(planned.name)
        if planned.name not in stages:
            continue
        if found is None or found.seconds is None:
            return None
        chain[planned.name] = found.seconds + max(
            (chain.get(name, 0.0) for name in planned.stage.reads), default=0.0
        )
        work += found.seconds * found.busy
    return max(START + max(chain.values()), work) if chain else 0.0
