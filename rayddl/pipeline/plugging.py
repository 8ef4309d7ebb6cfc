"""Finds and loads plugins: installed ones, and those that a caller gives."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.machinery import SourceFileLoader
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import CodeType, ModuleType
from typing import TypeAlias, TypeVar

from rayddl import plugins
from rayddl.errors import PluginError, RayddlError
from rayddl.plugins import Plugin, sources_of

GROUP = "rayddl.plugins"
"""The entry point group of installed plugins."""
ATTRIBUTE = "plugin"
"""The name of the variable with which a module declares its plugin."""
Given: TypeAlias = Plugin | ModuleType | str
"""A plugin, the module that declares one, or the module's name or file (``module:attribute`` for another variable)."""
_Found = TypeVar("_Found")


def use(given: Given | Sequence[Given] = ()) -> tuple[Plugin, ...]:
    """Make the installed plugins and those ``given`` the only active ones, and return the active ones.

    Raises :class:`PluginError` for a plugin that cannot be loaded, and for a name that is registered twice.
    """
    importlib.import_module("rayddl.stages.kinds")  # declares all of rayddl's own names
    if isinstance(given, str | Plugin | ModuleType):
        given = (given,)
    found: list[Plugin] = []
    for plugin in (*_installed(), *(_loaded(each) for each in given)):
        # An installed plugin may also be among those given.
        if plugin.module is None or (plugin.name, plugin.module) not in [(p.name, p.module) for p in found]:
            found.append(plugin)
    plugins.activate(found)
    return plugins.active()


def _installed() -> list[Plugin]:
    return [
        _attempted(
            f"the installed plugin {entry.name!r} ({entry.value})",
            "repair or uninstall the package that it comes with",
            partial(_entered, entry),
        )
        for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    ]


def _entered(entry: EntryPoint) -> Plugin:
    return _declared(entry.load(), entry.value, f"the installed plugin {entry.name!r}")


def _loaded(given: Given) -> Plugin:
    if isinstance(given, Plugin):
        return given
    if isinstance(given, ModuleType):
        return _declared(given, given.__name__, f"module {given.__name__}")
    place, _, attribute = given.partition(":")
    where, path = f"plugin {given!r}", Path(place).expanduser()
    if "\0" in given:
        raise PluginError(f"{where} is no file or module: it holds a zero byte", code="plugin-with-zero-byte")
    is_file = path.suffix == ".py" or "/" in place or os.sep in place
    if is_file and not (path.is_file() or (path / "__init__.py").is_file()):
        raise PluginError(
            f"{where}: there is no such file, nor a package in that folder (looked for {path.resolve()}); give a "
            "Python file, a package's folder, or the name of a module",
            code="plugin-missing",
        )

    def load() -> Plugin:
        module = _from_file(path) if is_file else _imported(place)
        found = getattr(module, attribute) if attribute else module
        return _declared(found, f"{module.__name__}:{attribute}" if attribute else module.__name__, where)

    return _attempted(where, "mend it, or run without it", load)


def _attempted(where: str, hint: str, load: Callable[[], _Found]) -> _Found:
    try:
        return load()
    except RayddlError:
        raise
    except (Exception, SystemExit) as error:  # a plugin's code may raise any exception
        raise PluginError(
            f"{where} cannot be loaded: {type(error).__name__}: {error}; {hint}", code="plugin-not-loaded"
        ) from error


def _declared(found: object, module: str, where: str) -> Plugin:
    plugin = getattr(found, ATTRIBUTE, None) if isinstance(found, ModuleType) else found
    if not isinstance(plugin, Plugin):
        raise PluginError(
            f"{where} declares no plugin; write plugin = rayddl.Plugin(name=…, …) in it",
            code="plugin-not-declared",
        )
    return replace(plugin, module=module, version=plugin.version or _hash(module))


def _hash(module: str) -> str:
    found = hashlib.sha256()
    for name, path in sources_of(module).items():
        found.update(f"{name}\n".encode() + path.read_bytes())
    return found.hexdigest()


def _imported(name: str) -> ModuleType:
    # As with ``python -m``; last in the path, so that local files hide no installed package.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    return importlib.import_module(name)


class _FromSource(SourceFileLoader):
    """Compiles the file at every import. Python's stored byte code counts as current if the file has the same size and
    was changed in the same second, and so may be of another content than the module's name.
    """

    def get_code(self, fullname: str) -> CodeType:
        del fullname
        return self.source_to_code(self.get_data(self.path), self.path)


def _from_file(path: Path) -> ModuleType:
    """Import a file under a name unique to its content, or the package in a folder. Raises :class:`PluginError`."""
    path = path.resolve()
    if path.is_dir():
        sys.path.append(str(path.parent))
        module = importlib.import_module(path.name)
        if path not in map(Path, getattr(module, "__path__", ())):
            raise PluginError(
                f"the package in {path} is hidden by another one called {path.name!r}; rename it",
                code="plugin-hidden",
            )
        return module
    name = f"rayddl_plugin_{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}_{path.stem}".replace("-", "_")
    if name in sys.modules:
        return sys.modules[name]
    loader = _FromSource(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    if spec is None or path.suffix != ".py":
        raise PluginError(
            f"plugin {str(path)!r} is no Python file; its name must end in .py", code="plugin-not-python"
        )
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, ModuleNotFoundError) and _beside(path, error.name):
            raise PluginError(
                f"plugin {str(path)!r} imports {error.name}, which lies beside it and is not installed; a plugin of "
                "several files is a package: add an __init__.py with the plugin, import with "
                f"'from . import {error.name}', and give the folder",
                code="plugin-of-several-files",
            ) from error
        raise
    return module


def _beside(path: Path, name: str | None) -> bool:
    """True if the module ``name``, which a plugin's file imports, lies next to that file."""
    return bool(name) and (
        (path.parent / f"{name}.py").is_file() or any((path.parent / str(name)).glob("*.py"))
    )
