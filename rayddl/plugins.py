"""The contents of a plugin, and the plugins that are active in this process.

Imports neither torch nor Ray. A definition can use registered names but cannot load plugins: those come from the
command line, from ``rayddl.run(…, plugins=…)`` and from installed packages.
"""

from __future__ import annotations

import difflib
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rayddl.errors import PluginError, RayddlError

NOUNS = {
    "nets": "network",
    "sources": "source",
    "kinds": "stage kind",
    "selections": "selection",
    "losses": "loss",
}
"""The groups of names, and the noun for one name of each."""
_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Splits:
    """The images of a source that is defined in Python.

    A split is a map-style torch ``Dataset`` of ``(image, label)``, each image a PIL image, a uint8 tensor or a float
    tensor in 0..1, ``[C, H, W]``; or a pair of arrays, images uint8 ``[N, C, H, W]`` or ``[N, H, W, C]`` and labels
    ``[N]``. C is 1 or 3.
    """

    train: Any
    test: Any = None
    """``None``: the definition's ``holdout`` makes it from ``train``."""
    classes: Sequence[str] | None = None
    """Names of the labels 0, 1, …; default: the data set's ``classes``, else the numbers."""


@dataclass(frozen=True, eq=False)
class Plugin:
    """Names that definitions may use, with the object for each.

    Raises :class:`PluginError` for a malformed name, and for an object that should be callable and is not.
    """

    name: str
    version: str = ""
    """Part of the fingerprints of the stages that use the plugin; default: the hash of the source files that
    declare it."""
    nets: Mapping[str, Callable[[int, int, int], Any]] = field(default_factory=dict)
    """``(num_classes, channels, size) -> nn.Module``."""
    sources: Mapping[str, Any] = field(default_factory=dict)
    """:class:`Splits`, or a function of the definition's ``source`` that returns them."""
    kinds: Sequence[Any] = ()
    """Stage kinds, each a :class:`rayddl.Kind`."""
    selections: Mapping[str, Callable[[Any, int], Any]] = field(default_factory=dict)
    """``(features, count) -> indices`` for ``kind: coreset``: features float32 ``[n, D]`` of one class, the indices of
    ``count`` different rows."""
    losses: Mapping[str, Callable[[Any, Any], Any]] = field(default_factory=dict)
    """``(student_logits, teacher_logits) -> scalar`` for soft labels, both ``[B, K]``."""
    module: str | None = field(default=None, kw_only=True)
    """``module`` or ``module:attribute`` that declares the plugin; set by the loader."""

    def __post_init__(self) -> None:
        for group, noun in NOUNS.items():
            if group != "kinds" and not isinstance(getattr(self, group), Mapping):
                raise PluginError(
                    f"{group} of plugin {self.name!r} is {type(getattr(self, group)).__name__}; expected a dict of "
                    f"each {noun}'s name and function",
                    code="plugin-without-names",
                )
        for what in (self.name, *(name for group in NOUNS for name in self.provided(group))):
            if not isinstance(what, str) or not _NAME.fullmatch(what):
                raise PluginError(
                    f"{what!r} in plugin {self.name!r} is no name; expected small letters, digits, '_' and '-', "
                    "letter first",
                    code="plugin-name-malformed",
                )
        for group in ("nets", "selections", "losses"):
            for name, value in self.provided(group).items():
                if not callable(value):
                    raise PluginError(
                        f"{NOUNS[group]} {name!r} of plugin {self.name} is {type(value).__name__}, and no function",
                        code="plugin-not-callable",
                    )

    def provided(self, group: str) -> Mapping[str, Any]:
        """Return the plugin's names of a group with their objects."""
        if group == "kinds":
            return {kind.name: kind for kind in self.kinds}
        found: Mapping[str, Any] = getattr(self, group)
        return found

    def __str__(self) -> str:
        return f"{self.name} {self.version[:12]}".strip()


_shipped: dict[str, tuple[str, ...]] = {}
MOST_NAMED = 8
"""Names that a message lists at most."""
_SEE = {"nets": "rayddl explain net lists all", "sources": "rayddl explain source.name lists all"}
"""By group: how to list all of its names."""
_active: tuple[Plugin, ...] = ()
_forget: list[Callable[[], None]] = []


def shipped(group: str, names: Iterable[str]) -> tuple[str, ...]:
    """Declare rayddl's own ``names`` of a group and return them."""
    _shipped[group] = tuple(names)
    return _shipped[group]


def forgotten(cached: _Function) -> _Function:
    """Clear the cache of ``cached`` when the active plugins change, since names may then mean other objects."""
    _forget.append(cached.cache_clear)  # type: ignore[attr-defined]
    return cached


def on_change(forget: Callable[[], None]) -> None:
    """Call ``forget`` when the active plugins change."""
    _forget.append(forget)


def active() -> tuple[Plugin, ...]:
    """Return the active plugins of this process."""
    return _active


