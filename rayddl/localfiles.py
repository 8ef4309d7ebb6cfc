r"""Names and links of the local file system, and files that are written as a whole.

A name that is not UTF-8, as old archives have them, is shown with its odd bytes as ``\xe9``, and a shown name
finds its file again.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rayddl.credentials import scrub
from rayddl.errors import PathError

_SCRATCH = re.compile(r"\.tmp-[0-9a-f]{8}(?:/|$)")
"""In the path of a file that is being written: the end of its name, or of that of the folder that it is in."""
_HALVES = re.compile("[\ud800-\udfff]")
"""Bytes that are not UTF-8, as ``os`` gives them, and other halves of characters."""
_ESCAPED = re.compile(rb"\\x([89a-f][0-9a-f])")


def shown(name: str) -> str:
    """The name ``name``, as ``os`` gives it, as UTF-8 text."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def real(path: str) -> str:
    """The path of which :func:`shown` made ``path``, as ``os`` takes it."""
    if "\\x" not in path or os.path.lexists(path):
        return path
    restored = os.fsdecode(_ESCAPED.sub(lambda byte: bytes([int(byte[1], 16)]), os.fsencode(path)))
    return restored if os.path.lexists(restored) else path


def refuse_unwritten(path: str) -> None:
    """Raise :class:`PathError` for a path or URI that holds a zero byte or is not UTF-8."""
    if "\0" in path:
        raise PathError(f"{path!r} is no path: it holds a zero byte", code="path-with-zero-byte")
    if _HALVES.search(path):
        try:
            written = shown(path)
        except UnicodeEncodeError:
            written = ascii(path)
        raise PathError(
            f"{scrub(written)} is not UTF-8; write the name of an existing folder as it is shown here, or choose "
            "another name",
            code="path-not-utf-8",
        )


def odd(path: str) -> bytes | None:
    """The bytes of the path if it is not UTF-8, such that pyarrow cannot open it; ``None`` for others."""
    found = real(path)
    return None if found == path else os.fsencode(found)


def regular(path: str) -> bytes | None:
    """:func:`odd` of a file that is read. Raises ``FileNotFoundError`` for a device or pipe, which may have no end."""
    found = odd(path)
    mode = os.stat(path if found is None else found).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise FileNotFoundError(f"{path} is a device or pipe, expected a file")
    return found


def walk(top: str, within: str | None) -> Iterator[tuple[str, int]]:
    """Each file below the folder ``top``: its shown name relative to ``top``, and its size in bytes.

    Links are followed. With ``within``, none may lead out of that folder, and a broken one counts as a file of 0 bytes.
    Raises :class:`PathError` for a link out of ``within``, for a link to a folder that it is in, and for two names
    that are shown alike.
    """
    inside = None if within is None else os.path.realpath(real(within))
    _refuse_outside(real(top), inside)
    escaped: set[str] = set()
    for name, size in _below(real(top), "", inside, (os.path.realpath(real(top)),)):
        if "\\x" in name:  # of two names that are shown alike, both have an escape or look so
            if name in escaped:
                raise PathError(f"two files in {top} have names that are shown as {name}", code="names-alike")
            escaped.add(name)
        yield name, size


def _below(folder: str, prefix: str, inside: str | None, above: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    try:
        listed = os.scandir(folder)
    except FileNotFoundError:
        return  # removed meanwhile
    with listed as entries:
        for entry in entries:
            name, linked = prefix + shown(entry.name), entry.is_symlink()
            if linked:
                _refuse_outside(entry.path, inside)
            if entry.is_dir():
                trail = (*above, os.path.realpath(entry.path)) if linked else above
                if linked and any(_contains(trail[-1], each) for each in above):
                    raise PathError(
                        f"the link {shown(entry.path)} leads to {shown(trail[-1])}, a folder that it is in itself; "
                        "remove it",
                        code="link-in-circle",
                    )
                here = trail if linked else (*above, os.path.join(above[-1], entry.name))
                yield from _below(entry.path, f"{name}/", inside, here)
            elif entry.is_file():
                try:
                    size = entry.stat().st_size
                except FileNotFoundError:
                    continue
                yield name, size
            elif linked and inside is not None:
                yield name, 0


def leaves(path: str, within: str) -> bool:
    """True if the file ``path`` is outside the folder ``within`` once links are followed."""
    return not _contains(os.path.realpath(real(within)), os.path.realpath(real(path)))


def _refuse_outside(path: str, inside: str | None) -> None:
    target = os.path.realpath(path)
    if inside is not None and not _contains(inside, target):
        raise PathError(
            f"the link {shown(path)} leads to {shown(target)}, outside {shown(inside)}",
            code="link-leaves-folder",
        )


def _contains(folder: str, path: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def write(target: str, data: bytes) -> None:
    """Write the file ``target``; other processes never see it half-written."""
    scratch = _scratch(target)
    try:
        with open(scratch, "wb") as file:
            file.write(data)
        _replace(scratch, target)
    finally:
        if os.path.exists(scratch):
            os.unlink(scratch)


@contextmanager
def writing(target: str) -> Iterator[Path]:
    """A path for the content of the file ``target``, which appears as a whole when the block is left, and not if an
    error is raised in it.
    """
    # A folder, because some libraries write files of their own beside the one that they are given.
    folder = _scratch(target)
    os.mkdir(folder)
    try:
        scratch = Path(folder, "file")
        scratch.touch()
        mode = stat.S_IMODE(scratch.stat().st_mode)
        yield scratch
        scratch.chmod(mode)  # they may also make it private
        _replace(str(scratch), target)
    finally:
        shutil.rmtree(folder)


def unfinished(name: str) -> bool:
    """True for the name of a file that is being written, or of a folder with one."""
    return _SCRATCH.search(name) is not None


def sweep(top: str) -> None:
    """Remove what writers that were killed have left below the folder ``top``; links are not followed."""
    for folder, folders, files in os.walk(real(top)):
        for name in [name for name in folders if unfinished(name)]:
            folders.remove(name)
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
        for name in filter(unfinished, files):
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name))


def _scratch(target: str) -> str:
    return f"{target}.tmp-{uuid.uuid4().hex[:8]}"


def _replace(scratch: str, target: str) -> None:
    """Put the file ``scratch`` in the place of ``target``, once its content is on the disk."""
    with open(scratch, "rb") as file:
        os.fsync(file.fileno())
    os.replace(scratch, target)
