"""Sends plugins' code to other processes together with the work.

Workers need neither an installed plugin nor access to its file: they receive the source code of the plugin's modules
and import it. Image sources are not sent: images reach workers through the object store.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import pickle
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from rayddl import plugins
from rayddl.plugins import Plugin, sources_of, top_of

_NOT_SENT = ("__main__", "builtins", "rayddl")
"""Modules that are pickled by value, or exist on every worker."""


@dataclass(frozen=True)
class _Code:
    """The code that is sent. Only processes of this session unpickle it."""

    modules: dict[str, tuple[str, str]]
    """The file path and the source code of each module, by module name."""
    packages: frozenset[str]
    plugins: bytes


def shipped() -> bytes:
    """The active plugins of this process as bytes, for :func:`adopt`; empty without plugins."""
    if _adopted is not None:
        return _adopted[0]
    active = plugins.active()
    return _packed(active) if active else b""


@plugins.forgotten
@lru_cache(maxsize=1)
def _packed(active: tuple[Plugin, ...]) -> bytes:
    from ray import cloudpickle

    found: dict[str, tuple[str, str]] = {}
    packages: set[str] = set()
    for top in sorted({top_of(module) for plugin in active for module in _modules(plugin)}):
        for name, path in sources_of(top).items():
            found[name] = (str(path), path.read_text(encoding="utf-8"))
            if path.name == "__init__.py":
                packages.add(name)
    sent = tuple(replace(plugin, sources=dict.fromkeys(plugin.sources)) for plugin in active)
    return pickle.dumps(_Code(found, frozenset(packages), cloudpickle.dumps(sent)))


def _modules(plugin: Plugin) -> Iterator[str]:
    """The modules that define the plugin and its functions, except installed libraries."""
    if plugin.module is not None:
        yield plugin.module
    values: Iterable[Any] = (
        *plugin.nets.values(),
        *plugin.selections.values(),
        *plugin.losses.values(),
        *(kind.config for kind in plugin.kinds),
    )
    libraries = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    for value in values:
        name = getattr(value, "__module__", None) or "builtins"
        file = getattr(sys.modules.get(top_of(name)), "__file__", None)
        inside = file is None or any(library in Path(file).parents for library in libraries)
        if not inside and top_of(name) not in _NOT_SENT:
            yield name


_adopted: tuple[bytes, _Sent] | None = None


def adopt(code: bytes) -> None:
    """Activate the plugins in ``code``, the result of :func:`shipped` in another process; does nothing if repeated."""
    global _adopted  # noqa: PLW0603  # imported modules are global to the process
    if not code or code == shipped():
        return
    found: _Code = pickle.loads(code)  # noqa: S301  # from this session's own driver
    if _adopted is not None:
        sys.meta_path.remove(_adopted[1])
    # Modules of an earlier run, or modules imported from disk, may be older.
    for name in (*found.modules, *(_adopted[1].code.modules if _adopted else ())):
        sys.modules.pop(name, None)
    _adopted = code, _Sent(found)
    sys.meta_path.insert(0, _adopted[1])
    plugins.activate(pickle.loads(found.plugins))  # noqa: S301  # likewise


class _Sent(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports modules from the received source code."""

    def __init__(self, code: _Code) -> None:
        self.code = code

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        del path, target
        if fullname not in self.code.modules:
            return None
        origin = self.code.modules[fullname][0]
        spec = importlib.util.spec_from_loader(fullname, self, origin=origin)
        if spec is not None and fullname in self.code.packages:
            # Other files of the package are found if the folder is accessible.
            spec.submodule_search_locations = [str(Path(origin).parent)]
        return spec

    def is_package(self, fullname: str) -> bool:
        return fullname in self.code.packages

    def get_source(self, fullname: str) -> str:
        return self.code.modules[fullname][1]


def carried(work: tuple[Any, ...]) -> tuple[Any, ...]:
    """``work`` wrapped with the plugins' code, which the worker activates first; unchanged without plugins."""
    code = shipped()
    if not code:
        return work
    import ray

    # Ray unpickles direct arguments before the code is active; a reference inside a list is resolved afterwards.
    return (perform, code, [ray.put(work)])


def perform(code: bytes, sent: list[Any]) -> Any:
    """In a worker: run the work that was passed to :func:`carried`, and return its result."""
    import ray

    adopt(code)
    return called(ray.get(sent[0]))


def called(work: tuple[Any, ...]) -> Any:
    """The result of a function with its arguments, of which references are replaced by their values."""
    import ray

    function, *arguments = work
    return function(*(ray.get(a) if isinstance(a, ray.ObjectRef) else a for a in arguments))
