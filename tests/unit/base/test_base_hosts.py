"""Only hosts that the user named are contacted, where a command says so."""

from __future__ import annotations

import pytest

from rayddl import hosts
from rayddl.storage import Folder
from rayddl.threads import Interruptible
from tests.raising import raises

FOREIGN = "s3://a:b@bucket/x?endpoint_override=127.0.0.1:9&scheme=http"


@pytest.mark.parametrize(
    ("named", "uri"),
    [
        ("runs", FOREIGN),
        ("s3://bucket/runs", FOREIGN),
        ("s3://bucket/runs", "gs://bucket/runs"),
        ("s3://bucket/runs", "s3://bucket2/runs"),
        ("s3://good/runs", "s3://evil:80/x@good/runs"),
        ("s3://good/runs", "s3://good@evil/runs"),
        ("s3://good/runs", "s3://evil#@good/runs"),
        ("s3://good/runs?region=a", "s3://good/runs"),
        ("file:///tmp", "file://host/share"),
        ("source.root=here", "hdfs://name:8020/x"),
    ],
)
def test_others_are_refused(named: str, uri: str) -> None:
    """Another bucket, scheme or option is another host, however it is written."""
    with hosts.only(named):
        with raises("host-not-named"):
            hosts.check(uri)
        with raises("host-not-named"):
            Folder(uri).exists()


@pytest.mark.parametrize(
    ("named", "uri"),
    [
        ("s3://bucket/runs", "s3://bucket/images/deep"),
        ("source.root=" + FOREIGN, FOREIGN),
        ('["source.root=s3://bucket/x"]', "s3://bucket/y"),
        ("runs", "runs"),
        ("runs", "/tmp/x"),
        ("runs", "file:///tmp/x"),
    ],
)
def test_the_named_and_the_local_are_allowed(named: str, uri: str) -> None:
    """A bucket that was named is allowed as a whole; files of this machine always are."""
    with hosts.only(named):
        hosts.check(uri)


def test_without_a_block_all_are_allowed() -> None:
    """A run contacts what its definition names; a block ends with its last line, also by an error."""
    hosts.check(FOREIGN)
    with hosts.only("x", allow=True):
        hosts.check(FOREIGN)
        assert not hosts.restricted()
    with raises("host-not-named"), hosts.only("x"):
        hosts.check(FOREIGN)
    assert not hosts.restricted()
    hosts.check(FOREIGN)


def test_the_threads_of_stages_are_in_the_block() -> None:
    """A comparison runs its stages in threads, which contact no other hosts than it does."""
    found: list[bool] = []
    with hosts.only("x"):
        thread = Interruptible(lambda: found.append(hosts.restricted()), "stage")
    thread.start()
    thread.join()
    assert found == [True]


def test_the_message_holds_no_path() -> None:
    """A variable may have been put into it."""
    with hosts.only("x"), raises("host-not-named") as caught:
        hosts.check("s3://key:secret@bucket/TOKEN")
    assert not any(word in str(caught.value) for word in ("TOKEN", "secret"))
