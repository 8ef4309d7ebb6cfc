"""Turns errors of a command into a message and an exit code, without a traceback."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from rayddl import interrupts
from rayddl.credentials import scrub
from rayddl.errors import RayddlError
from rayddl.escapes import visible

if TYPE_CHECKING:
    from rayddl.pipeline.display.base import Display

INTERRUPTED = interrupts.EXIT_CODE
FINISH_SECONDS = 20.0
"""Seconds that Ray may take to stop after an interrupt before its processes are killed."""


@contextmanager
def reporting_errors(
    display: Display | None = None, again: Sequence[str] = (), left: str = ""
) -> Iterator[None]:
    """Turn errors inside the block into a message on standard error and an exit code.

    ``display`` may show the message itself, for example as a JSON event. ``again`` is the command line that resumes
    an interrupted one; ``left`` says what is left of one that cannot be resumed. Ctrl-C, SIGTERM (stopped job,
    preempted machine) and SIGHUP (closed terminal) all interrupt; Ray is stopped after the message.
    """
    message = f"interrupted; {left}" if left else "interrupted"
    if again:
        message += f"; what was done so far is kept; resume with:\n  {_command(again)}"
    try:
        with interrupts.at_last(lambda: _say(message, INTERRUPTED)), interrupts.raised():
            yield
    except KeyboardInterrupt as error:
        interrupts.react()
        # If the terminal was closed, so were standard output and error.
        with suppress(OSError, ValueError):
            if display is not None:
                display.close()
        with suppress(OSError, ValueError):
            _show(error, message, INTERRUPTED, display)
        interrupts.finish(FINISH_SECONDS)
        raise typer.Exit(INTERRUPTED) from None
    except RayddlError as error:
        _end(error, scrub(str(error)), error.exit_code, display)
    except BrokenPipeError:
        # The reader of the output has ended, so a message would reach nobody.
        sys.stderr.close()
        raise typer.Exit(1) from None
    except OSError as error:
        _end(error, scrub(str(error)), 1, display)
    finally:
        if display is not None:
            with suppress(OSError):
                display.close()


def emit_json(value: Any) -> None:
    """Print one JSON document to standard output."""
    typer.echo(json.dumps(value, indent=1, default=str))


def print_table(*parts: Any) -> None:
    """Print Rich renderables to standard output: in colour in a terminal, in full width in a pipe."""
    from rayddl.pipeline.tables import SafeConsole, as_text

    console = SafeConsole(highlight=False)
    for part in parts:
        if console.is_terminal:
            console.print(part)
        else:
            typer.echo(as_text(part))


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show ``text`` while the block runs, if standard error is a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield
        return
    with console.status(text):
        yield


def _end(error: BaseException, message: str, code: int, display: Display | None) -> NoReturn:
    _show(error, message, code, display)
    raise typer.Exit(code) from None


def _show(error: BaseException, message: str, code: int, display: Display | None) -> None:
    if display is None or not display.error(error, message, code):
        _say(message, code)


def _say(message: str, code: int) -> None:
    label = "stopped" if code == INTERRUPTED else "error"
    typer.secho(f"{label}: ", fg="yellow" if code == INTERRUPTED else "red", nl=False, err=True)
    typer.echo(visible(message), err=True)


def _command(words: Sequence[str]) -> str:
    return shlex.join(scrub(word) for word in words)
