"""What a plugin brings, and which plugins this process works with.

Imports neither torch nor Ray. Definitions name what is registered here and can register nothing: what plugins are
loaded is said on the command line, by ``rayddl.run(…, plugins=…)``, or by what is installed.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rayddl.errors import PluginError

NOUNS = {
    "nets": "network",
    "sources": "source",
    "kinds": "stage kind",
    "selections": "selection",
    "losses": "loss",
}
"""The groups of names, and what one of each is called."""
_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Splits:
    """The images of a source that is given in Python.

    A split is a map-style torch ``Dataset`` of ``(image, label)``, each image a PIL image, a uint8 tensor or a float
    tensor in 0..1, ``[C, H, W]``; or a pair of arrays, images uint8 ``[N, C, H, W]`` or ``[N, H, W, C]`` and labels
    ``[N]``. C is 1 or 3.
    """

    train: Any
    test: Any
    classes: Sequence[str] | None = None
    """Names of the labels 0, 1, …; default: the data set's ``classes``, else the numbers."""


@dataclass(frozen=True, eq=False)
class Plugin:
    """Names that definitions may use, with what stands behind each.

    Raises :class:`PluginError` for a name that is none, and for something that cannot be called.
    """

    name: str
    version: str = ""
    """Part of the fingerprints of the stages that use the plugin; default: the hash of its sources, where it is
    declared in a file or a package."""
    nets: Mapping[str, Callable[[int, int, int], Any]] = field(default_factory=dict)
    """``(num_classes, channels, size) -> nn.Module``."""
    sources: Mapping[str, Any] = field(default_factory=dict)
    """:class:`Splits`, or a function of the definition's ``source`` that returns them."""
    kinds: Sequence[Any] = ()
    """Of :class:`rayddl.Kind`."""
    selections: Mapping[str, Callable[[Any, int], Any]] = field(default_factory=dict)
    """``(features, count) -> indices`` for ``kind: coreset``: features float32 ``[n, D]`` of one class, the indices of
    ``count`` different rows."""
    losses: Mapping[str, Callable[[Any, Any], Any]] = field(default_factory=dict)
    """``(student_logits, teacher_logits) -> scalar`` for soft labels, both ``[B, K]``."""
    module: str | None = field(default=None, kw_only=True)
    """``module``, or ``module:attribute``, that declares it; set where it is loaded."""

    def __post_init__(self) -> None:
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
        """What the plugin has of a group of names."""
        if group == "kinds":
            return {kind.name: kind for kind in self.kinds}
        found: Mapping[str, Any] = getattr(self, group)
        return found

    def __str__(self) -> str:
        return f"{self.name} {self.version[:12]}".strip()


_shipped: dict[str, tuple[str, ...]] = {}
_active: tuple[Plugin, ...] = ()
_forget: list[Callable[[], None]] = []


def shipped(group: str, names: Iterable[str]) -> tuple[str, ...]:
    """Declare rayddl's own ``names`` of a group; they are returned."""
    _shipped[group] = tuple(names)
    return _shipped[group]


def forgotten(cached: _Function) -> _Function:
    """Have the cache of ``cached`` cleared when other plugins are worked with: a name may mean something else then."""
    _forget.append(cached.cache_clear)  # type: ignore[attr-defined]
    return cached


def on_change(forget: Callable[[], None]) -> None:
    """Have ``forget`` called when other plugins are worked with."""
    _forget.append(forget)


def active() -> tuple[Plugin, ...]:
    """The plugins that this process works with."""
    return _active


def activate(plugins: Sequence[Plugin]) -> None:
    """Work with ``plugins`` and no others.

    Raises :class:`PluginError` for a name that two of them register, or that is rayddl's own.
    """
    global _active  # noqa: PLW0603  # names in settings mean the same in the whole process
    _refuse_twice(plugins)
    if plugins or _active:
        for forget in _forget:
            forget()
    _active = tuple(plugins)


def find(group: str, name: str) -> Any | None:
    """What the plugins have under a name; ``None`` where they have nothing."""
    return next((p.provided(group)[name] for p in _active if name in p.provided(group)), None)


def owner(group: str, name: str) -> Plugin | None:
    """The plugin that registers a name."""
    return next((plugin for plugin in _active if name in plugin.provided(group)), None)


def names(group: str) -> tuple[str, ...]:
    """Every name of a group: rayddl's own, then the plugins'."""
    return (*_shipped.get(group, ()), *(name for plugin in _active for name in plugin.provided(group)))


def loaded() -> str:
    """``plugins loaded: toy 1``, for the end of a message about a name that is not known."""
    return f"plugins loaded: {', '.join(map(str, _active)) or 'none'}"


def unknown(group: str, name: object) -> str:
    """What is said of a name that is not registered."""
    return f"is not known; {suggestion(name, names(group), 'expected one of')}; {loaded()}"


def suggestion(name: object, known: Iterable[str], noun: str) -> str:
    """``did you mean 'x'?`` and the known names, for the end of a sentence about an unknown one."""
    listed = list(known)
    close = difflib.get_close_matches(str(name), listed, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}{noun}: {', '.join(listed) if listed else 'none'}"


def top_of(module: str) -> str:
    """The package that a module, or ``module:attribute``, is in."""
    return re.split("[.:]", module)[0]


def sources_of(name: str) -> dict[str, Path]:
    """The Python files of the package or module at the top of ``name``, by the modules that they are."""
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
            # As a mapping they would hide a name that one plugin registers twice.
            yield from ((kind.name, plugin) for kind in plugin.kinds)
        else:
            yield from ((name, plugin) for name in plugin.provided(group))
