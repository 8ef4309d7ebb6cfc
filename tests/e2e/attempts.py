"""A command that is interrupted by signals and started again, on one folder."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests import warm

PATIENCE = 280.0
"""Seconds in which a run has to reach any point, and to end, on a busy machine too."""
MARK = "RAYDDL_TEST_RUN"
COMMAND = """
import signal, sys
# What runs in the background of a script ignores SIGINT, and what nohup runs SIGHUP.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from rayddl.cli import main
main(sys.argv[1:])
"""


@dataclass
class Attempts:
    """The command, started again and again on one folder."""

    folder: Path
    definition: Path
    settings: tuple[str, ...] = ()
    """``STAGE.KEY=VALUE``, for ``--set``."""
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    printed: str = ""
    """What the last attempt has printed."""

    def interrupted(self, when: Callable[[], bool], *how: signal.Signals) -> int:
        """Start the command, send the signals once ``when`` holds, and wait for its end; its exit code."""
        process, log = self._started()
        deadline = time.monotonic() + PATIENCE
        self.printed = ""
        while not when():
            self.printed = log.read_text(encoding="utf-8", errors="replace")
            assert process.poll() is None, self.printed[-3000:]
            assert time.monotonic() < deadline, self.printed[-3000:]
            time.sleep(0.02)
        for number in how:
            # To its process group, as terminals and schedulers do.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            time.sleep(0.2)
        code = process.wait(PATIENCE)
        self.printed = log.read_text(encoding="utf-8", errors="replace")
        return code

    def finished(self) -> int:
        """Start the command and wait for its end; its exit code."""
        process, log = self._started()
        code = process.wait(PATIENCE)
        self.printed = log.read_text(encoding="utf-8", errors="replace")
        return code

    def _started(self) -> tuple[subprocess.Popen[bytes], Path]:
        log = self.folder / "log.txt"
        words = [word for text in self.settings for word in ("--set", text)]
        line = [sys.executable, "-c", COMMAND, "run", str(self.definition), "--num-cpus", "2", *words]
        with log.open("wb") as out:
            return warm.Popen(
                line,
                cwd=self.folder,
                # The titles that Ray's processes give themselves otherwise overwrite the mark.
                env={**os.environ, MARK: self.mark, "SPT_NOENV": "1"},
                stdout=out,
                stderr=out,
                start_new_session=True,
            ), log

    def shows(self, text: str) -> Callable[[], bool]:
        """Whether the attempt has printed ``text``."""
        return lambda: text in self.printed

    def recorded(self) -> bool:
        """Whether there is a record of the run, which is written before anything starts, after the plan is shown."""
        return self.record.exists()

    @property
    def record(self) -> Path:
        """The run's record."""
        return self.folder / "runs" / f"{self.definition.stem}.run.json"

    def wrote(self, stage: str, pattern: str) -> Callable[[], bool]:
        """Whether the stage's folder has a whole file of that pattern."""
        return lambda: self.file(stage, pattern) is not None

    def file(self, stage: str, pattern: str) -> Path | None:
        """The first whole file of that pattern in the stage's folder."""
        found = sorted(self.folder.glob(f"runs/{stage}-*/{pattern}"))
        return next((path for path in found if ".tmp-" not in path.name), None)

    def states(self) -> dict[str, str]:
        """The stages' states in the run's record."""
        record = json.loads(self.record.read_text(encoding="utf-8"))
        return {name: entry["state"] for name, entry in record["stages"].items()}

    def left(self) -> list[str]:
        """The processes of any attempt that are still there."""
        importlib.import_module("ray")  # psutil comes with it
        psutil = importlib.import_module("psutil")
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                alive = process.status() != psutil.STATUS_ZOMBIE
                if alive and process.environ().get(MARK) == self.mark:
                    found.append(" ".join(process.cmdline()))
        return found
