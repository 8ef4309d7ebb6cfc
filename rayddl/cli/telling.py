"""How a verb ends when something is wrong: a message, an exit code, and no traceback."""

from __future__ import annotations

import json
import re
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from rayddl.errors import RayddlError
from rayddl.scrub import scrub

if TYPE_CHECKING:
    from rayddl.pipeline.progress import Display

INTERRUPTED = 130
_USER_PART = re.compile(r"://[^/@\s]*:[^@\s]*@")


@contextmanager
def telling(display: Display | None = None, again: Sequence[str] = ()) -> Iterator[None]:
    """Turn errors inside the block into a message on standard error and an exit code.

    ``display`` may take the message over (as a JSON event). ``again`` is the command line that goes on
    where this one was interrupted. A request to terminate (a job that is stopped, a machine that is taken back)
    interrupts as Ctrl-C does.
    """
    before = _interrupted_by_sigterm()
    try:
        yield
    except KeyboardInterrupt as error:
        hint = f"; go on with:\n  {_command(again)}" if again else ""
        _end(error, f"interrupted; what was done so far is kept{hint}", INTERRUPTED, display)
    except RayddlError as error:
        _end(error, scrub(str(error)), error.exit_code, display)
    except BrokenPipeError:
        # Whoever read our output has gone: nothing is left to say, and nobody to say it to.
        sys.stderr.close()
        raise typer.Exit(1) from None
    except OSError as error:
        _end(error, scrub(str(error)), 1, display)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
        if display is not None:
            display.close()


def _interrupted_by_sigterm() -> Any:
    """Have SIGTERM raise what Ctrl-C raises; what stood there before, or ``None`` where that is not for us to say."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, signal.default_int_handler)


def emit_json(value: Any) -> None:
    """One JSON document on standard output."""
    typer.echo(json.dumps(value, indent=1, default=str))


def print_table(*parts: Any) -> None:
    """Rich renderables on standard output: in colour on a terminal, in full width in a pipe."""
    from rich.console import Console

    from rayddl.pipeline.tables import as_text

    console = Console(highlight=False)
    for part in parts:
        if console.is_terminal:
            console.print(part)
        else:
            typer.echo(as_text(part))


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """``text`` stands on the terminal, if standard error is one, while the block runs."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield
        return
    with console.status(text):
        yield


def _end(error: BaseException, message: str, code: int, display: Display | None) -> None:
    if display is None or not display.error(error, message, code):
        label = "stopped" if code == INTERRUPTED else "error"
        typer.secho(f"{label}: ", fg="yellow" if code == INTERRUPTED else "red", nl=False, err=True)
        typer.echo(message, err=True)
    raise typer.Exit(code) from None


def _command(words: Sequence[str]) -> str:
    return shlex.join(_USER_PART.sub("://***@", word) for word in words)
