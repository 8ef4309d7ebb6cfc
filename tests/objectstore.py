"""An S3 server on loopback, in a process of its own, that counts its requests and may answer them late.

`python -m tests.objectstore` prints its port, and serves until its input ends. GET /counts returns the counts and
resets them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

KEY, SECRET = "AKIDRAYDDLTEST", "wJalrXUtnFEMI%2FK7MDENG%2FbPxRfiCY"


@dataclass(frozen=True)
class ObjectStore:
    """The server, with one empty bucket."""

    port: int

    def uri(self, path: str) -> str:
        """A place in the bucket, with the keys that open it."""
        return f"s3://{KEY}:{SECRET}@bucket/{path}?endpoint_override=127.0.0.1%3A{self.port}&scheme=http&region=us-east-1"

    def counts(self) -> Counter[str]:
        """Requests since the last call: ``LIST``, and ``GET``, ``HEAD``, ``PUT`` … of objects."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/counts") as answer:
            return Counter(json.load(answer))

    def delay(self, seconds: float) -> None:
        """Answer each request so much later from now on."""
        urllib.request.urlopen(f"http://127.0.0.1:{self.port}/delay/{seconds}").close()

    def fail(self, times: int, status: int = 503, *, listings: bool = False) -> None:
        """Answer the next requests of objects, or those of listings, with an error."""
        what = "list" if listings else "get"
        urllib.request.urlopen(f"http://127.0.0.1:{self.port}/fail/{what}/{status}/{times}").close()


@contextmanager
def serving() -> Iterator[ObjectStore]:
    """The server, until the block ends."""
    from pyarrow import fs

    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.objectstore"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        made = ObjectStore(int(process.stdout.readline()))
        filesystem, _ = fs.FileSystem.from_uri(made.uri("").replace("?", "?allow_bucket_creation=true&"))
        filesystem.create_dir("bucket")
        yield made
    finally:
        process.stdin.close()
        process.wait(30)


class _Counting:
    """A WSGI application in front of moto's. It reads objects itself, because moto takes several times as long."""

    def __init__(self, inner: Callable[..., Iterable[bytes]]) -> None:
        self._inner, self._delay = inner, 0.0
        self._counts, self._lock = Counter[str](), threading.Lock()
        self._failing = (0, 503, False)

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if path == "/counts":
            with self._lock:
                found, self._counts = self._counts, Counter()
            return _answer(start, "200 OK", json.dumps(found).encode())
        if path.startswith("/delay/"):
            self._delay = float(path.rpartition("/")[2])
            return _answer(start, "200 OK", b"")
        if path.startswith("/fail/"):
            _, _, what, status, times = path.split("/")
            self._failing = (int(times), int(status), what == "list")
            return _answer(start, "200 OK", b"")
        listing = method == "GET" and "list-type=" in environ.get("QUERY_STRING", "")
        with self._lock:
            self._counts["LIST" if listing else method] += 1
            left, status, listings = self._failing
            failing = left > 0 and method in ("GET", "HEAD") and listing == listings
            self._failing = (left - failing, status, listings)
        time.sleep(self._delay)
        if failing:
            return _answer(start, f"{status} Trouble", b"")
        found = None if listing or method not in ("GET", "HEAD") else _object(path)
        return self._inner(environ, start) if found is None else _sent(environ, start, found)


def _object(path: str) -> Any:
    from moto.s3.models import s3_backends

    buckets = s3_backends["123456789012"]["aws"].buckets
    bucket, _, key = path.lstrip("/").partition("/")
    return buckets[bucket].keys.get(unquote(key)) if key and bucket in buckets else None


def _sent(environ: dict[str, Any], start: Callable[..., Any], found: Any) -> Iterable[bytes]:
    data, status, more = found.value, "200 OK", []
    asked = re.fullmatch(r"bytes=(\d+)-(\d+)", environ.get("HTTP_RANGE", ""))
    if asked:
        first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
        status, more = "206 Partial Content", [("Content-Range", f"bytes {first}-{last}/{len(data)}")]
        data = data[first : last + 1]
    headers = [("ETag", found.etag), ("Last-Modified", found.last_modified_RFC1123), *more]
    return _answer(start, status, data, headers, head=environ["REQUEST_METHOD"] == "HEAD")


def _answer(
    start: Callable[..., Any],
    status: str,
    body: bytes,
    headers: Iterable[tuple[str, str]] = (),
    *,
    head: bool = False,
) -> Iterable[bytes]:
    kind = ("Content-Type", "application/octet-stream")
    start(status, [kind, ("Content-Length", str(len(body))), *headers])
    return [b"" if head else body]


def main() -> None:
    """Serve."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"  # connections are kept, as S3 keeps them
        disable_nagle_algorithm = True

        def log(self, *_: Any, **__: Any) -> None:
            """Log nothing."""

    application = _Counting(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Handler)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()
    server.shutdown()


if __name__ == "__main__":
    main()
