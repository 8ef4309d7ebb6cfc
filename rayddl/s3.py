"""Reads objects of S3 with one request each, and writes them as a whole or not at all.

pyarrow asks for an object's size before it reads it, which doubles the wait, and stores what it has of an object if an
interrupt ends the writing. Listings and random access go through pyarrow.
"""

from __future__ import annotations

import io
import os
import random
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pyarrow import fs

_T = TypeVar("_T")
_OPTIONS = (
    "access_key", "secret_key", "session_token", "anonymous", "region", "scheme", "endpoint_override",
    "force_virtual_addressing", "tls_ca_file_path",
)  # fmt: skip
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_ATTEMPTS = 8
_BROKEN_OFF = 4
"""Attempts at a read that began and was cut off."""
_LONGEST_WAIT = 20.0
_IN_PARTS = 8 << 20
"""Bytes from which an object is written in several requests."""
CONNECTIONS = 64
"""Connections of a process to one place."""
_making = threading.Lock()


class UnreachableError(OSError):
    """The storage did not answer several requests. It says nothing about the file."""


def read(filesystem: fs.S3FileSystem, path: str, at: int = 0, size: int | None = None) -> bytes:
    """Return the object ``path`` (``bucket/key``) from byte ``at``, at most ``size`` bytes.

    Requests that fail for a passing reason are repeated, with growing pauses. Raises ``FileNotFoundError``,
    ``PermissionError``, :class:`UnreachableError`, and ``OSError`` for other answers of the server.
    """
    from botocore import exceptions

    client, bucket, key = _place(filesystem, path)
    if size == 0:
        return b""
    last = "" if size is None else at + size - 1
    part = {"Range": f"bytes={at}-{last}"} if at or size is not None else {}

    def whole() -> bytes:
        return bytes(client.get_object(Bucket=bucket, Key=key, **part)["Body"].read())

    cut_off = (exceptions.HTTPClientError, exceptions.IncompleteReadError, exceptions.FlexibleChecksumError)
    try:
        return patiently(whole, cut_off, _BROKEN_OFF)
    except exceptions.ClientError as error:
        if error.response["Error"]["Code"] == "InvalidRange":  # it begins behind the object's end
            return b""
        raise _as_os_error(error, path) from error
    except exceptions.BotoCoreError as error:
        raise UnreachableError(f"{path}: {error}") from error


def write(filesystem: fs.S3FileSystem, path: str, content: bytes | Path) -> None:
    """Store the object ``path`` (``bucket/key``); ``content`` are its bytes or a local file with them.

    If it is interrupted, the object stays as it was. Raises the errors of :func:`read`.
    """
    from boto3.exceptions import S3UploadFailedError
    from botocore import exceptions

    client, bucket, key = _place(filesystem, path)
    try:
        if isinstance(content, Path):
            client.upload_file(str(content), bucket, key)
        elif len(content) < _IN_PARTS:
            client.put_object(Bucket=bucket, Key=key, Body=content)
        else:
            client.upload_fileobj(io.BytesIO(content), bucket, key)
    except exceptions.ClientError as error:
        raise _as_os_error(error, path) from error
    except (exceptions.BotoCoreError, S3UploadFailedError) as error:
        # The upload of a file wraps what the server answered.
        answer = error.__context__
        if isinstance(answer, exceptions.ClientError):
            raise _as_os_error(answer, path) from error
        raise UnreachableError(f"{path}: {error}") from error


def _place(filesystem: fs.S3FileSystem, path: str) -> tuple[Any, str, str]:
    """A client for the filesystem, and the path's bucket and key."""
    with _making:
        client = _client(tuple(filesystem.__reduce__()[1][0][name] for name in _OPTIONS))
    bucket, _, key = path.partition("/")
    return client, bucket, key


def patiently(call: Callable[[], _T], passing: tuple[type[Exception], ...], attempts: int) -> _T:
    """Return ``call()``; errors of the types ``passing`` lead to at most ``attempts`` calls, with growing pauses."""
    for attempt in range(attempts - 1):
        try:
            return call()
        except passing as error:  # noqa: PERF203  # a pause takes longer
            if isinstance(error, (FileNotFoundError, PermissionError)):
                raise
            time.sleep(min(_LONGEST_WAIT, random.uniform(0.5, 1.0) * 2**attempt))  # noqa: S311  # no secret
    return call()


def _as_os_error(error: Any, path: str) -> OSError:
    """The error of the class that Python's own files raise."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    kind = {403: PermissionError, 404: FileNotFoundError}.get(status)
    if kind is None:
        kind = UnreachableError if status >= 500 or status == 429 else OSError
    return kind(f"{path}: {error}")


@lru_cache(maxsize=8)
def _client(options: tuple[Any, ...]) -> Any:
    """The client for a filesystem's options, which many threads may use."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    given = dict(zip(_OPTIONS, options, strict=True))
    endpoint = next(filter(None, [given["endpoint_override"], *map(os.environ.get, _ENDPOINTS)]), "")
    if endpoint and "://" not in endpoint:
        endpoint = f"{given['scheme']}://{endpoint}"
    session = boto3.session.Session()
    # Without any keys, as on a public bucket, pyarrow does not sign.
    unsigned = given["anonymous"] or not (given["access_key"] or session.get_credentials())
    style = "virtual" if given["force_virtual_addressing"] else "path" if endpoint else "auto"
    config = Config(
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        max_pool_connections=CONNECTIONS,
        connect_timeout=10,
        s3={"addressing_style": style},
        # Stores that only resemble S3 do not know its newer checksums.
        response_checksum_validation="when_required",
        request_checksum_calculation="when_required",
        **({"signature_version": UNSIGNED} if unsigned else {}),
    )
    return session.client(
        "s3",
        region_name=given["region"] or None,
        endpoint_url=endpoint or None,
        aws_access_key_id=given["access_key"] or None,
        aws_secret_access_key=given["secret_key"] or None,
        aws_session_token=given["session_token"] or None,
        verify=given["tls_ca_file_path"] or None,
        config=config,
    )
