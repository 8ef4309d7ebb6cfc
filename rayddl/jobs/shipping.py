"""Packs the files that a job needs: the complete definition, the rayddl package, plugins and extra files.

Every machine of the cluster unpacks a job's working directory from a package stored on the head, and deletes it
after the job. Its files must therefore be small and free of secrets, and results are not written there.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import rayddl
from rayddl import yaml_text
from rayddl.config import Config, places
from rayddl.credentials import scrub
from rayddl.errors import UserError
from rayddl.pipeline.definition.load import Definition
from rayddl.pipeline.display import pace
from rayddl.plugins import sources_of, top_of

DEFINITION = "definition.yaml"
"""File name of the definition in the job's working directory."""
LIMIT_BYTES = 200 * 2**20
"""Maximum total size in bytes: the head keeps the files in memory, and every machine fetches them."""

# Ray applies .gitignore, which would exclude files that were chosen here.
_NEVER = {"__pycache__", ".gitignore", ".rayignore", ".git", ".hg", ".svn"}
# In the working folder, these are rayddl's results and images, and what tools install.
_NOT_FROM_HERE = {*_NEVER, ".venv", "venv", "runs", "data", "node_modules"}
_CACHES = re.compile(r"\..*_cache|\.hypothesis|.*\.pyc|.*\.egg-info|\.DS_Store|\.coverage")
_USER_PART = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/\s]*@|[A-Za-z][A-Za-z0-9+.-]*://[^@\s]*:[^@\s]*@")


@dataclass(frozen=True)
class JobFiles:
    """The files of a job: local files by their names in the job's working directory."""

    files: Mapping[str, Path]
    definition: str
    """The text of the definition, with base definitions, overrides and variables resolved."""
    plugins: tuple[str, ...] = ()
    """The values of ``--plugin`` that load the shipped plugins."""

    def write(self, folder: Path) -> None:
        """Copy all files into the empty ``folder``."""
        for name, path in self.files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        (folder / DEFINITION).write_text(self.definition, encoding="utf-8")


def pack(definition: Definition, paths: Iterable[str] = (), *, limit: int = LIMIT_BYTES) -> JobFiles:
    """Return the files that ``definition`` needs on another machine, with the extra files and folders ``paths``.

    Raises :class:`UserError` for a relative path that is not shipped, for credentials in the definition, for a
    missing one of ``paths``, for a link to a folder in them, and above ``limit`` bytes, with the largest files.
    """
    files = dict(_package())
    extras: dict[str, Path] = {}
    for given in paths:
        extras |= _extra_files(given)
    loaded: list[str] = []
    for plugin in definition.plugins:
        named, own = _plugin(str(plugin.module))
        loaded.append(named)
        _refuse_overwriting(files, own)
        files |= own
    _refuse_overwriting(files, extras)
    _refuse_local_paths(definition, extras)
    parcel = JobFiles({**files, **extras}, written(definition), tuple(loaded))
    _refuse_large(parcel, limit)
    return parcel


def written(definition: Definition) -> str:
    """Return ``definition`` as YAML that needs no other file and no variable.

    Raises :class:`UserError` for credentials in it, which would be stored with the job.
    """
    for key, value in _texts(definition.to_json(), ()):
        _refuse_credentials(".".join(key), value)
    # A remaining "${" is literal text, but reading the file would replace it as a variable.
    text = yaml_text.dump(definition.to_json(), allow_unicode=True, width=100)
    if "${" in text:
        raise UserError(
            f"{definition.file or 'the definition'} holds '${{' after its variables were replaced, and another "
            "machine would replace it again; take it out",
            code="substitution-left",
        )
    return text


def check_out(out: str) -> None:
    """Raise :class:`UserError` for an ``--out`` that would be deleted with the job, or that has credentials."""
    _refuse_credentials("--out", out)
    if "://" not in out and not os.path.isabs(os.path.expanduser(out)):
        raise UserError(
            f"--out {out!r} would be in the job's own folder, which is deleted after it; give a URI such as "
            "s3://bucket/runs, or a full path that every machine of the cluster sees"
            f' (on this machine alone: --out "{os.path.abspath(out)}")',
            code="out-inside-job",
        )


def _package() -> Iterator[tuple[str, Path]]:
    """Yield the files of the imported rayddl package, and the project file if it is a checkout."""
    home = Path(rayddl.__file__).parent
    yield from _below(home, home.name)
    project = home.parent / "pyproject.toml"
    if project.is_file() and re.search(
        r'^name = "rayddl"$', project.read_text(encoding="utf-8"), re.MULTILINE
    ):
        yield project.name, project


