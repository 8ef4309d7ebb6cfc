"""Signals of the command line: where they raise, and what is done about those that get lost."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAD = """
import os, signal, sys, threading, time
from rayddl import interrupts

def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)

# What runs in the background of a script ignores some.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
interrupts.install()
"""


def ended(code: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a program that has installed the handlers."""
    done = subprocess.run(
        [sys.executable, "-c", HEAD + code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout.strip(), done.stderr.strip()


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_each_signal_raises_once(number: str) -> None:
    """The first signal raises inside the open block; those that follow change nothing."""
    code = f"""
try:
    with interrupts.raised():
        send(signal.{number})
        print("not reached")
except KeyboardInterrupt:
    send(signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    print("caught", interrupts.caught())
"""
    assert ended(code) == (0, "caught True", "")


def test_noted_before_and_after() -> None:
    """What comes before the open block is raised at its start; what comes after it never is."""
    code = """
send(signal.SIGTERM)
print("before")
try:
    with interrupts.raised():
        print("not reached")
except KeyboardInterrupt:
    print("raised")
with interrupts.raised():
    pass
send(signal.SIGINT)
print("after")
"""
    assert ended(code) == (0, "before\nraised\nafter", "")


def test_held() -> None:
    """A held block is finished first; a wait inside of it may ask to be left."""
    code = """
for checks in (False, True):
    interrupts._installed.ends = interrupts._installed.raised_at = None
    try:
        with interrupts.raised(), interrupts.held():
            send(signal.SIGINT)
            print("inside")
            if checks:
                interrupts.check()
            print("finished")
    except KeyboardInterrupt:
        print("raised")
"""
    assert ended(code) == (0, "inside\nfinished\nraised\ninside\nraised", "")


def test_an_import_is_finished(tmp_path: object) -> None:
    """An import is not left half done: the exception comes right after it."""
    code = f"""
with open({str(tmp_path)!r} + "/slow_module.py", "w") as file:
    file.write("import os, signal; os.kill(os.getpid(), signal.SIGTERM); whole = True")
sys.path.insert(0, {str(tmp_path)!r})
try:
    with interrupts.raised():
        import slow_module
        time.sleep(30)
except KeyboardInterrupt:
    print("whole", slow_module.whole)
"""
    assert ended(code) == (0, "whole True", "")


def test_one_that_is_swallowed_is_raised_again() -> None:
    """An exception that a callback swallowed comes again, and prints nothing."""
    code = """
interrupts.LOST_SECONDS = 0.3
class Swallows:
    def __del__(self):
        try:
            send(signal.SIGINT)
            time.sleep(0.1)
        except KeyboardInterrupt:
            pass
try:
    with interrupts.raised():
        try:
            send(signal.SIGINT)
        except KeyboardInterrupt:
            print("swallowed")
        Swallows()
        time.sleep(30)
except KeyboardInterrupt:
    print("again")
"""
    assert ended(code) == (0, "swallowed\nagain", "")


def test_a_clean_up_that_hangs_is_ended() -> None:
    """A process whose main thread reacts to nothing ends with 130, after its last calls were made."""
    code = """
interrupts.LAST_SECONDS = 0.5
with interrupts.noticed(lambda: print("noticed", flush=True)), interrupts.at_last(lambda: print("last", flush=True)):
    with interrupts.raised(), interrupts.held():
        send(signal.SIGTERM)
        time.sleep(60)
"""
    assert ended(code) == (130, "noticed\nlast", "")


def test_the_end_is_bounded_and_silent() -> None:
    """What is left for the end is done silently, and a hanging one does not keep the process."""
    code = """
try:
    with interrupts.raised():
        interrupts.afterwards(lambda: (os.write(2, b"noise"), time.sleep(60)))
        send(signal.SIGHUP)
except KeyboardInterrupt:
    interrupts.react()
    print("said", flush=True)
    interrupts.finish(0.5)
"""
    assert ended(code) == (130, "said", "")


def test_python_programs_keep_their_own() -> None:
    """Without :func:`install`, which only the command line calls, nothing is taken over."""
    code = """
import signal
from rayddl import interrupts
before = [signal.getsignal(number) for number in interrupts.SIGNALS]
import rayddl.cli.app, rayddl.pipeline.api
print(before == [signal.getsignal(number) for number in interrupts.SIGNALS])
with interrupts.raised(), interrupts.held(), interrupts.noticed(print):
    print(interrupts.installed(), interrupts.caught())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "True\nFalse False\n"
