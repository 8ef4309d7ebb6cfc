"""Images on object storage: what is requested, how often, and what happens when it does not answer."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayddl import s3, storage
from rayddl.data.ahead import ahead
from rayddl.data.config import SourceConfig
from rayddl.data.sources import known, registry
from rayddl.data.sources.known import Known, Listed
from rayddl.data.sources.listing import GAP, Listing
from rayddl.data.sources.summary import source_summary
from rayddl.pipeline import artifacts
from rayddl.pipeline import plan as plans
from rayddl.pipeline.definition import load as definitions
from rayddl.pipeline.records import Record
from rayddl.storage import Folder
from tests.objectstore import SECRET, ObjectStore, serving
from tests.raising import raises

COUNT = 70


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    """A server with a source in each layout."""
    with serving() as made:
        for place, data in _files().items():
            Folder(made.uri("")).write(place, data)
        yield made


def _image(k: int) -> bytes:
    return b"%06d" % k * 50


def _files() -> dict[str, bytes]:
    files = {}
    for split, stem in (("train", "train"), ("val", "test")):
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w") as tar:
            for k in range(COUNT):
                files[f"files/{split}/{'ab'[k % 2]}/{k:03d}.png"] = _image(k)
                for ending, data in (("png", _image(k)), ("cls", b"ab"[k % 2 : k % 2 + 1])):
                    member = tarfile.TarInfo(f"{k:03d}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                if k == COUNT // 2:
                    between = tarfile.TarInfo("between.bin")
                    between.size = 2 * GAP
                    tar.addfile(between, io.BytesIO(bytes(2 * GAP)))
        files[f"tar/{stem}-0.tar"] = sink.getvalue()
        table = pa.table(
            {"image": [_image(k) for k in range(COUNT)], "label": ["ab"[k % 2] for k in range(COUNT)]}
        )
        sink = io.BytesIO()
        pq.write_table(table, sink, row_group_size=20)
        files[f"parquet/{stem}.parquet"] = sink.getvalue()
    return files


def _table(columns: dict[str, list[Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


SOURCES = {"files": "imagefolder", "tar": "webdataset", "parquet": "parquet"}


def _config(store: ObjectStore, layout: str) -> SourceConfig:
    return SourceConfig(name=SOURCES[layout], root=store.uri(layout), size=8)


def _read(listed: Listing) -> list[object]:
    edges = itertools.pairwise(listed.bounds().tolist())
    return [blob for first, last in edges for blob in listed.read(np.arange(first, last))]


@pytest.mark.parametrize(
    ("layout", "requests"),
    # One for an image; one for the members on each side of the large one; a footer, and one for a row group.
    [("files", {"GET": COUNT}), ("tar", {"GET": 3}), ("parquet", {"GET": 5})],
)
def test_images_are_read_with_few_requests(store: ObjectStore, layout: str, requests: dict[str, int]) -> None:
    """None asks for a size first, and what lies together is read together."""
    listed = registry.listing(_config(store, layout))
    assert listed is not None
    store.counts()

    found = _read(listed)

    assert store.counts() == Counter(requests)
    order = sorted(range(COUNT), key=lambda k: "ab"[k % 2]) if layout == "files" else range(COUNT)
    assert found == [_image(k) for k in order]


@pytest.mark.parametrize(("layout", "lists"), [("files", 3), ("tar", 1), ("parquet", 1)])
def test_a_command_lists_a_source_once(store: ObjectStore, layout: str, lists: int, tmp_path: Path) -> None:
    """Whatever is asked about it, and again from the listing that was kept, with the same answers."""
    config, out = _config(store, layout), Folder(str(tmp_path))
    answers = []
    store.counts()
    first = Known()
    for using in (first, None, "kept"):
        if using == "kept":
            first.keep(out, config)
        found = known.read(out, config) if using == "kept" else using or Known()
        assert found is not None
        asked = [partial(registry.fingerprint, config), partial(source_summary, config)]
        asked += [partial(registry.listing, config, split) for split in ("train", "test")]
        with found.used():
            answers.append([ask() for ask in asked])
            assert [ask() for ask in asked] == answers[-1]
        counted = store.counts()
        assert counted["LIST"] == (0 if using == "kept" else lists)
        # Not one for each header of a shard's members.
        assert counted["GET"] < COUNT / 2
        if layout == "tar":
            # The first images are looked at for their size; the two shards are scanned by the command that begins.
            assert counted["GET"] == (1 if using == "kept" else 3)
        # The footer of each Parquet file is read by random access.
        assert counted["HEAD"] <= (3 if layout == "parquet" else 0)
    for other in answers[1:]:
        assert other[:2] == answers[0][:2]
        for one, same in zip(other[2:], answers[0][2:], strict=True):
            assert one.names == same.names
            assert all(
                np.array_equal(getattr(one, c), getattr(same, c)) for c in ("labels", "file", "at", "size")
            )
    (kept,) = (tmp_path / known.KEPT).iterdir()
    assert SECRET.encode() not in kept.read_bytes()
    for damaged in (b"no table", _table({"listing": ["*"], "name": [[1]], "bytes": ["many"]})):
        kept.write_bytes(damaged)
        assert known.read(out, config) is None


def test_a_kept_shard_that_is_damaged_is_scanned_again(store: ObjectStore, tmp_path: Path) -> None:
    """A changed byte, or one that is missing, is noticed before it is read; what was scanned is kept again."""
    config, out, first = _config(store, "tar"), Folder(str(tmp_path)), Known()
    with first.used():
        expected = registry.listing(config)
    assert expected is not None
    first.keep(out, config)
    (kept,) = (tmp_path / known.KEPT).iterdir()
    sound = pq.read_table(kept)
    (rows,) = np.nonzero(~np.asarray(sound.column("content").is_null()))
    assert len(rows) == 2
    damages: tuple[Callable[[bytes], bytes], ...]
    damages = (lambda data: data[:-1] + b"x", lambda data: data[:-1], lambda data: b"")
    for damage in damages:
        content = sound.column("content").to_pylist()
        content[rows[0]] = damage(content[rows[0]])
        pq.write_table(sound.set_column(3, "content", pa.array(content, pa.binary())), kept)
        found = known.read(out, config)
        assert found is not None
        store.counts()
        with found.used():
            listed = registry.listing(config)
        assert listed is not None
        assert listed.names == expected.names
        assert np.array_equal(listed.at, expected.at)
        assert store.counts()["GET"] == 1
        assert found.contents == first.contents
        found.keep(out, config)
        assert pq.read_table(kept).column("content").null_count == sound.column("content").null_count


def test_a_listed_folder_answers_as_storage_does(store: ObjectStore) -> None:
    """Before and after everything below it was listed; ``-`` comes before ``/`` in the order of names."""
    names = ("cat-2/x", "cat/1", "cat/deep/2", "cat0", "dog/3.tmp-0123abcd", "z")
    place = Folder(store.uri("odd"))
    for name in names:
        place.write(name, name.encode())

    def answers(folder: Folder, *, swept: bool) -> list[object]:
        found: list[object] = [folder.files()] if swept else []
        for inside in (folder, *(folder.child(n) for n in ("cat", "cat/deep", "cat-2", "dog", "none", "z"))):
            found += [inside.exists(), inside.folders(), inside.names()]
            found += [
                (inside.has(n), inside.size(n)) for n in ("1", "deep/2", "x", "cat", "z", "none", "no/no")
            ]
            found += [inside.files()]
        return found

    for swept in (False, True):
        assert answers(Listed(place.uri), swept=swept) == answers(place, swept=swept)


DEFINITION = "name: d\nsource: {name: imagefolder, root: 'ROOT', size: 8}\nstages: {report: {kind: report}}"


@pytest.mark.parametrize("state", ["running", "interrupted", "failed"])
def test_a_run_that_was_killed_goes_on_with_the_files_it_began_with(
    store: ObjectStore, tmp_path: Path, state: Any
) -> None:
    """A file that is added later belongs to the next run, which lists anew, as one does that failed on its images."""
    root = Folder(store.uri(f"growing-{state}"))
    for name, data in _files().items():
        if name.startswith("files/"):
            root.write(name.removeprefix("files/"), data)
    (tmp_path / "d.yaml").write_text(DEFINITION.replace("ROOT", root.uri))
    definition, out = definitions.load(tmp_path / "d.yaml"), Folder(str(tmp_path / "runs"))
    begun = plans.make(definition, str(out))
    begun.known.keep(out, definition.source)
    root.write("train/a/new.png", _image(0))

    assert plans.make(definition, str(out)).source_fingerprint != begun.source_fingerprint
    record = Record(begun)
    record.note("report", state)
    record.write()
    going_on = plans.make(definition, str(out))
    assert (going_on.source_fingerprint == begun.source_fingerprint) == (state != "failed")
    assert bool(going_on.known.kept) == (state != "failed")


def test_what_fails_for_a_passing_reason_is_repeated(store: ObjectStore) -> None:
    """A busy server costs time and no image."""
    listed = registry.listing(_config(store, "files"))
    assert listed is not None
    store.counts()
    store.fail(5)

    assert all(isinstance(blob, bytes) for blob in _read(listed))
    assert store.counts() == Counter({"GET": COUNT + 5})


def test_storage_that_does_not_answer_ends_the_stage(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its images are not counted as unreadable, which would give another result; one that is gone is."""
    listed = registry.listing(_config(store, "files"))
    assert listed is not None
    gone = Listing(pa.array(["a/gone.png"]), *(getattr(listed.take(np.arange(1)), c) for c in FIELDS))
    (blob,) = gone.store.read(gone)
    assert isinstance(blob, FileNotFoundError)
    monkeypatch.setattr(s3, "_ATTEMPTS", 1)
    s3._client.cache_clear()
    store.fail(10**6)
    try:
        with raises("storage-unreachable"):
            _read(listed)
    finally:
        store.fail(0)
        s3._client.cache_clear()


