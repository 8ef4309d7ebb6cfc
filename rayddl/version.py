"""The versions of rayddl and of installed packages."""

from __future__ import annotations

from importlib import metadata

__version__ = "0.1.0"


def installed(name: str) -> str | None:
    """Return the version of a distribution without importing it; ``None`` if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
