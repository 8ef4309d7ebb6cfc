"""Finds definition files and reads them, merged with the files that they extend."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rayddl import limits
from rayddl.errors import DefinitionError
from rayddl.pipeline.definition.document import Document, parse
from rayddl.pipeline.definition.problems import Key, Place, Problems, quoted
from rayddl.plugins import suggestion

FOLDER = "pipelines"
"""Folder in which definitions given without a path are searched: in the current folder, then among the shipped ones."""

_SUFFIXES = (".yaml", ".yml")
_TOP_KEY = re.compile(
    rb"""(^|\A\s*\{[^\0]*?[{,\s])(\xef\xbb\xbf)?["']?(source|stages|extends)["']?\s*:""", re.MULTILINE
)
"""A key of a definition at the start of a line, or anywhere in a file that is one ``{...}``, as JSON is."""
_KEYS_OF_ONE = "; a definition has the keys name, source, stages"
_MOST_FILES = 32
"""Files that may extend each other in a chain."""


def find(name: str | os.PathLike[str]) -> Path:
    """Return the definition file for ``name``: a path, or a name in ``pipelines/`` or among the shipped definitions;
    the ending ``.yaml`` or ``.yml`` may be left out.

    Raises :class:`DefinitionError` with the known names if there is none.
    """
    given = Path(name)
    files = (
        [given] if given.suffix in _SUFFIXES else [given, *(Path(f"{given}{ending}") for ending in _SUFFIXES)]
    )
    folders = [Path(), *_folders()] if given.parent == Path() else [Path()]
    for folder in folders:
        for file in files:
            if (folder / file).is_file():
                return folder / file
    wanted = files[min(1, len(files) - 1)]
    beside = [path.name for path in _definitions(given.parent)] if given.parent.is_dir() else []
    known = list(dict.fromkeys([*beside, *(f"{known}.yaml" for known in names())]))
    raise DefinitionError(
        f"no definition {str(name)!r}: looked for {', '.join(str(folder / wanted) for folder in folders)}; "
        + suggestion(
            wanted.name, known, "known definitions", f"all are in {' and '.join(map(str, _folders()))}"
        ),
        code="no-definition",
    )


def names() -> list[str]:
    """Return the names of the definitions in ``pipelines/`` and of the shipped ones, without their ending."""
    return sorted({path.stem for folder in _folders() for path in _definitions(folder)})


def _folders() -> list[Path]:
    """Return the folders in which definitions given without a path are searched, after the current one."""
    found = {folder.resolve(): folder for folder in (_shipped(), Path(FOLDER)) if folder.is_dir()}
    return list(reversed(found.values()))


def _shipped() -> Path:
    """Return the folder of the shipped definitions: in the installed package, or in the clone that it runs from."""
    package = Path(__file__).parents[2]
    clone = package.parent
    inside = package / FOLDER
    return clone / FOLDER if not inside.is_dir() and (clone / "pyproject.toml").is_file() else inside


def read(path: Path, problems: Problems) -> Document:
    """Return the file at ``path``, merged with the files that it extends; adds faults to ``problems``."""
    return _read(path, (), problems)


def from_mapping(value: Mapping[str, Any], problems: Problems) -> Document:
    """Return a definition given as a mapping, merged with what it extends. Variables in it are not replaced."""
    document = Document(_plain(value), {}, "definition")
    return _extended(document, Path(), (), problems)


def _read(path: Path, chain: tuple[Path, ...], problems: Problems) -> Document:
    text = _text(path, problems)
    if text is None:
        return Document({}, {}, str(path))
    own = Problems()
    document = parse(text, str(path), own, given=not chain)
    if chain and not _looks_like_a_definition(document.value):
        # The file may be any file of this machine, so nothing of it is quoted.
        problems.add(Place(str(path)), (), f"is no definition{_KEYS_OF_ONE}", code="not-a-definition")
        return Document({}, {}, str(path))
    problems.extend(own)
    if not isinstance(document.value, dict):
        if not own.found:
            what = "is empty" if document.value is None else "is not a mapping"
            problems.add(Place(str(path)), (), what + _KEYS_OF_ONE, code="not-a-definition")
        return Document({}, {}, str(path))
    return _extended(document, path, (*chain, path), problems)


def _text(path: Path, problems: Problems) -> str | None:
    """Return the text of a file; if it cannot be read, add the reason to ``problems`` and return ``None``."""
    most = limits.DOCUMENT_BYTES.value
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
        if len(data) > most:
            text = limits.DOCUMENT_BYTES.exceeded(path.stat().st_size, "bytes")
            problems.add(Place(str(path)), (), text, code="definition-too-large")
            return None
        return data.decode("utf-8-sig")
    except OSError as error:
        problems.add(Place(str(path)), (), f"cannot be read: {error.strerror}", code="definition-unreadable")
    except UnicodeDecodeError as error:
        problems.add(Place(str(path)), (), f"is not UTF-8 text (byte {error.start})", code="not-utf-8")
    return None


def _looks_like_a_definition(value: Any) -> bool:
    return isinstance(value, dict) and bool({"source", "stages", "extends"} & value.keys())


def _extended(document: Document, path: Path, chain: tuple[Path, ...], problems: Problems) -> Document:
    if "extends" not in document.value:
        return document
    place, named = document.place(("extends",)), document.value["extends"]
    own = Document(
        {k: v for k, v in document.value.items() if k != "extends"}, document.places, document.file
    )

    def refuse(text: str, code: str) -> Document:
        problems.add(place, ("extends",), text, code=code)
        # Keys that the base would have are not missing here.
        for key in {"name", "source", "stages"} - document.value.keys():
            problems.lose((key,))
        return own

    if not isinstance(named, str) or not named or not named.isprintable():
        return refuse(f"{quoted(named)} is not a file name", "extends-not-a-name")
    if len(chain) >= _MOST_FILES:
        return refuse(f"more than {_MOST_FILES} files extend each other", "extends-too-deep")
    base = Path(os.path.normpath(path.parent / named))
    fault = _unreachable(base, named, chain)
    return refuse(*fault) if fault else merged(_read(base, chain, problems), own)


def _unreachable(base: Path, named: str, chain: tuple[Path, ...]) -> tuple[str, str] | None:
    """Return why the file ``base``, written as ``named``, cannot be extended, as a text and a code; else ``None``."""
    try:
        resolved, there = base.resolve(strict=True), base.is_file()
    except FileNotFoundError:
        resolved, there = base, False
    except (OSError, RuntimeError, ValueError) as error:
        # A name too long for a file system, or links in a circle (RuntimeError before Python 3.13).
        reason = getattr(error, "strerror", None) or "its links lead in a circle"
        return f"{quoted(named)} cannot be opened: {reason}", "extends-not-a-name"
    if not there:
        known = [file.name for file in _definitions(base.parent) if file not in chain]
        hint = suggestion(base.name, known, "definitions there", f"all are in {base.parent}")
        return f"there is no file {str(base)!r}; {hint}", "extends-missing"
    if resolved in [earlier.resolve() for earlier in chain]:
        links = " → ".join(str(p) for p in (*chain, base))
        return f"the files extend each other in a circle: {links}", "extends-in-a-circle"
    return None


def merged(base: Document, over: Document) -> Document:
    """Return ``base`` updated by ``over``: mappings are merged by key, all other values are replaced."""
    replaced: set[Key] = set()
    value = _merge(base.value, over.value, (), replaced)
    kept = {key: place for key, place in base.places.items() if not _below(key, replaced)}
    return Document(value, {**kept, **over.places}, over.file)


def _merge(base: Any, over: Any, key: Key, replaced: set[Key]) -> Any:
    """Return the merged value; adds the keys at which ``over`` replaced ``base`` to ``replaced``."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        replaced.add(key)
        return over
    both = {name: _merge(base[name], over[name], (*key, name), replaced) for name in base if name in over}
    return {name: both.get(name, item) for name, item in base.items()} | {
        name: item for name, item in over.items() if name not in base
    }


def _below(key: Key, tops: set[Key]) -> bool:
    return any(key[:length] in tops for length in range(len(key) + 1))


def _definitions(folder: Path) -> Sequence[Path]:
    found = (path for suffix in _SUFFIXES for path in folder.glob(f"*{suffix}"))
    return sorted(path for path in found if not path.name.startswith(".") and _maybe_definition(path))


def _maybe_definition(path: Path) -> bool:
    """True if a file has a key of a definition, as text: one with a mistake elsewhere may be meant, too."""
    try:
        # Opening a named pipe would wait for a writer.
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return _TOP_KEY.search(file.read(limits.DOCUMENT_BYTES.value)) is not None
    except OSError:
        return False


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
