"""``kind: tune``: a search for another stage's best settings, and their test on fresh seeds."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from rayddl.stages.context import Context, Progress, Result, Silent
from rayddl.stages.runtime import cluster, slots, workers
from rayddl.stages.runtime.sizes import Share
from rayddl.stages.tune import engine, outcome, plan, result_grid
from rayddl.stages.tune.outcome import Winner
from rayddl.stages.tune.settings import TuneConfig, tunable_of
from rayddl.stages.tune.store import MADE, WORK, Row, TrialStore
from rayddl.stages.tune.trial import Trials, Work
from rayddl.storage import Folder


def run(config: TuneConfig, context: Context) -> Result:
    """Search, or resume a search, and write the best settings and the best trial's output."""
    began = time.perf_counter()
    cluster.start()
    search = plan.make(config, context.templates)
    share = cluster.spread(config.resources, units=search.samples, fill=True)
    work = Work(search, _trials(config, context), _absolute(context.out), share.threads)
    rows = engine.run(work, share, context.progress, config.all_callbacks)
    best = outcome.best_of(search, rows.values())
    assert best is not None  # the engine refuses a search without a finite metric
    winner = _Proof(work, share, context.progress, config.held_out).of(best, rows[0])
    best = winner.best
    outcome.write_tables(context.out, search, list(rows.values()))
    result_grid.write(context.out, search.metric, rows.values())
    _leave(work, context, best.number)
    outcome.write_best(
        config, context, search, share, winner, work.make.pinned(best.settings, best.iteration)
    )
    summary = outcome.summary(config, context, search, rows, winner)
    table = outcome.table(search, rows, winner)
    context.progress.note(outcome.in_words(search, rows))
    return Result({**summary, "seconds": time.perf_counter() - began}, table, leftovers=(WORK,))


def _trials(config: TuneConfig, context: Context) -> Trials:
    """The factory of the template's trials, which its kind declares."""
    module, _, function = tunable_of(context.templates[config.of]).trials.partition(":")
    make: Callable[..., Trials] = getattr(importlib.import_module(module), function)
    as_template = replace(context, stage=config.of, progress=Silent(), templates={})
    return make(config, context.templates, as_template, _absolute(context.out))


def _absolute(folder: Folder) -> Folder:
    return Folder(str(folder.local)) if folder.local is not None else folder


@dataclass
class _Proof:
    """Runs after the search that test its outcome."""

    work: Work
    share: Share
    progress: Progress
    students: int

    def __post_init__(self) -> None:
        self._packed = cluster.packed(self.work)

    def of(self, best: Row, own: Row) -> Winner:
        """The winner and the template's own settings at full length, with their metrics on fresh seeds."""
        with workers.opened(self.share, "outcome of the search", note=self.progress.note) as free:
            own = self._finished(free, best, own)
            if best.number == own.number and own.sound:
                best = own  # its output at full length has replaced the earlier one
            if self.share.gpus:  # these processes already have GPUs
                return self._judged(free, best, own)
        share = replace(self.share, num_cpus=min(1.0, self.share.num_cpus))
        with workers.opened(share, "held-out student", note=self.progress.note) as free:
            return self._judged(free, best, own)

    def _finished(self, free: workers.Workers, best: Row, own: Row) -> Row:
        """Have the winner write its output, run the template's own settings to the end if the scheduler stopped them
        early, and return the row of the latter.
        """
        units = [(best, False)]
        if own.ended not in ("diverged", "failed"):
            units.append((own, True))
        # If the winner is the template's own trial, its output so far is kept in case it diverges later.
        rounds = [[unit] for unit in units] if best.number == own.number else [units]
        self.progress.update(0, 1, "running the template's own settings to the end")

        def work(unit: tuple[Row, bool]) -> slots.Work:
            row, to_its_end = unit
            return (engine.finish, self._packed, row, to_its_end)

        for units in rounds:
            for (_, to_its_end), row in free.each(
                units, work, lambda unit: f"trial {unit[0].number} to its end"
            ):
                own = row if to_its_end else own
        return own

    def _judged(self, free: workers.Workers, best: Row, own: Row) -> Winner:
        """The winner, with the metrics of both trials' outputs on each of the fresh seeds."""
        rows = {"best settings": best, **({"template's own settings": own} if own.sound else {})}
        units = [(who, seed) for who in rows for seed in range(self.students)]
        found: dict[tuple[str, int], float] = {}

        def work(unit: tuple[str, int]) -> slots.Work:
            row = rows[unit[0]]
            return (engine.held_out, self._packed, row.number, row.settings, unit[1])

        for unit, value in free.each(units, work, lambda unit: f"held-out student {unit[1]}, {unit[0]}"):
            found[unit] = value
            self.progress.update(len(found), len(units), f"{unit[0]}, fresh seeds: {100 * value:.1f} %")
        judged = [[found[who, seed] for seed in range(self.students)] for who in rows]
        return Winner(best, own, judged[0], judged[1] if own.sound else [])


def _leave(work: Work, context: Context, number: int) -> None:
    """Copy the winner's output into the stage's folder."""
    made = TrialStore(work.out).at_work(number).child(MADE)
    names = made.files()
    # The files that mark a set or an observer as complete are copied last.
    last = [name for name in names if name.endswith(("set.json", "observer.json"))]
    for name in (*(n for n in names if n not in last), *last):
        context.out.write(name, made.read(name))
