"""Sets on the Hugging Face Hub: ``hf://owner/name`` as a place to read, and uploads.

The Hub is the host of the environment variable ``HF_ENDPOINT``, else Hugging Face's own; it is contacted only for an
``hf://`` place or an upload that the caller names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rayddl import hosts
from rayddl.credentials import scrub
from rayddl.errors import UserError
from rayddl.version import __version__

SCHEME = "hf://"
_PART = r"\w[\w.-]*"
_PLACE = re.compile(
    rf"hf://(?:datasets/)?(?P<name>{_PART}/{_PART})(?:@(?P<revision>{_PART}))?(?P<folder>(?:/\w[\w .-]*)*)/?"
)
_NAME = re.compile(f"{_PART}/{_PART}")
_LONGEST = 300
_PARTS = ("set.json", "set.safetensors", "labels/*", "observer/*")
"""The files that make a set and its labels; its pictures and scripts are not fetched."""


def fetched(where: str) -> str:
    """Fetch the set at ``where``, ``hf://owner/name[@revision][/folder]``, and return the local folder.

    Files that are in the Hub's local cache already are not fetched again. Raises :class:`UserError`.
    """
    hosts.check(where)
    place = _PLACE.fullmatch(where)
    if place is None:
        raise UserError(
            f"{where!r} names no data set on the Hugging Face Hub; expected hf://owner/name, and optionally "
            "@revision and /folder",
            code="hub-place-unknown",
        )
    name, revision, inside = place["name"], place["revision"], place["folder"].strip("/")
    prefix = f"{inside}/" if inside else ""
    with _answering(f"{SCHEME}{name}") as hub:
        local: str = hub.snapshot_download(
            name,
            repo_type="dataset",
            revision=revision,
            endpoint=_endpoint(),
            allow_patterns=[prefix + part for part in _PARTS],
            library_name="rayddl",
            library_version=__version__,
        )
    found: str = os.path.join(local, *inside.split("/")) if inside else local
    if not os.path.isfile(os.path.join(found, "set.json")):
        raise UserError(
            f"no distilled set at {where!r}: the data set has no {prefix}set.json. rayddl export --format hf makes "
            "one that has",
            code="hub-holds-no-set",
        )
    return found


def refuse_other_names(name: str) -> None:
    """Raise :class:`UserError` unless ``name`` is ``owner/name``."""
    if _NAME.fullmatch(name) is None:
        raise UserError(
            f"--push takes owner/name on the Hugging Face Hub, not {name!r}", code="hub-name-unknown"
        )


def pushed(folder: str, name: str, files: Sequence[str]) -> str:
    """Upload ``files`` of the local ``folder`` into the data set ``name``, and return its address.

    A data set that does not exist is made, as a private one; files of others in it are not changed. Raises
    :class:`UserError`.
    """
    refuse_other_names(name)
    with _answering(f"{SCHEME}{name}") as hub:
        api = hub.HfApi(endpoint=_endpoint(), library_name="rayddl", library_version=__version__)
        made = api.create_repo(name, repo_type="dataset", private=True, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            repo_type="dataset",
            folder_path=folder,
            allow_patterns=[*files],
            commit_message="Upload a distilled set",
        )
    return str(made)


def _reason(error: Exception) -> str:
    """The first line of the error's message; its type if the message is empty."""
    return str(scrub((str(error).strip() or type(error).__name__).splitlines()[0][:_LONGEST]))


def _endpoint() -> str | None:
    """The Hub's address; ``None`` for Hugging Face's own. The library reads the variable only when it is imported."""
    return os.environ.get("HF_ENDPOINT") or None


@contextmanager
def _answering(what: str) -> Iterator[Any]:
    """Yield the library, and turn its errors inside the block into :class:`UserError`."""
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors
        from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]  # it is re-exported
    except ImportError as error:
        raise UserError(
            f"{what} needs the package huggingface_hub; install it: uv pip install huggingface_hub",
            code="hub-not-installed",
        ) from error
    disable_progress_bars()
    at = _endpoint() or "the Hugging Face Hub"
    try:
        yield hub
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise UserError(
            f"{at} has no data set {what}, or it is private and the token (hf auth login, HF_TOKEN) may not read it",
            code="hub-not-found",
        ) from error
    except Exception as error:  # the library's transport has errors of its own
        raise UserError(
            f"{at} did not serve {what}: {_reason(error)}. Check the name, the network, and the "
            "token (hf auth login, HF_TOKEN)",
            code="hub-failed",
        ) from error
