"""Loads files saved by torch as tensors only, so that an untrusted file cannot run code."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from typing import IO, Any

import torch
from pyarrow import NativeFile
from torch import Tensor

_UNUSUAL = {
    "is_meta": "without values (device meta)",
    "is_nested": "nested",
    "is_sparse": "sparse",
    "is_quantized": "quantised",
    "is_mkldnn": "in the layout of MKL-DNN",
}


class NotTensors(Exception):
    """The file holds more than tensors and plain containers, or is damaged; the message is one line."""


def load(file: str | IO[bytes] | NativeFile, *, mapped: bool = False) -> Any:
    """Return the tensors in ``file``, in the lists and dictionaries that they were saved in, on the CPU.

    ``mapped`` maps a file given by its path into memory, so that tensors are read on first use. Raises
    :class:`NotTensors`, also for tensors that would take more memory than the file has bytes, and
    ``FileNotFoundError``.
    """
    try:
        _refuse_compressed(file)
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError:
        raise
    except NotTensors:
        raise
    except Exception as error:  # the reader raises many types for damaged files
        raise NotTensors(_in_words(error)) from error
    for tensor in _tensors(found):
        _refuse_unusual(tensor)
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


def _refuse_compressed(file: str | IO[bytes] | NativeFile) -> None:
    """Raise :class:`NotTensors` for a zip file with compressed members, which torch itself never writes."""
    opened = open(file, "rb") if isinstance(file, str) else file  # noqa: SIM115 - closed below
    try:
        if opened.read(4) != b"PK\x03\x04":
            return
        with zipfile.ZipFile(opened) as archive:
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                    raise NotTensors(
                        f"{member.filename!r} in it is compressed, which files of tensors never are"
                    )
    finally:
        if isinstance(file, str):
            opened.close()
        else:
            opened.seek(0, io.SEEK_SET)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _tensors(item)


def _refuse_unusual(tensor: Tensor) -> None:
    kind = next((name for name in _UNUSUAL if getattr(tensor, name)), None)
    if kind is None and tensor.layout != torch.strided:
        kind = "is_sparse"
    if kind is not None:
        raise NotTensors(
            f"a tensor of shape {list(tensor.shape)} in it is {_UNUSUAL[kind]}, expected a plain one"
        )
    needed, held = tensor.nelement() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if needed > held:
        raise NotTensors(
            f"a tensor of shape {list(tensor.shape)} in it has {needed:,} bytes of values and {held:,} are stored"
        )