def _plugin(module: str) -> tuple[str, dict[str, Path]]:
    """Return the value of ``--plugin`` that loads a plugin in the job, and all files of its package."""
    top = top_of(module)
    file = sources_of(top)[top]
    if top == file.stem:
        return module, {file.name: file}
    if file.name == "__init__.py":
        return module, dict(_below(file.parent, top))
    # The module name of a plugin given as a file is made of its content, so it is the same in the job.
    place = f"plugins/{file.name}"
    return place + module.removeprefix(top), {place: file}


def _extra_files(given: str) -> dict[str, Path]:
    path = Path(given)
    if not path.exists():
        raise UserError(f"--with {given!r}: there is no such file or folder", code="shipped-file-missing")
    # Named by its path below this folder, so that relative paths in the definition work in the job.
    name = os.path.relpath(path.resolve(), Path.cwd())
    name = path.resolve().name if name.startswith("..") else name
    return {name: path} if path.is_file() else dict(_below(path, "" if name == "." else name))


def _below(folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    """Yield the files in ``folder`` and below, by their names below ``name``, which is empty for the working folder."""
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.name in (_NEVER if name else _NOT_FROM_HERE) or _CACHES.fullmatch(entry.name):
            continue
        inside = f"{name}/{entry.name}" if name else entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from _below(Path(entry.path), inside)
        elif entry.is_dir():
            raise UserError(
                f"{entry.path} is a link to a folder, and these are not shipped, since they may lead anywhere, also in "
                "a circle; put the folder itself in its place, take the link out, or ship with --with only what the "
                "job needs",
                code="shipped-link-to-folder",
            )
        elif entry.is_file():
            yield inside, Path(entry.path)


def _refuse_overwriting(files: Mapping[str, Path], extras: Mapping[str, Path]) -> None:
    for name, path in extras.items():
        if name == DEFINITION or (name in files and not path.samefile(files[name])):
            raise UserError(
                f"{name} would take the place of another file that the job has; name it otherwise",
                code="shipped-file-takes-place",
            )


def _refuse_credentials(where: str, value: str) -> None:
    if _USER_PART.match(value):
        raise UserError(
            f"{where} holds credentials ({scrub(value)!r} without them), which would be stored with the job; take "
            "them out, and give the cluster's machines a role, or the variables that pyarrow reads "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)",
            code="credentials-in-definition",
        )


def paths_not_on_cluster(
    definition: Definition, extras: Mapping[str, Path] = MappingProxyType({})
) -> Iterator[tuple[str, str]]:
    """Keys of ``definition`` with relative paths, which only this machine resolves, without those in ``extras``."""
    configs: list[tuple[str, Config]] = [("source", definition.source)]
    configs += [(f"{stage.name}", stage.config) for stage in definition.stages]
    for where, config in configs:
        for field, value in places(config):
            if "://" in value or os.path.isabs(os.path.expanduser(value)):
                continue
            name = os.path.normpath(value)
            if not any(f == name or f.startswith(f"{name}/") or name == "." for f in extras):
                yield f"{where}.{field}", value


def _refuse_local_paths(definition: Definition, extras: Mapping[str, Path]) -> None:
    for where, value in paths_not_on_cluster(definition, extras):
        raise UserError(
            f"{where}={value!r} is a path on this machine that the job does not have; give a URI or a full path that "
            f"every machine of the cluster sees, or ship it: --with {value}",
            code="path-not-on-cluster",
        )


def _refuse_large(parcel: JobFiles, limit: int) -> None:
    sizes: dict[str, int] = {}
    for name, path in parcel.files.items():
        # Sizes are summed by folder, since the cause is more often a folder of images than one file.
        top = "/".join(name.split("/")[:2])
        sizes[top] = sizes.get(top, 0) + path.stat().st_size
    total = sum(sizes.values())
    if total > limit:
        largest = sorted(sizes.items(), key=lambda item: -item[1])[:3]
        listed = ", ".join(f"{name} ({pace.size(size)})" for name, size in largest)
        raise UserError(
            f"{pace.size(total)} would be shipped with the job, and at most {pace.size(limit)} are; the largest are "
            f"{listed}. Put data on storage that every machine reads, and name it in the definition",
            code="shipment-too-large",
        )


def _texts(value: Any, key: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _texts(item, (*key, str(name)))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _texts(item, (*key, str(index)))
