"""Runs stages at the same time, each in a thread of this process; one that all others wait for in the main thread.

A stage starts when all stages that it reads are finished and the cluster has room for it, the first ones of the plan
before later ones; :mod:`rayddl.stages.runtime.room` defines room. Stages that need no Ray compute in this process, and
run one at a time, as do stages whose settings class says so.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rayddl import interrupts
from rayddl.errors import RayddlError
from rayddl.pipeline.plan import PlannedStage
from rayddl.threads import Interruptible

POLL_SECONDS = 1.0
"""Seconds between two checks for room: nodes may be added."""
STOP_SECONDS = 15.0
"""Time limit for interrupted stages to end."""
_RETRY_SECONDS = 0.1
_DRIVER = "this process"


class Room(Protocol):
    """The functions of :class:`rayddl.stages.runtime.room.Room`."""

    def begin(self, stage: str, asks: Callable[[Any], Any]) -> Any | None:
        """The lease of a stage that starts; ``None`` if the cluster has no room for it now."""

    def end(self, stage: str) -> None:
        """Free what the stage has."""

    def hand_out(self) -> None:
        """Divide what is free among the running stages."""


@dataclass
class Schedule:
    """Stages that are left to run."""

    waiting: list[PlannedStage]
    """The stages that have not started, in the order of the plan."""
    finished: Container[str]
    """The names of finished stages; ``run`` adds to them."""
    run: Callable[[PlannedStage, Any], None]
    """Runs a stage with its lease, in a thread. A :class:`RayddlError` ends this stage only, any other error all."""
    room: Room | None
    """``None`` if Ray is not used."""
    note: Callable[[str], None]
    failed: dict[str, RayddlError] = field(default_factory=dict)
    """The errors of failed stages, by name."""
    _threads: dict[str, tuple[Interruptible, str]] = field(default_factory=dict)
    _alone: str = ""
    """The stage that runs in the main thread."""
    _ended: queue.SimpleQueue[tuple[str, BaseException | None]] = field(default_factory=queue.SimpleQueue)

    @property
    def running(self) -> list[str]:
        """The names of the running stages."""
        return [*self._threads, *([self._alone] if self._alone else [])]

    def go(self) -> None:
        """Run all stages but those that read a failed one, which remain in :attr:`waiting`."""
        try:
            self._start()
            while self._threads:
                failure = self._ending()
                self._start()
                if failure is not None and self._threads:
                    self.note(str(failure))
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                interrupts.react()
            self._stop()
            raise

    def _start(self) -> None:
        """Start every stage that can run now."""
        starting = []
        turns = {turn for _, turn in self._threads.values() if turn}
        for planned in self.waiting:
            turn = _turn(planned)
            if turn in turns or not all(read in self.finished for read in planned.stage.reads):
                continue
            lease = None
            if self.room is not None and planned.stage.kind.needs_ray:
                lease = self.room.begin(planned.name, planned.stage.config.asks)
                if lease is None:
                    continue
            turns |= {turn} - {""}
            starting.append((planned, lease, turn))
        if self.room is not None:
            self.room.hand_out()
        if not self._threads and len(starting) == 1 and self._all_wait_for(starting[0][0].name):
            self._run_alone(*starting[0][:2])
            return
        for planned, lease, turn in starting:
            self.waiting.remove(planned)
            thread = Interruptible(self._work(planned, lease), f"stage {planned.name}")
            self._threads[planned.name] = thread, turn
            # The system delivers a signal to any thread that does not mask it; only the main one acts on it.
            with interrupts.unheard():
                thread.start()

    def _all_wait_for(self, name: str) -> bool:
        """True if no waiting stage could start before the stage ``name`` has finished."""
        behind = {name}
        for planned in self.waiting:  # a stage stands after those that it reads
            if planned.name == name or behind & set(planned.stage.reads):
                behind.add(planned.name)
        return len(behind) == len(self.waiting)

    def _run_alone(self, planned: PlannedStage, lease: Any) -> None:
        """Run a stage in this thread, where calls into Ray are interrupted at once, and start what waits for it."""
        self.waiting.remove(planned)
        self._alone = planned.name
        try:
            self.run(planned, lease)
        except RayddlError as error:
            self.failed[planned.name] = error
        if self.room is not None:
            self.room.end(planned.name)
        self._alone = ""
        self._start()

    def _work(self, planned: PlannedStage, lease: Any) -> Callable[[], None]:
        def work() -> None:
            error: BaseException | None = None
            try:
                self.run(planned, lease)
            except BaseException as raised:  # passed on to the scheduling thread
                error = raised
            self._ended.put((planned.name, error))

        return work

    def _ending(self) -> RayddlError | None:
        """Wait for a stage to end, and return the error of a failed one; ``None`` also if none ended for a while."""
        try:
            name, error = self._ended.get(timeout=POLL_SECONDS)
        except queue.Empty:
            return None
        thread, _ = self._threads.pop(name)
        thread.join()
        if self.room is not None:
            self.room.end(name)
        if isinstance(error, RayddlError):
            self.failed[name] = error
            return error
        if error is not None:
            raise error
        return None

    def _stop(self) -> None:
        """Interrupt the running stages, and wait for them."""
        deadline = time.monotonic() + STOP_SECONDS
        while alive := [thread for thread, _ in self._threads.values() if thread.is_alive()]:
            if time.monotonic() > deadline:
                return
            for thread in alive:
                thread.interrupt()
            alive[0].join(_RETRY_SECONDS)

    def missing(self) -> dict[str, Sequence[str]]:
        """The stages that did not run, each with the stages that it reads and that are not finished."""
        return {
            planned.name: [read for read in planned.stage.reads if read not in self.finished]
            for planned in self.waiting
        }

    def failure(self, order: Sequence[str]) -> RayddlError | None:
        """The error to raise at the end, ``None`` if no stage failed; ``order`` is that of the stages."""
        errors = [self.failed[name] for name in order if name in self.failed]
        if len(errors) < 2:
            return errors[0] if errors else None
        text = "\n".join(str(error) for error in errors)
        return type(errors[0])(f"{len(errors)} stages failed:\n{text}", code=errors[0].code)


def _turn(planned: PlannedStage) -> str:
    """What the stage shares with others that do not run at the same time; empty if there is nothing."""
    return planned.stage.config.one_at_a_time or ("" if planned.stage.kind.needs_ray else _DRIVER)
