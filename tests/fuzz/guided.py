"""Changes files of a format, and changes further those that reach new code: fuzzing that is guided by coverage.

    uv run --with atheris python -m tests.fuzz.guided images --minutes 10
    uv run python -m tests.fuzz.guided images FILE …    # reads files again, such as a finding

The formats are those of :mod:`tests.fuzz.formats`, and what holds for a file is what the other fuzzing tests check:
a value or one of rayddl's errors, soon, in little memory, and nothing else touched. The first file that breaks it is
kept in ``--findings``, with the traceback in the output, and ends the command with 77; put it into
``tests/fuzz/seeds/FORMAT``. Minutes are of the processor. Files that reached new code are kept in ``--corpus``, from
which the next call goes on.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

READ = ["rayddl", "PIL", "yaml"]
"""Python packages whose code guides."""
LONGEST = 2**17


def reader(read: Callable[[Path, bytes], None]) -> Callable[[bytes], None]:
    """``read`` in a new folder for each file, because files of one name are taken for known."""

    def test(data: bytes) -> None:
        with tempfile.TemporaryDirectory(prefix="guided-") as place:
            read(Path(place), data)

    return test


def guided(test: Callable[[bytes], None], name: str, minutes: float, corpus: Path, findings: Path) -> None:
    """Run until the minutes are over, or until a finding. Does not return."""
    import atheris  # type: ignore[import-not-found]

    began, runs = time.process_time(), 0

    def once(data: bytes) -> None:
        nonlocal runs
        used = (time.process_time() - began) / 60
        if used > minutes:
            print(f"{name}: {runs:,} files, {used:.1f} minutes of the processor, no finding", flush=True)
            os._exit(0)
        runs += 1
        test(data)

    findings.mkdir(parents=True, exist_ok=True)
    # Memory and time are watched in each test, with an alarm of its own.
    flags = [f"-max_len={LONGEST}", "-rss_limit_mb=0", "-handle_alrm=0", f"-artifact_prefix={findings}/"]
    atheris.Setup([name, *flags, str(corpus)], once)
    atheris.Fuzz()


def main() -> None:
    """Read the files, or make and read new ones."""
    parser = argparse.ArgumentParser(description="Fuzzing that is guided by coverage.")
    parser.add_argument("format")
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--findings", type=Path, default=Path("findings"))
    given = parser.parse_args()
    instrumented: Any = nullcontext()
    if not given.files:
        import atheris

        instrumented = atheris.instrument_imports(include=READ)
    with instrumented, tempfile.TemporaryDirectory() as scratch:
        from tests.fuzz.formats import FORMATS, kept

        if given.format not in FORMATS:
            parser.error(f"unknown format {given.format}; known: {', '.join(FORMATS)}")
        form = FORMATS[given.format]
        test = reader(form.read)
        for file in given.files:
            test(file.read_bytes())
            print(f"{file}: as promised")
        if given.files:
            return
        corpus: Path = given.corpus or Path(scratch) / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate([*form.files(), *kept(given.format)]):
            (corpus / f"whole-{number}").write_bytes(data)
            test(data)  # imports what is imported late
        guided(test, given.format, given.minutes, corpus, given.findings)


if __name__ == "__main__":
    sys.exit(main())
