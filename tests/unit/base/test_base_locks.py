"""Locks on files: one holder, none left behind, and no guard where the system has none."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from rayddl import locks
from rayddl.storage import Folder

HOLD = """
import sys, time
from rayddl import locks
from rayddl.storage import Folder
with locks.exclusive(Folder(sys.argv[1]), "a.lock", b"it is mine"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    """The second gets the first one's note; another name is free; a killed holder holds nobody up."""
    folder = Folder(str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(locks.Busy) as caught, locks.exclusive(folder, "a.lock"):
            pass
        assert caught.value.note == b"it is mine"
        with locks.exclusive(folder, "b.lock"):
            assert (tmp_path / "b.lock").exists()
        process.kill()
        process.wait()
    with locks.exclusive(folder, "a.lock", b"mine now"):
        assert (tmp_path / "a.lock").read_bytes() == b"mine now"
    assert list(tmp_path.iterdir()) == []


def test_without_fcntl_everybody_gets_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows: the module is imported, nothing is guarded, and no file is left."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert locks.__file__ is not None
    spec = importlib.util.spec_from_file_location("locks_without_fcntl", locks.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.fcntl is None
    folder = Folder(str(tmp_path))

    with module.exclusive(folder, "a.lock"), module.exclusive(folder, "a.lock"):
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", sorted(locks._NO_LOCKS_HERE))
def test_a_filesystem_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Some network filesystems refuse every lock: nobody is kept out."""

    def refused(*_: object) -> None:
        raise OSError(number, "no locks here")

    monkeypatch.setattr(locks.fcntl, "flock", refused)
    with locks.exclusive(Folder(str(tmp_path)), "a.lock"):
        pass


def test_other_errors_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that fails for a reason of the machine's is no silent absence of locks."""

    def broken(*_: object) -> None:
        raise OSError(5, "input/output error")

    monkeypatch.setattr(locks.fcntl, "flock", broken)
    with pytest.raises(OSError, match="input/output"), locks.exclusive(Folder(str(tmp_path)), "a.lock"):
        pass
