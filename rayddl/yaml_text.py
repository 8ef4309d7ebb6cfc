"""YAML that is written, such that text in it is read as the same text again."""

from __future__ import annotations

import re
from typing import Any

import yaml

TAG = "tag:yaml.org,2002:"
TYPES = (
    ("bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    ("int", re.compile(r"([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), "-+0123456789"),
    ("float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"), "-+.0123456789"),
    ("float", re.compile(r"([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"), "-+."),
    ("null", re.compile(r"(~|null|Null|NULL|)$"), ("~", "n", "N", "")),
    ("merge", re.compile(r"<<$"), "<"),
)
"""What YAML 1.2 reads as another type than text, where it is not quoted: the type, a pattern and the first letters."""
_BREAKS = re.compile("[\x85\u2028\u2029]")


class Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which quotes text that YAML 1.2 or, for other readers, YAML 1.1 takes for another type."""


# The class copies the resolvers of YAML 1.1 from its base.
for _name, _pattern, _first in TYPES:
    Dumper.add_implicit_resolver(TAG + _name, _pattern, list(_first))


def text(dumper: yaml.SafeDumper, value: str, style: str | None = None) -> yaml.Node:
    """Represent a text for a :class:`Dumper`, in PyYAML's ``style`` if that keeps it."""
    # PyYAML writes these line breaks as they are, and reads them as a newline or a space.
    return dumper.represent_scalar(f"{TAG}str", value, style='"' if _BREAKS.search(value) else style)


Dumper.add_representer(str, text)


def dump(value: Any, *, dumper: type[Dumper] = Dumper, **options: Any) -> str:
    """Return ``value`` as YAML, with keys in their order; ``options`` are those of ``yaml.dump``."""
    return str(yaml.dump(value, Dumper=dumper, **{"sort_keys": False, **options}))
