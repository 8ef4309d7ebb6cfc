"""Loads files saved by torch as tensors only, so that an untrusted file cannot run code."""

from __future__ import annotations

import re
from pickle import UnpicklingError  # raised by torch.load; nothing here unpickles
from typing import IO, Any

import torch
from pyarrow import NativeFile


class NotTensors(Exception):
    """The file holds more than tensors and plain containers, or is damaged; the message is one line."""


def load(file: str | IO[bytes] | NativeFile, *, mapped: bool = False) -> Any:
    """Return the tensors in ``file``, in the lists and dictionaries that they were saved in, on the CPU.

    ``mapped`` maps a file given by its path into memory, so that tensors are read on first use. Raises
    :class:`NotTensors` and ``FileNotFoundError``.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError:
        raise
    except (RuntimeError, OSError, EOFError, ValueError, TypeError, LookupError, UnpicklingError) as error:
        raise NotTensors(_in_words(error)) from error


def _in_words(error: Exception) -> str:
    """The reason in one line, without the terminal codes of torch's message and its advice to trust the file."""
    text = str(error)
    named = re.search(r"GLOBAL ([\w.]+)", text)
    if named:
        return f"it holds an object of {named[1]}"
    reason = text.partition("WeightsUnpickler error: ")[2] or text
    lines = re.sub(r"\x1b\[[0-9;]*m", "", reason).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
