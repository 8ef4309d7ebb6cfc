"""Files that torch saved, read as tensors alone: a file that somebody sent cannot run code."""

from __future__ import annotations

from pickle import UnpicklingError  # only what torch raises; nothing here unpickles
from typing import IO, Any

import torch
from pyarrow import NativeFile


class NotTensors(Exception):
    """The file holds more than tensors and plain containers, or is damaged; says why in one line."""


def load(file: str | IO[bytes] | NativeFile, *, mapped: bool = False) -> Any:
    """The tensors in ``file``, in the lists and dictionaries that they were saved in, on the CPU.

    ``mapped`` leaves them on disk until they are looked at, for a path. Raises :class:`NotTensors`, and
    ``FileNotFoundError``.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError:
        raise
    except (RuntimeError, OSError, EOFError, ValueError, TypeError, LookupError, UnpicklingError) as error:
        lines = str(error).strip().splitlines()
        raise NotTensors(lines[0] if lines else type(error).__name__) from error