def activate(plugins: Sequence[Plugin]) -> None:
    """Make ``plugins`` the only active ones.

    Raises :class:`PluginError` for a name that two plugins register, or that rayddl itself registers.
    """
    global _active  # noqa: PLW0603  # names in settings mean the same in the whole process
    _refuse_twice(plugins)
    if plugins or _active:
        for forget in _forget:
            forget()
    _active = tuple(plugins)


def find(group: str, name: str) -> Any | None:
    """Return the object that a plugin registers under a name; ``None`` if no plugin does."""
    return next((p.provided(group)[name] for p in _active if name in p.provided(group)), None)


def owner(group: str, name: str) -> Plugin | None:
    """Return the plugin that registers a name; ``None`` if no plugin does."""
    return next((plugin for plugin in _active if name in plugin.provided(group)), None)


def names(group: str) -> tuple[str, ...]:
    """Return all names of a group: rayddl's own, then those of the plugins."""
    return (*_shipped.get(group, ()), *(name for plugin in _active for name in plugin.provided(group)))


def loaded() -> str:
    """Return ``plugins loaded: toy 1``, and how to load another: the end of a message about an unknown name."""
    return f"plugins loaded: {', '.join(map(str, _active)) or 'none'}; if a plugin registers it, add --plugin FILE.py"


@contextmanager
def called(group: str, name: str, given: str) -> Iterator[None]:
    """Raise :class:`PluginError` for any exception of a plugin's function, with its line; ``given``: for what it was
    called.
    """
    try:
        yield
    except RayddlError:
        raise
    except Exception as error:  # plugin code can raise any type
        raise PluginError(
            f"{NOUNS[group]} {name!r} of plugin {owner(group, name)} failed for {given}"
            f"{_line(find(group, name), error)}: {type(error).__name__}: {error}",
            code="plugin-failed",
        ) from error


def _line(function: object, error: Exception) -> str:
    """The last line of the function's own file that the error passed; empty for one that was not entered."""
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    passed = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f", at line {passed[-1].lineno} of {Path(passed[-1].filename).name}" if passed else ""


def unknown(group: str, name: object) -> str:
    """Return the message about a name that is not registered."""
    return (
        f"is not known; {suggestion(name, names(group), 'expected one of', _SEE.get(group, ''))}; {loaded()}"
    )


def suggestion(name: object, known: Iterable[str], noun: str, see: str = "") -> str:
    """Return ``did you mean 'x'?`` and :func:`few` of the known names, the end of a message about an unknown one."""
    listed = list(known)
    close = difflib.get_close_matches(str(name), listed, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}{noun}: {few(listed, name, see)}"


def few(known: Iterable[str], name: object = "", see: str = "") -> str:
    """Return the ``known`` names for a message. Of more than 8 these are the nearest to ``name``, without a name the
    first, with the number of the others and ``see``, which says how to list all.
    """
    listed = list(known)
    if len(listed) <= MOST_NAMED:
        return ", ".join(listed) or "none"
    matcher = difflib.SequenceMatcher(b=str(name).casefold())

    def nearness(each: str) -> float:
        matcher.set_seq1(each.casefold())
        return matcher.ratio()

    nearest = sorted(listed, key=nearness, reverse=True)[:MOST_NAMED] if name else listed[:MOST_NAMED]
    return f"{', '.join(nearest)} and {len(listed) - MOST_NAMED} more" + (f" ({see})" if see else "")


def top_of(module: str) -> str:
    """Return the top-level package of a module or ``module:attribute``."""
    return re.split("[.:]", module)[0]


def sources_of(name: str) -> dict[str, Path]:
    """Return the Python files of the top-level package or module of ``name``, by module name."""
    top = top_of(name)
    file = getattr(sys.modules.get(top), "__file__", None)
    if file is None:
        return {}
    path = Path(file)
    if path.name != "__init__.py":
        return {top: path} if path.suffix == ".py" else {}
    found = {}
    for each in sorted(path.parent.rglob("*.py")):
        parts = each.relative_to(path.parent).with_suffix("").parts
        found[".".join((top, *parts)).removesuffix(".__init__")] = each
    return found


def _refuse_twice(plugins: Sequence[Plugin]) -> None:
    called = [plugin.name for plugin in plugins]
    for name in called:
        if called.count(name) > 1:
            raise PluginError(
                f"two plugins are called {name!r}: rename one, or load only one of them", code="plugin-twice"
            )
    for group, noun in NOUNS.items():
        taken: dict[str, str] = dict.fromkeys(_shipped.get(group, ()), "rayddl itself")
        for name, plugin in _registered(plugins, group):
            if name in taken:
                raise PluginError(
                    f"the {noun} {name!r} of plugin {plugin.name} is registered already, by {taken[name]}; "
                    "give it another name",
                    code="plugin-name-taken",
                )
            taken[name] = f"plugin {plugin.name}"


def _registered(plugins: Sequence[Plugin], group: str) -> Iterator[tuple[str, Plugin]]:
    for plugin in plugins:
        if group == "kinds":
            # A mapping would hide a name that one plugin registers twice.
            yield from ((kind.name, plugin) for kind in plugin.kinds)
        else:
            yield from ((name, plugin) for name in plugin.provided(group))
