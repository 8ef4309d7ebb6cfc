"""Credentials stay out."""

from __future__ import annotations

from typing import Any

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
