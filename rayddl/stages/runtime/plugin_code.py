"""Plugins in other processes: their code travels with the work, to any Ray that runs.

A worker need not have a plugin installed, nor see its file: it gets the source of the plugin's modules, and imports
them from there. Sources of images stay behind: images reach workers through the object store.
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
"""Modules that are sent within what uses them, or are there already."""


@dataclass(frozen=True)
class _Code:
    """Everything that is sent. Opened by this session's own processes alone."""

    modules: dict[str, tuple[str, str]]
    """The file and the source of each module."""
    packages: frozenset[str]
    plugins: bytes


def shipped() -> bytes:
    """The plugins that this process works with, for :func:`adopt`; empty where there are none."""
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
    """The module that declares the plugin, and those that its functions stand in, but for installed libraries."""
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
    """Work with the plugins of another process, which gave ``code``; done once for the same."""
    global _adopted  # noqa: PLW0603  # modules are those of the whole process
    if not code or code == shipped():
        return
    found: _Code = pickle.loads(code)  # noqa: S301  # from this session's own driver
    if _adopted is not None:
        sys.meta_path.remove(_adopted[1])
    # Modules of an earlier run, or that were imported from disk, may be older.
    for name in (*found.modules, *(_adopted[1].code.modules if _adopted else ())):
        sys.modules.pop(name, None)
    _adopted = code, _Sent(found)
    sys.meta_path.insert(0, _adopted[1])
    plugins.activate(pickle.loads(found.plugins))  # noqa: S301  # likewise


class _Sent(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports the modules that were sent."""

    def __init__(self, code: _Code) -> None:
        self.code = code

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        del path, target
        if fullname not in self.code.modules:
            return None
        origin = self.code.modules[fullname][0]
        spec = importlib.util.spec_from_loader(fullname, self, origin=origin)
        if spec is not None and fullname in self.code.packages:
            # Whatever else lies there is found where the folder is seen.
            spec.submodule_search_locations = [str(Path(origin).parent)]
        return spec

    def is_package(self, fullname: str) -> bool:
        return fullname in self.code.packages

    def get_source(self, fullname: str) -> str:
        return self.code.modules[fullname][1]


def carried(work: tuple[Any, ...]) -> tuple[Any, ...]:
    """``work`` with the plugins' code, which the worker takes first; as it is where there are no plugins."""
    code = shipped()
    if not code:
        return work
    import ray

    # Ray opens what is an argument itself before the code is there, and what is inside a list after.
    return (perform, code, [ray.put(work)])


def perform(code: bytes, sent: list[Any]) -> Any:
    """In a worker: the result of what :func:`carried` was given."""
    import ray

    adopt(code)
    function, *arguments = ray.get(sent[0])
    return function(*(ray.get(a) if isinstance(a, ray.ObjectRef) else a for a in arguments))
