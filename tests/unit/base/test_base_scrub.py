"""Credentials stay out."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayddl.credentials import scrub


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("s3://key:secret@bucket/x?endpoint_override=y", "s3://bucket/x"),
        ("s3://key:sec/ret@bucket/x", "s3://bucket/x"),
        ("s3://key:sec@ret@bucket/x", "s3://bucket/x"),
        ("gs://anonymous@bucket/p", "gs://bucket/p"),
        ("hdfs://user@host:8020/a", "hdfs://host:8020/a"),
        ("file:///a/b", "file:///a/b"),
        ("s3://bucket/mail@example", "s3://bucket/mail@example"),
        ("cannot open s3://k:s@b/x: denied", "cannot open s3://b/x: denied"),
        ("s3://token@host/a", "s3://host/a"),
        ("s3://k:s'ec@b/x", "s3://b/x"),
        ('s3://k:s"e c@b/x', "s3://b/x"),
        ("s3://tok'en@b/x", "s3://b/x"),
        ("s3://tok en@b/x", "s3://b/x"),
        ("cannot open s3://tok'en@b/x: denied", "cannot open s3://b/x: denied"),
        ("s3://k:s?e#c@b/x", "s3://b/x"),
        ("cannot open 's3://k:s'ec ret@b/x': denied", "cannot open 's3://b/x': denied"),
        ("cannot open 's3://b/x?secret=a b&c=d': denied", "cannot open 's3://b/x': denied"),
        ("s3://b/x?secret=a b&c=d e", "s3://b/x e"),
        ("from s3://k:s@b/x to s3://l:t@c/y", "from s3://b/x to s3://c/y"),
        ("http://localhost:8265 refused for bob@x", "http://localhost:8265 refused for bob@x"),
        ("see https://example.org/a and mail bob@x", "see https://example.org/a and mail bob@x"),
        ("see https://example.org and mail bob@x", "see https://example.org and mail bob@x"),
        ("s3://bucket: no route", "s3://bucket: no route"),
        (r"s3:\/\/K:sECRET@b/x", r"s3:\/\/b/x"),
        (r'{"root": "s3:\/\/K:sEC\/RET@b\/x?a=b"}', r'{"root": "s3:\/\/b\/x"}'),
        (r"s3:\\/\\/K:sECRET@b/x", r"s3:\\/\\/b/x"),
        ("s3%3A%2F%2FK:sECRET@b/x", "s3%3A%2F%2Fb/x"),
        ("at http://h/?u=s3%3A%2F%2Fb/x&secret_key=sECRET failed", "at http://h/ failed"),
        (
            "at http://h/?u=s3%3a%2f%2fK%3AsEC%2FRET%40b%2Fx%3Fsecret_key%3DsECRET failed",
            "at http://h/ failed",
        ),
        ("at s3%3a%2f%2fK%3AsEC%2FRET%40b%2Fx%3Fsecret_key%3DsECRET failed", "at s3%3a%2f%2fb%2Fx failed"),
        # As `quote` of Python writes them, by default, in parts and more than once.
        ("s3%3A//K%3AsEC/RET%40b/x%3Fsecret_key%3DsECRET", "s3%3A//b/x"),
        ("at http://h/p/s3%3A//K%3AsECRET%40b failed", "at http://h/p/s3%3A//b failed"),
        ("s3:%2F%2FK:sECRET%40b%2Fx", "s3:%2F%2Fb%2Fx"),
        ("s3%253A%252F%252FK%253AsEC%252FRET%2540b%252Fx", "s3%253A%252F%252Fb%252Fx"),
        ("s3%3A%2F%2FK%3AsEC/RET@b/x", "s3%3A%2F%2Fb/x"),
        ("s3://K:sEC/RET%40b/x", "s3://b/x"),
        ("s3://K%3AsEC/RET%40b/x", "s3://b/x"),
        ("s3://b/x%3Fregion%3Da%26secret_key%3DsECRET: denied", "s3://b/x denied"),
        ("s3://b/mail%40example/what%3F/monkey.png", "s3://b/mail%40example/what%3F/monkey.png"),
        ("http://localhost:8265/a%40b", "http://localhost:8265/a%40b"),
        # A path has one slash of two.
        ("no folder s3:/K:sEC/RET@b/x", "no folder s3:/b/x"),
        ("no folder /data/a:/b@c, nor x:/y:z@d", "no folder /data/a:/b@c, nor x:/y:z@d"),
        ("s3://b/x?a=1&secret_key=sE CR ET", "s3://b/x"),
        ("s3://b/x?token=sE CR ET\nnext", "s3://b/x\nnext"),
        ("cannot open s3://b/x?secret_key=sECRET: denied", "cannot open s3://b/x denied"),
        ("no uri at all: a@b?c", "no uri at all: a@b?c"),
        (
            {"s3://k:s@b": ["s3://k:s@b", 1, None, ("s3://k:s@b",)]},
            {"s3://b": ["s3://b", 1, None, ("s3://b",)]},
        ),
    ],
)
def test_scrub(value: Any, expected: Any) -> None:
    """User part and query of every URI go, anything else stays."""
    assert scrub(value) == expected


@given(
    st.from_regex(r"[A-Z0-9]{4,20}", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9/+=@%]{8,40}", fullmatch=True).map(lambda s: f"Sek{s}"),
)
def test_secrets_never_stay(key: str, secret: str) -> None:
    """No secret key survives, with whatever characters such keys have."""
    assert secret not in scrub(f"s3://{key}:{secret}@bucket/path")
    assert "Sek" not in scrub(f"reading s3://{key}:{secret}@bucket/path failed")
    for safe in ("", "/", "/:"):
        assert "Sek" not in scrub(f"reading {quote(f's3://{key}:{secret}@bucket/path', safe)} failed")


@pytest.mark.parametrize(
    "repeated",
    [
        "a",
        "://",
        "x://a:b@",
        "x://'",
        "x://?'a ",
        "a://b?c=d&e=f ",
        r"x:\/\/a:b@",
        "%3A%2F%2F",
        "x%3A%2F%2Fa%40",
        "%40",
        "x://a:%40",
        "x%3A//a:b/",
        "%25",
        "%3Fkey",
        "x://b%3Fkey",
        "xy:/a:b",
        ":\\\\/",
    ],
)
def test_the_time_is_linear(repeated: str) -> None:
    """Ten times the text takes about ten times as long: long words and many addresses are no trap."""

    def seconds(times: int) -> float:
        began = time.process_time()
        scrub(repeated * times)
        return time.process_time() - began

    seconds(1000)
    assert seconds(100_000) < 40 * max(seconds(10_000), 0.005)
