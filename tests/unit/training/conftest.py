"""Trainings of a few tiny images: on one thread, as more of them only wait for each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from rayddl.data.config import SourceConfig
from rayddl.data.sources import registry as sources


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Torch on one thread, and afterwards on as many as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def digits() -> Any:
    """The bundled images."""
    return sources.load(SourceConfig(name="digits"))
