"""Reads YAML text as plain values with the line of each.

Differences from PyYAML's safe loader: duplicate keys are problems; ``${NAME}`` and ``${NAME:-default}`` in
values are replaced from the environment; types are those of YAML 1.2 (``1e-5`` is a number, ``no`` and
``12:30`` are strings); and tags other than the plain types are problems.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from rayddl import localfiles
from rayddl.pipeline.definition.problems import UNSET, Key, Place, Problems, quoted
from rayddl.yaml_text import TAG, TYPES

_MOST_NODES = 100_000
_LONGEST_NUMBER = 24
_SUBSTITUTION = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^${}]*))?\}")
_REASONS = (
    (
        "mapping values are not allowed",
        "a ':' where no key can stand; give the keys of one level the same indentation, and quote text with ': '",
    ),
    ("could not find expected ':'", "a ':' is missing after a key, in this line or the one before it"),
    ("while parsing a flow", "a ',' or a closing bracket is missing"),
    (
        "expected <block end>",
        "this line is indented otherwise than the others of its level; give them all the same number of spaces",
    ),
    ("quoted scalar", "a quote is not closed"),
    ("another document", "'---' begins a second definition, and a file holds one"),
)
"""Parts of PyYAML's messages, and what they mean."""
_OWN_PLACE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}(/[^?#@$]*)?")


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with the types of YAML 1.2."""


# Removes the resolvers of YAML 1.1, which the class would copy from its base.
_Loader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in TYPES:
    _Loader.add_implicit_resolver(TAG + _name, _pattern, list(_first))


@dataclass(frozen=True)
class Document:
    """Plain values (mappings, lists, strings, numbers, booleans, ``None``) with their places in the file."""

    value: Any
    places: Mapping[Key, Place]
    file: str

    def place(self, key: Key) -> Place:
        """Return the place of ``key``, or of the innermost enclosing key that has one."""
        for length in range(len(key), -1, -1):
            if key[:length] in self.places:
                return self.places[key[:length]]
        return Place(self.file)


def parse(
    text: str, file: str, problems: Problems, *, lines: bool = True, key: Key = (), given: bool = True
) -> Document:
    """Parse YAML ``text``, named ``file`` in messages, and add its faults to ``problems``.

    Without ``lines``, places have no line numbers, as for an override. ``key`` is the position of the value in
    the definition. ``given`` is true for what the user named on the command line; in other files, a variable may
    stand in a URI only as its beginning, so that the host is the user's, and no value is sent to another one.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark and lines else None
        written = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
        problems.add(Place(file, line), key, f"not valid YAML: {_reason(error, written)}", code="not-yaml")
        return Document(None, {}, file)
    except yaml.YAMLError as error:
        problems.add(Place(file), key, f"not valid YAML: {' '.join(str(error).split())}", code="not-yaml")
        return Document(None, {}, file)
    except RecursionError:
        problems.add(Place(file), key, "values are nested too deeply", code="nested-too-deeply")
        return Document(None, {}, file)
    reader = _Reader(file, problems, lines, given)
    try:
        value = None if node is None else reader.read(node, key)
    except RecursionError:
        problems.add(Place(file), key, "values are nested too deeply", code="nested-too-deeply")
        return Document(None, {}, file)
    return Document(value, reader.places, file)


def in_unicode(document: Document, problems: Problems) -> Document:
    r"""Return the document with all text such that a file or terminal takes it; adds faults to ``problems``.

    The two halves of a character, of which JSON makes one, are joined. A byte of the name of a file that is not UTF-8
    becomes ``\xe9``, by which the file is found. Any other half is a problem.
    """

    def whole(text: str) -> str | None:
        try:
            return localfiles.shown(text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass"))
        except UnicodeEncodeError:
            return None

    def refuse(what: str, at: Key, key: Key) -> None:
        text = f"{what} holds half of a character (U+D800 to U+DFFF); write the whole character"
        problems.add(document.place(at), key, text, code="half-a-character")
        problems.lose(key)

    def read(value: Any, key: Key) -> Any:
        if isinstance(value, str) and not value.isascii():
            if (text := whole(value)) is None:
                refuse(quoted(value), key, key)
            return text
        if isinstance(value, list):
            return [read(item, (*key, i)) for i, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        found = {}
        for name, item in value.items():
            at = (*key, name)
            own = name if str(name).isascii() else whole(name)
            if own is None:
                refuse(f"the key {quoted(name)}", at, key)
            else:
                found[own] = read(item, at)
        return found

    return Document(read(document.value, ()), document.places, document.file)


def _reason(error: yaml.MarkedYAMLError, line: str) -> str:
    """What is wrong with a line, in words of those who write definitions, where they are known."""
    said, all_said = str(error.problem or error.context), f"{error.context} {error.problem}"
    if "${" in line:
        return f"{said}; inside {{ }} and [ ] a ${{NAME}} needs quotes"
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return "this line is indented with a tab; indent with spaces"
    return next((text for part, text in _REASONS if part in all_said), said)


@dataclass
class _Reader:
    """Turns PyYAML's nodes into plain values."""

    file: str
    problems: Problems
    lines: bool
    given: bool = True
    places: dict[Key, Place] = field(default_factory=dict)
    seen: int = 0
    open: dict[int, Key] = field(default_factory=dict)

    def read(self, node: yaml.Node, key: Key) -> Any:
        place = self._place(node)
        self.places.setdefault(key, place)
        self.seen += 1
        if self.seen > _MOST_NODES or id(node) in self.open:
            # A few lines of nested aliases can expand without bound, and an alias may contain itself.
            self.problems.add(
                place,
                (),
                f"more than {_MOST_NODES} values, or an alias that holds itself",
                code="too-many-values",
            )
            self.problems.lose(key)
            self.problems.lose(self.open.get(id(node), key))
            return None
        self.open[id(node)] = key
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == f"{TAG}map":
                return self._mapping(node, key)
            if isinstance(node, yaml.SequenceNode) and node.tag == f"{TAG}seq":
                return [self.read(item, (*key, i)) for i, item in enumerate(node.value)]
            if isinstance(node, yaml.ScalarNode):
                return self._scalar(node, key)
            self.problems.add(
                place, key, f"the tag {_short(node.tag)!r} is not allowed", code="tag-not-allowed"
            )
            self.problems.lose(key)
            return None
        finally:
            del self.open[id(node)]

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        first: dict[str, Place] = {}
        for name_node, value_node in node.value:
            place = self._place(name_node)
            if name_node.tag == f"{TAG}merge":
                merged.update(self._merged(value_node, key))
                continue
            name = name_node.value
            if not isinstance(name_node, yaml.ScalarNode) or name_node.tag != f"{TAG}str":
                self.problems.add(
                    place,
                    key,
                    f"the key {_raw(name_node)} is not text; put it in quotes",
                    code="key-not-text",
                )
                continue
            if name in own:
                earlier = first[name].line
                text = f"duplicate key{f'; first written on line {earlier}' if earlier else ''}"
                self.problems.add(place, (*key, name), text, code="duplicate-key")
                continue
            first[name] = place
            self.places[(*key, name)] = place
            own[name] = self.read(value_node, (*key, name))
        return {**merged, **own}

    def _merged(self, node: yaml.Node, key: Key) -> dict[str, Any]:
        value = self.read(node, key)
        if isinstance(value, dict):
            return value
        self.problems.add(self._place(node), key, "'<<' takes one mapping", code="merge-not-a-mapping")
        return {}

    def _scalar(self, node: yaml.ScalarNode, key: Key) -> Any:
        text = node.value
        tag = node.tag
        if "${" in text:
            text = self._substituted(node, key)
            if tag in {f"{TAG}str", f"{TAG}float", f"{TAG}int"}:
                tag = _plain_tag(text) if node.style is None else f"{TAG}str"
        try:
            return _typed(tag, text)
        except KeyError:
            self.problems.add(
                self._place(node), key, f"the tag {_short(node.tag)!r} is not allowed", code="tag-not-allowed"
            )
        except ValueError:
            self.problems.add(
                self._place(node),
                key,
                f"{quoted(text)} does not fit {_short(tag)!r}",
                code="value-of-another-type",
            )
        self.problems.lose(key)
        return None

    def _substituted(self, node: yaml.ScalarNode, key: Key) -> str:
        place = self._place(node)

        def replacement(found: re.Match[str]) -> str:
            name, default = found["name"], found["default"]
            value = os.environ.get(name, "")
            if value or (default is None and name in os.environ):
                return value
            if default is None:
                text = f"the environment variable {name} is not set; set it, or give a default: "
                self.problems.add(place, key, text + f"${{{name}:-value}}", code=UNSET)
            return default or ""

        if "${" in _SUBSTITUTION.sub("", node.value):
            text = f"{quoted(node.value)} is not a substitution; write ${{NAME}} or ${{NAME:-default}}"
            self.problems.add(place, key, text, code="substitution-malformed")
            self.problems.lose(key)
            return str(node.value)
        text = _SUBSTITUTION.sub(replacement, node.value)
        if not self.given and "://" in text and not _OWN_PLACE.fullmatch(node.value):
            fault = (
                f"{quoted(node.value)} would put a variable into a URI; in a file that another one extends, "
            )
            fault += "only ${NAME} followed by a path may be a URI"
            self.problems.add(place, key, fault, code="variable-in-a-uri")
            self.problems.lose(key)
            return str(node.value)
        return text

    def _place(self, node: yaml.Node) -> Place:
        return Place(self.file, node.start_mark.line + 1 if self.lines else None)


def _plain_tag(text: str) -> str:
    kinds = (kind for kind, pattern, _ in TYPES if kind != "merge" and pattern.match(text))
    return TAG + next(kinds, "str")


def _typed(tag: str, text: str) -> Any:
    kind = tag.removeprefix(TAG)
    if kind == "str":
        return text
    if kind == "null":
        return None
    if kind == "bool":
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if kind == "int":
        bases = {"0o": 8, "0x": 16}
        if len(text) > _LONGEST_NUMBER:
            raise ValueError(text)
        return int(text, bases.get(text[:2], 10))
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    raise KeyError(kind)


def _short(tag: str) -> str:
    return str(tag).replace(TAG, "!!")


def _raw(node: yaml.Node) -> str:
    return quoted(node.value) if isinstance(node, yaml.ScalarNode) else "that is a list or mapping"
