"""Loads files saved by torch as tensors only, so that an untrusted file cannot run code."""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import IO, Any

import torch
from pyarrow import NativeFile
from torch import Tensor

_UNUSUAL = {
    "torch._utils _rebuild_sparse_tensor": "sparse",
    "torch._utils _rebuild_qtensor": "quantised",
    "torch._utils _rebuild_meta_tensor_no_storage": "without values (device meta)",
}
_CONTAINERS = re.compile(r"collections (OrderedDict|Counter)|(__builtin__|builtins) set")
_GLOBALS = re.compile(
    rf"{_CONTAINERS.pattern}|torch \w+Storage|torch\.storage (Untyped|Typed)Storage|"
    r"torch (b?float|complex|u?int|bool)\w*|torch (Tensor|device)|torch\.nn\.parameter Parameter|"
    r"torch\._tensor _rebuild_from_type_v2|"
    r"torch\._utils _rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state)"
)
"""What files of tensors name. Some of what else torch lets a file call makes gigabytes of a few bytes (``bytearray``,
``encode``), or a million copies of one list (``torch.Size``).
"""
_PICKLES = 5
"""Pickles in a file of torch's older layout: its number, its version, the machine's, the values, the storages' names.
"""
_NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1")
_INSTRUCTIONS = re.compile(
    r"GLOBAL|NEWOBJ|REDUCE|BUILD|APPENDS?|SETITEMS?|MARK|TUPLE[123]?|NONE|NEW(TRUE|FALSE)|EMPTY_(TUPLE|LIST|DICT|SET)|"
    rf"{'|'.join(_NUMBERS)}|BINFLOAT|BINUNICODE|SHORT_BINSTRING|BINPERSID|(LONG_)?BIN(GET|PUT)|PROTO|STOP"
)
"""Those of a pickle that torch reads."""
_BYTES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "ComplexDouble": 16, "ComplexFloat": 8}
_BYTES |= {"Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1, "Untyped": 1}
"""Bytes of a value, by the type of the storage that a pickle names."""
_FRESH = ("EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT")
_REPEATS = 4
"""How many times the bytes of a file its tensors may have in all: some share their values."""
_DEEPEST = 64


class NotTensors(Exception):
    """The file holds more than tensors and plain containers, or is damaged; the message is one line."""


def load(file: str | IO[bytes] | NativeFile, *, mapped: bool = False) -> Any:
    """Return the tensors in ``file``, in the lists and dictionaries that they were saved in, on the CPU.

    ``mapped`` maps a file given by its path into memory, so that tensors are read on first use. Raises
    :class:`NotTensors`, also for tensors that would take more memory than the file has bytes, and
    ``FileNotFoundError``.
    """
    try:
        size = _looked_at(file)
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError:
        raise
    except NotTensors:
        raise
    except Exception as error:  # the reader raises many types for damaged files
        raise NotTensors(_in_words(error)) from error
    values = _values(found, _DEEPEST, {})
    if values > _REPEATS * size:
        raise NotTensors(f"its tensors have {values:,} bytes of values in all, and the file has {size:,}")
    return found


def _in_words(error: Exception) -> str:
    """The reason in one line, without the terminal codes of torch's message and its advice to trust the file."""
    text = str(error)
    named = re.search(r"GLOBAL ([\w.]+)", text)
    if named:
        return f"it holds an object of {named[1]}"
    reason = text.partition("WeightsUnpickler error: ")[2] or text
    lines = re.sub(r"\x1b\[[0-9;]*m", "", reason).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _looked_at(file: str | IO[bytes] | NativeFile) -> int:
    """The bytes of the file. Raises :class:`NotTensors` for content that grows when it is read, before it is read."""
    opened = open(file, "rb") if isinstance(file, str) else file  # noqa: SIM115 - closed below
    try:
        size = opened.seek(0, io.SEEK_END)
        opened.seek(0)
        zipped = opened.read(4) == b"PK\x03\x04"
        opened.seek(0)
        if zipped:
            with zipfile.ZipFile(opened) as archive:
                _refuse_odd_archive(archive, size)
        else:
            _refuse_odd_pickles(io.BufferedReader(_Kept(opened), 2**16), _PICKLES, size)
        return size
    finally:
        if isinstance(file, str):
            opened.close()
        else:
            opened.seek(0, io.SEEK_SET)


class _Kept(io.RawIOBase):
    """Reads a stream that stays open."""

    def __init__(self, stream: IO[bytes] | NativeFile) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        data = self._stream.read(len(into))
        into[: len(data)] = data
        return len(data)


def _refuse_odd_archive(archive: zipfile.ZipFile, size: int) -> None:
    """Raise :class:`NotTensors` for a zip file as torch never writes it: with compressed, repeated or overlapping
    members, and for pickles in it that :func:`_refuse_odd_pickles` refuses.
    """
    members = archive.infolist()
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise NotTensors(f"{member.filename!r} in it is compressed, which files of tensors never are")
    # Readers differ in which one of two members they take, and in whether upper case counts.
    names = {member.orig_filename.casefold() for member in members}
    if len(names) < len(members) or sum(member.file_size for member in members) > size:
        raise NotTensors("its members overlap or have one name, which those of files of tensors never do")
    for member in members:
        if member.orig_filename.casefold().endswith(".pkl"):
            with archive.open(member) as pickled:
                needed = _refuse_odd_pickles(io.BytesIO(pickled.read()), 1, size)
            _refuse_short_storages(members, needed)


def _refuse_short_storages(members: Sequence[zipfile.ZipInfo], needed: Mapping[str, int]) -> None:
    """Raise :class:`NotTensors` for a storage of more bytes than its member has: some versions of torch read the memory
    behind the member's, and all of them, where the file is mapped, what follows in it.
    """
    for member in members:
        _, data, key = member.orig_filename.rpartition("/data/")
        if data and needed.get(key, 0) > member.file_size:
            raise NotTensors(
                f"a storage in it has {needed[key]:,} bytes of values and {member.file_size:,} are stored"
            )


def _refuse_odd_pickles(stream: io.BufferedIOBase, count: int, size: int) -> Mapping[str, int]:
    """Return the bytes of each storage that the last of ``count`` pickles names, in a file of ``size`` bytes.

    Raises :class:`NotTensors` for what :data:`_GLOBALS` lacks. Likewise for a container that is made of anything but
    items that follow: it could copy another one a million times, and for storages of more values than the file has
    bytes: those of the older layout are allocated before they are read. Raises ``ValueError`` for what is no pickle.
    """
    # A reader allocates what it is asked for.
    reader: Any = SimpleNamespace(read=lambda most: stream.read(min(most, size)), readline=stream.readline)
    argument: Any
    needed: Mapping[str, int] = {}
    for _ in range(count):
        containers: set[int] = set()
        pushed = called = False
        storages = _Storages(size)
        for code, argument, _ in pickletools.genops(reader):
            name = code.name
            if _INSTRUCTIONS.fullmatch(name) is None:
                raise NotTensors(f"it has the instruction {name}, which files of tensors never have")
            storages.add(name, argument)
            if called and not name.endswith("PUT") and name not in _FRESH:
                raise NotTensors("it holds a dictionary or set that is made of another one")
            if name == "GLOBAL":
                if argument in _UNUSUAL:
                    raise NotTensors(f"a tensor in it is {_UNUSUAL[argument]}, expected a plain one")
                if _GLOBALS.fullmatch(argument) is None:
                    raise NotTensors(f"it holds an object of {argument.replace(' ', '.')}")
                pushed = called = _CONTAINERS.fullmatch(argument) is not None
            elif name.endswith("PUT"):
                (containers.add if pushed else containers.discard)(argument)
            else:
                pushed = called = name.endswith("GET") and argument in containers
        needed = storages.bytes
    return needed


@dataclass(frozen=True)
class _Type:
    """The type of a storage, as far as it matters here."""

    bytes: int
    """Bytes of a value; 0 if it is not known."""


class _Storages:
    """The sizes of the storages that a pickle names, followed instruction by instruction."""

    def __init__(self, most: int) -> None:
        self.bytes: dict[str, int] = {}
        """By name, the bytes of the values of each storage."""
        self._most, self._last = most, ""
        self._seen: str | _Type | None = None
        """The text or type that the last instruction put there."""
        self._open: list[list[str | int | _Type]] = []
        """Texts, numbers and types since each mark."""
        self._closed: list[str | int | _Type] = []
        """Those of the last tuple."""
        self._kept: dict[int, str | _Type] = {}
        self._values: dict[str, int] = {}
        self._total = 0

    def add(self, name: str, argument: Any) -> None:
        """Raise :class:`NotTensors` if the storages have more values than the file has bytes, each counted once, and
        for one that is not named as torch does it.
        """
        if name.endswith("PUT"):
            self._keep(argument)
            return  # as if it were not there
        self._seen = None
        if name == "MARK":
            self._open.append([])
        elif name in ("TUPLE", "APPENDS", "SETITEMS"):
            # A PUT after it would keep what is below, which may be a number.
            if self._last == "MARK" and name != "TUPLE":
                raise NotTensors("it adds nothing to a list or dictionary, which files of tensors never do")
            self._closed = self._open.pop() if self._open else []
        elif name == "BINUNICODE":
            self._push(argument)
        elif name == "GLOBAL":
            kind = argument.rpartition(" ")[2]
            if kind.endswith("Storage"):
                self._push(_Type(_BYTES.get(kind.removesuffix("Storage"), 0)))
        elif name.endswith("GET"):
            self._push(self._kept.get(argument))
        elif name in _NUMBERS:
            self._push(argument)
        elif name == "BINPERSID":
            self._storage()
        self._last = name

    def _keep(self, place: int) -> None:
        if self._last in _NUMBERS:
            raise NotTensors("it keeps a number for later use, which files of tensors never do")
        if self._seen is not None:
            self._kept[place] = self._seen
        else:
            self._kept.pop(place, None)

    def _push(self, value: str | int | _Type | None) -> None:
        self._seen = None if isinstance(value, int) else value
        if self._open and value is not None:
            self._open[-1].append(value)

    def _storage(self) -> None:
        texts = [each for each in self._closed if isinstance(each, str)]
        numbers = [each for each in self._closed if isinstance(each, int)]
        bytes_ = max((each.bytes for each in self._closed if isinstance(each, _Type)), default=0)
        if self._last != "TUPLE" or len(texts) < 2 or not numbers or not bytes_:
            raise NotTensors("it names a storage otherwise than torch does")
        before = self._values.get(texts[1], 0)
        self._values[texts[1]] = max(before, *numbers)
        self.bytes[texts[1]] = max(self.bytes.get(texts[1], 0), bytes_ * max(numbers))
        self._total += self._values[texts[1]] - before
        if self._total > self._most:
            raise NotTensors(
                f"its storages have {self._total:,} values in all, and the file has {self._most:,} bytes"
            )


def _values(value: Any, levels: int, known: dict[int, int]) -> int:
    """The bytes of the tensors in lists and dictionaries, each tensor as often as they hold it.

    ``known`` collects the bytes in each list, because one may hold another many times. Raises :class:`NotTensors` for
    more ``levels`` of them, and for a tensor that is larger than what is stored of it.
    """
    if isinstance(value, Tensor):
        _refuse_larger_than_stored(value)
        return value.nelement() * value.element_size()
    if not isinstance(value, Mapping | list | tuple | set):
        return 0
    if id(value) not in known:
        if not levels:
            raise NotTensors(f"its lists and dictionaries have more than {_DEEPEST} levels")
        known[id(value)] = 0  # what a list has inside it may hold the list itself
        inside = value.values() if isinstance(value, Mapping) else value
        known[id(value)] = sum(_values(item, levels - 1, known) for item in inside)
    return known[id(value)]


def _refuse_larger_than_stored(tensor: Tensor) -> None:
    needed, held = tensor.nelement() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if needed > held:
        raise NotTensors(
            f"a tensor of shape {list(tensor.shape)} in it has {needed:,} bytes of values and {held:,} are stored"
        )
