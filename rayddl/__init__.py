"""rayddl: dataset distillation that scales on Ray.

Reads a definition file; writes a distilled set, an accuracy table and a page, on a laptop or on a Ray cluster::

    import rayddl

    print(rayddl.plan("quickstart"))                                # what would run
    result = rayddl.run("quickstart", overrides={"distill.ipc": 2})  # run it; finished stages are not run again
    images = rayddl.load_set("quickstart").to_torch_dataset()       # the set of the last run
    rayddl.compare(["quickstart", "other-run"])                     # one table, one page

``rayddl explain`` on the command line lists the keys of a definition. Errors are in :mod:`rayddl.errors`.

Packages import only from packages lower in this list:

- ``cli``, ``drafts``, ``jobs``, ``pipeline``: the command line, first definitions, jobs on a cluster, and runs.
- ``stages``: everything that uses Ray, with a folder for each stage kind.
- ``report``, ``methods``, ``data``, ``nets``: the page, and plain PyTorch that works without Ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rayddl.version import __version__

if TYPE_CHECKING:
    from rayddl.data.distilled import DistilledSet
    from rayddl.pipeline.api import plan, run
    from rayddl.pipeline.comparing import compare
    from rayddl.pipeline.sets import load_set
    from rayddl.plugins import Plugin, Splits
    from rayddl.stages.kinds import Kind

__all__ = ["DistilledSet", "Kind", "Plugin", "Splits", "__version__", "compare", "load_set", "plan", "run"]

# Imported on first use: `import rayddl` loads neither torch nor Ray.
_HOMES = {
    "DistilledSet": "rayddl.data.distilled",
    "Kind": "rayddl.stages.kinds",
    "Plugin": "rayddl.plugins",
    "Splits": "rayddl.plugins",
    "compare": "rayddl.pipeline.comparing",
    "load_set": "rayddl.pipeline.sets",
    "plan": "rayddl.pipeline.api",
    "run": "rayddl.pipeline.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