def test_a_listing_without_an_answer_is_no_mistake_of_the_user(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command continues; a bucket that is not there is told at once."""
    monkeypatch.setattr(storage, "_ATTEMPTS", 1)
    store.fail(10**6, listings=True)
    try:
        with raises("storage-unreachable"):
            registry.listing(_config(store, "files"))
    finally:
        store.fail(0)


@pytest.mark.parametrize(
    ("message", "times"),
    [
        ("AWS Error UNKNOWN (HTTP status 503) during ListObjectsV2 operation", 3),
        ("AWS Error SLOW_DOWN during HeadObject operation", 3),
        ("google::cloud::Status(RESOURCE_EXHAUSTED: HTTP status 429)", 3),
        ("AWS Error ACCESS_DENIED during ListObjectsV2 operation", 1),
        ("AWS Error NO_SUCH_BUCKET during ListObjectsV2 operation", 1),
    ],
)
def test_questions_are_asked_again_where_that_may_help(
    monkeypatch: pytest.MonkeyPatch, message: str, times: int
) -> None:
    """Listings, sizes and files that are opened; a local folder is asked once."""
    monkeypatch.setattr(s3, "_LONGEST_WAIT", 0.0)
    for uri, most in (("s3://bucket/x?region=us-east-1", times), ("/tmp/x", 1)):
        answers = [OSError(message), OSError(message)]
        asked = []

        def request() -> str:
            asked.append(1)  # noqa: B023 - called in the same turn
            if answers:  # noqa: B023
                raise answers.pop()  # noqa: B023
            return "found"

        with nullcontext() if most == 3 else pytest.raises(OSError, match=re.escape(message)):
            assert Folder(uri).asked(request) == "found"
        assert len(asked) == most


def test_what_is_written_far_away_may_be_written_again(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deletions are asked for like the rest, and the second time they do no harm."""
    asked = []

    def again(self: Folder, request: Callable[[], Any]) -> Any:
        asked.append(self.uri)
        request()
        return request()

    folder = Folder(store.uri("bucket/written"))
    monkeypatch.setattr(Folder, "asked", again)
    folder.write("a/b.bin", b"12")
    assert (folder.read("a/b.bin"), folder.size("a/b.bin")) == (b"12", 2)
    asked.clear()
    folder.clear("a")
    assert len(asked) == 2
    assert not folder.has("a/b.bin")


@pytest.mark.parametrize("size", [100, 9 << 20], ids=["one request", "parts"])
@pytest.mark.parametrize("from_file", [False, True], ids=["bytes", "file"])
def test_what_is_written_far_away_is_what_was_given(store: ObjectStore, size: int, from_file: bool) -> None:
    """Of any size, from memory or from a file; a bucket that is not there is an error of its own."""
    data = bytes(range(256)) * (size // 256) + b"end"
    for uri, found in (("bucket/sizes", True), ("no-such-bucket/sizes", False)):
        folder = Folder(store.uri(uri).replace("bucket/bucket", "bucket").replace("bucket/no-", "no-"))
        with nullcontext() if found else pytest.raises(FileNotFoundError, match="NoSuchBucket"):
            if from_file:
                with folder.writing("x.bin") as path:
                    path.write_bytes(data)
            else:
                folder.write("x.bin", data)
            assert folder.read("x.bin") == data


def test_files_far_away_are_hashed_side_by_side(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished stage with many files does not wait for one after the other."""
    folder, read = Folder(store.uri("many")), Folder.read
    for k in range(20):
        folder.write(f"set/{k:02d}.png", b"%d" % k)
    described = {"stage": "s", "kind": "k", "kind_version": 1, "fingerprint": "f", "config": {}, "inputs": {},
                 "source": {}, "seed": 0, "summary": {}, "table": [], "seconds": 1.0}  # fmt: skip
    two = threading.Barrier(2, timeout=30)

    def together(self: Folder, name: str, *more: Any) -> bytes:
        if name.endswith(".png"):
            two.wait()
        return read(self, name, *more)

    monkeypatch.setattr(Folder, "read", together)
    found = artifacts.seal(folder, described)
    assert len(found.files) == 20
    assert found.files["set/07.png"] == {"bytes": 1, "sha256": hashlib.sha256(b"7").hexdigest()}


_WRITES = """
import sys
from rayddl.storage import Folder
folder, size = Folder(sys.argv[1]), int(sys.argv[2])
folder.write("warm", b"1")
print("now", flush=True)
folder.write("it", b"n" * size)
"""


@pytest.mark.parametrize("size", [1000, 20 << 20], ids=["one request", "parts"])
@pytest.mark.parametrize("after", [0.05, 0.4])
def test_an_interrupted_write_far_away_leaves_what_was_there(
    store: ObjectStore, size: int, after: float
) -> None:
    """Ctrl-C, or the end of a job, while the storage is slow: the old content or the new one, and nothing between."""
    # Of its own: the server may still store what an interrupted process has sent.
    uri = store.uri(f"cut/{size}-{after}")
    Folder(uri).write("it", b"old")
    try:
        store.delay(0.3)
        with subprocess.Popen(
            [sys.executable, "-c", _WRITES, uri, str(size)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"now\n"
            time.sleep(after)
            child.send_signal(signal.SIGINT)
            child.wait(60)
    finally:
        store.delay(0.0)
    assert Folder(uri).read("it") in (b"old", b"n" * size)


FIELDS = ("labels", "file", "at", "size", "classes", "store")


def test_calls_ahead_are_in_order_at_the_same_time_and_few() -> None:
    """Results are those of one call after another; the window bounds calls and bytes."""
    lock, running, most, begun = threading.Lock(), 0, 0, 0

    def call(k: int) -> int:
        nonlocal running, most, begun
        with lock:
            running, begun = running + 1, begun + 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        return k

    calls = [partial(call, k) for k in range(40)]
    results = ahead(((each, 0) for each in calls), threaded=True, window=6)
    assert next(results) == 0
    time.sleep(0.1)
    assert begun <= 7
    assert list(results) == list(range(1, 40))
    assert 2 <= most <= 6

    begun = 0
    results = ahead(((each, 2**28) for each in calls), threaded=True)
    assert next(results) == 0
    time.sleep(0.05)
    assert begun <= 2
    assert list(ahead(((each, 0) for each in calls[:3]), threaded=False)) == [0, 1, 2]


def test_an_error_of_a_call_is_raised_in_its_place() -> None:
    """Results before it are given first."""

    def call(k: int) -> int:
        if k == 3:
            raise OSError("three")
        return k

    results = ahead(((partial(call, k), 0) for k in range(9)), threaded=True)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="three"):
        next(results)


def test_a_forked_process_has_threads_of_its_own() -> None:
    """Those of its parent are not in it, and calls that are given to them would never be made."""
    calls = [(partial(int, k), 0) for k in range(5)]
    assert list(ahead(calls, threaded=True)) == [0, 1, 2, 3, 4]
    time.sleep(0.1)  # until they wait for more
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)
        os._exit(list(ahead(calls[:1], threaded=True)) != [0])
    assert os.waitpid(child, 0)[1] == 0
