"""Finds definition files and reads them, merged with the files that they extend."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rayddl.errors import DefinitionError
from rayddl.pipeline.definition.document import Document, parse
from rayddl.pipeline.definition.problems import Key, Place, Problems, quoted
from rayddl.plugins import suggestion

FOLDER = "pipelines"
"""Folder in which definitions given without a path are searched: in the current folder, then among the shipped ones."""

_SUFFIXES = (".yaml", ".yml")


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
    known = [f"{known}.yaml" for known in names()]
    raise DefinitionError(
        f"no definition {str(name)!r}: looked for {', '.join(str(folder / wanted) for folder in folders)}; "
        + suggestion(wanted.name, known, "known definitions"),
        code="no-definition",
    )


def names() -> list[str]:
    """Return the names of the definitions in ``pipelines/`` and of the shipped ones, without their ending."""
    return sorted({path.stem for folder in _folders() for path in _definitions(folder)})


def _folders() -> list[Path]:
    """Return the folders in which definitions given without a path are searched, after the current one."""
    return [folder for folder in (Path(FOLDER), _shipped()) if folder.is_dir()]


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
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        problems.add(Place(str(path)), (), f"cannot be read: {error.strerror}", code="definition-unreadable")
        return Document({}, {}, str(path))
    except UnicodeDecodeError as error:
        problems.add(Place(str(path)), (), f"is not UTF-8 text (byte {error.start})", code="not-utf-8")
        return Document({}, {}, str(path))
    before = len(problems.found)
    document = parse(text, str(path), problems)
    if not isinstance(document.value, dict):
        if len(problems.found) == before:
            text = "is empty" if document.value is None else "is not a mapping"
            problems.add(
                Place(str(path)),
                (),
                f"{text}; a definition has the keys name, source, stages",
                code="not-a-definition",
            )
        return Document({}, {}, str(path))
    return _extended(document, path, (*chain, path), problems)


def _extended(document: Document, path: Path, chain: tuple[Path, ...], problems: Problems) -> Document:
    if "extends" not in document.value:
        return document
    place, named = document.place(("extends",)), document.value["extends"]
    own = Document(
        {k: v for k, v in document.value.items() if k != "extends"}, document.places, document.file
    )
    if not isinstance(named, str) or not named:
        problems.add(place, ("extends",), f"{quoted(named)} is not a file name", code="extends-not-a-name")
        return own
    base = Path(os.path.normpath(path.parent / named))
    if base.resolve() in [earlier.resolve() for earlier in chain]:
        links = " → ".join(str(p) for p in (*chain, base))
        problems.add(
            place,
            ("extends",),
            f"the files extend each other in a circle: {links}",
            code="extends-in-a-circle",
        )
        return own
    if not base.is_file():
        known = [file.name for file in _definitions(base.parent) if file not in chain]
        text = f"there is no file {str(base)!r}; "
        problems.add(
            place,
            ("extends",),
            text + suggestion(base.name, known, "definitions there"),
            code="extends-missing",
        )
        return own
    return merged(_read(base, chain, problems), own)


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
    return sorted(path for suffix in _SUFFIXES for path in folder.glob(f"*{suffix}"))


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
