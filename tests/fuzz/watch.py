"""What the fuzzing tests share: the watch over a piece of work, and changes to bytes."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from rayddl.errors import RayddlError

LONG = int(os.environ.get("RAYDDL_FUZZ", "0"))
MEMORY = 4 << 30
HELD = 1 << 30
SECONDS = 20.0
WAITED = (
    120  # seconds of the clock in which what works runs, or is kept from running by other processes, for at
)
IDLE = 0.1  # least IDLE seconds
STARTED = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "socket.connect",
    "socket.bind",
    "socket.getaddrinfo",
)
CHANGED = (
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
)

fuzzed = settings(
    max_examples=LONG or 25,
    derandomize=not LONG,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


class Watch:
    """Records forbidden events of this process while it is on."""

    def __init__(self) -> None:
        self.on: Path | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on is None:
            return
        if event in STARTED:
            self.seen.append(f"{event} {arguments[:2]}")
        elif event == "open" and isinstance(arguments[0], str) and isinstance(arguments[2], int):
            writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and not os.path.abspath(arguments[0]).startswith((str(self.on), "/dev/null")):
                self.seen.append(f"wrote {arguments[0]}")
        elif event in CHANGED:
            paths = [
                os.path.abspath(os.fsdecode(each)) for each in arguments if isinstance(each, str | bytes)
            ]
            if not all(path.startswith(str(self.on)) for path in paths):
                self.seen.append(f"{event} {paths}")


WATCH = Watch()


@contextmanager
def bounded(folder: Path) -> Iterator[None]:
    """Anything but rayddl's errors fails the test, and so do time, memory, processes, sockets and other files."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory starts anew
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    held, began, refusal = _peak(), time.process_time(), None
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, before[1]))
    old = signal.signal(signal.SIGALRM, _clock(began))
    signal.setitimer(signal.ITIMER_REAL, WAITED, WAITED)
    # An import writes byte code, which is no work of the tested code's.
    kept, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    WATCH.seen, WATCH.on = [], folder
    try:
        yield
    except RayddlError as error:
        refusal = error
    finally:
        WATCH.on = None
        sys.dont_write_bytecode = kept
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert refusal is None or (refusal.code and len(str(refusal)) < 20_000)
    assert not WATCH.seen
    assert time.process_time() - began < SECONDS
    assert _peak() - held < HELD


def _clock(began: float) -> Callable[[int, object], None]:
    """What ends work that waits for something, or that goes on for too long; other processes slow no test down."""
    last = began + _kept_waiting()

    def tick(*_: object) -> None:
        nonlocal last
        used, wanted = time.process_time(), time.process_time() + _kept_waiting()
        if wanted - last < IDLE:
            WATCH.seen.append(f"waits: {wanted - last:.2f} s of processor time used or wanted in {WAITED} s")
        if used - began >= SECONDS:
            WATCH.seen.append(f"no end after {used - began:.0f} s of processor time")
        last = wanted
        assert not WATCH.seen  # it stays there if the code catches this

    return tick


def _kept_waiting() -> float:
    """Seconds for which this process could have run while others did; 0 where the kernel does not say."""
    try:
        return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


CHANGES = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.sampled_from(["set", "cut", "insert", "double", "zero"]),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=6,
)


def changed(data: bytes, changes: list[tuple[float, str, bytes]]) -> bytes:
    """``data`` with some bytes set, inserted, cut out, repeated or zeroed."""
    for where, how, new in changes:
        at = int(where * len(data))
        if how == "set":
            data = data[:at] + new + data[at + len(new) :]
        elif how == "insert":
            data = data[:at] + new + data[at:]
        elif how == "double":
            data = data[: at + 512] + data[at:]
        elif how == "zero":
            data = data[:at] + bytes(len(data[at : at + 16])) + data[at + 16 :]
        else:
            data = data[:at] + data[at + len(new) * 32 :]
    return data
