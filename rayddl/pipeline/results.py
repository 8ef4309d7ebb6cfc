"""The result of a run, for Python callers and for the last lines in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rayddl.credentials import scrub
from rayddl.errors import UserError
from rayddl.pipeline import cautions, notebook
from rayddl.pipeline.artifacts import Artifact
from rayddl.pipeline.display.base import Closing
from rayddl.pipeline.plan import Plan
from rayddl.stages import kinds
from rayddl.storage import split

SET = "set/set.json"
REPORT = "report.html"


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    plan: Plan
    artifacts: Mapping[str, Artifact]
    """Each stage's folder with its manifest, in the order they ran."""
    endings: Mapping[str, Literal["done", "cached"]]
    """``done`` for a stage that ran, ``cached`` for one that was finished before."""
    record: str
    """Path or URI of the run's record."""
    warnings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """By stage, what disappoints in its result, and what to change."""

    @property
    def folders(self) -> dict[str, str]:
        """Each stage's folder, as a path or URI."""
        return {name: str(artifact.folder) for name, artifact in self.artifacts.items()}

    @property
    def summaries(self) -> dict[str, Mapping[str, Any]]:
        """The summary of each stage."""
        return {name: artifact.summary for name, artifact in self.artifacts.items()}

    @property
    def tables(self) -> dict[str, tuple[Mapping[str, str], ...]]:
        """The rows of the stages that have a table; further tables of a stage are called ``stage: heading``."""
        every = [artifact.tables(name) for name, artifact in self.artifacts.items()]
        return {heading: rows for tables in every for heading, rows in tables.items()}

    @property
    def result_grids(self) -> dict[str, Any]:
        """Ray's ``ResultGrid`` of each search, by stage: all trials of all attempts, with their reports.

        Its best result is the best last report; the stage's summary has the best trial among those that ran to their
        end. Needs Ray, which is not started.
        """
        known = kinds.known()
        grids = {
            name: known[artifact.kind].result_grid(artifact.folder, artifact.summary)
            for name, artifact in self.artifacts.items()
            if artifact.kind in known
        }
        return {name: grid for name, grid in grids.items() if grid is not None}

    @property
    def sets(self) -> dict[str, str]:
        """Paths or URIs of the distilled sets, by the name of their stage.

        If another stage reads a set and stores it again, for example with its accuracy, only the later one
        is listed.
        """
        holding = {name for name, artifact in self.artifacts.items() if SET in artifact.files}
        reads = {stage.name: stage.stage.reads for stage in self.plan.stages}
        waiting, taken_up = [read for name in holding for read in reads[name]], set[str]()
        while waiting:
            name = waiting.pop()
            # Behind a deleted stage are those that it read.
            waiting += reads[name] if name not in self.artifacts and name not in taken_up else ()
            taken_up.add(name)
        last = [name for name in self.artifacts if name in holding and name not in taken_up]
        return {name: self.artifacts[name].folder.path("set") for name in last}

    @property
    def report(self) -> str | None:
        """Path or URI of the run's page; ``None`` if no stage wrote one."""
        pages = [a.folder.path(REPORT) for a in self.artifacts.values() if REPORT in a.files]
        return pages[-1] if pages else None

    def show(self) -> None:
        """Open the page in a browser, or in a notebook below the cell.

        Raises :class:`UserError` if no stage wrote a page, or if the page is not on this machine.
        """
        page = self.report
        if page is None:
            raise UserError(
                "the run has no page to show; add a stage of kind report, or of kind compare",
                code="run-without-page",
            )
        place, name = split(page)
        if place.local is None or not (place.local / name).exists():
            raise UserError(
                f"{scrub(page)} is not on this machine; copy it here and open it", code="page-not-local"
            )
        notebook.page(str(place.local / name))

    def _repr_html_(self) -> str:
        return notebook.html(self.plan.definition.name, self.tables, self.report)

    def closing(self) -> Closing:
        """Return the tables and paths that are shown at the end of the run."""
        sets = self.sets
        places = {"set" if len(sets) == 1 else f"set ({name})": path for name, path in sets.items()}
        if self.report:
            places["report"] = self.report
        places["record"] = self.record
        details = {
            "name": self.plan.definition.name,
            "stages": {
                name: {
                    "state": self.endings[name],
                    "folder": str(artifact.folder),
                    "seconds": artifact.seconds,
                    "summary": dict(artifact.summary),
                }
                for name, artifact in self.artifacts.items()
            },
        }
        return Closing(self.tables, scrub(places), details, tuple(cautions.lines(self.warnings)))
