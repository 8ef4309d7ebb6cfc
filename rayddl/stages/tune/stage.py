"""``kind: tune``: a search for another stage's best settings, and their test on held-out seeds."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from rayddl.stages.context import Context, Progress, Result, Silent
from rayddl.stages.runtime import cluster, workers
from rayddl.stages.runtime.sizes import Share
from rayddl.stages.tune import engine, outcome, plan
from rayddl.stages.tune.outcome import Winner
from rayddl.stages.tune.settings import TuneConfig, tunable_of
from rayddl.stages.tune.space import Settings
from rayddl.stages.tune.store import MADE, WORK, Book, Row
from rayddl.stages.tune.trial import Trials, Work
from rayddl.storage import Folder


def run(config: TuneConfig, context: Context) -> Result:
    """Search, or resume a search, and write the best settings and the best trial's output."""
    began = time.perf_counter()
    cluster.start()
    search = plan.make(config, context.templates)
    share = cluster.spread(config.resources, units=search.samples, fill=True)
    work = Work(search, _trials(config, context), _absolute(context.out), share.threads)
    rows = engine.run(work, share, context.progress, tensorboard=config.tensorboard)
    best = outcome.best_of(search, rows.values())
    assert best is not None  # the engine refuses a search without a finite metric
    proof = _Proof(work, share, context.progress, config.held_out)
    proof.leave(best)
    own = proof.at_full_length(rows[0])
    judged = {"best": proof.held_out(best), "own": proof.held_out(own) if own.sound else []}
    winner = Winner(best, own, judged["best"], judged["own"])
    outcome.write_tables(context.out, search, list(rows.values()))
    _leave(work, context, best.number)
    outcome.write_best(
        config, context, search, share, winner, work.make.pinned(best.settings, best.iteration)
    )
    context.out.clear(WORK)
    summary = outcome.summary(config, context, search, rows, winner)
    table = outcome.table(search, rows, winner)
    context.progress.note(outcome.in_words(search, rows))
    return Result({**summary, "seconds": time.perf_counter() - began}, table)


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

    def leave(self, best: Row) -> None:
        """Have the winner write its output into its folder."""
        self._finish(best.number, best.settings, to_its_end=False)

    def at_full_length(self, own: Row) -> Row:
        """The row of the template's own settings, run to the end if the scheduler stopped them early."""
        if own.ended in ("diverged", "failed"):
            return own
        self.progress.update(0, 1, "running the template's own settings to the end")
        return self._finish(own.number, own.settings, to_its_end=True)

    def _finish(self, number: int, settings: Settings, *, to_its_end: bool) -> Row:
        with workers.opened(self.share, "trial", note=self.progress.note) as free:
            row: Row = free.one(
                (engine.finish, self._packed, number, settings, to_its_end), f"trial {number} to its end"
            )
        return row

    def held_out(self, row: Row) -> list[float]:
        """The metric of a trial's output with each of the held-out seeds."""
        who = "best settings" if row.number else "template's own settings"
        done: dict[int, float] = {}
        share = replace(self.share, num_cpus=min(1.0, self.share.num_cpus))

        def work(seed: int) -> workers.Work:
            return (engine.held_out, self._packed, row.number, row.settings, seed)

        with workers.opened(share, "held-out student", note=self.progress.note) as free:
            for seed, value in free.each(range(self.students), work, lambda s: f"held-out student {s}"):
                done[seed] = value
                self.progress.update(len(done), self.students, f"{who}, held-out seeds: {100 * value:.1f} %")
        return [done[seed] for seed in sorted(done)]


def _leave(work: Work, context: Context, number: int) -> None:
    """Copy the winner's output into the stage's folder."""
    made = Book(work.out).at_work(number).child(MADE)
    names = made.files()
    # The files that mark a set or an observer as complete are copied last.
    last = [name for name in names if name.endswith(("set.json", "observer.json"))]
    for name in (*(n for n in names if n not in last), *last):
        context.out.write(name, made.read(name))
