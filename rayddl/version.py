"""The versions of rayddl and of what it runs on."""

from __future__ import annotations

from importlib import metadata

__version__ = "0.1.0"


def installed(name: str) -> str | None:
    """The version of an installed distribution, without importing it; ``None`` where there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
