"""A warning about sets whose accuracies cannot be compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rayddl.stages.compare.protocols import advice


def after(summary: Mapping[str, Any]) -> Iterator[str]:
    """Sets that were evaluated by different protocols."""
    found = summary.get("unlike")
    unlike = [str(each) for each in found] if isinstance(found, list) else []
    if unlike:
        yield f"the sets were evaluated differently ({', '.join(unlike)} differ); {advice(unlike)}"
