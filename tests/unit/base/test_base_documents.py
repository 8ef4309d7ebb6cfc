"""Documents from anybody: a value of the right types, or one refusal that names file and key."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayddl import documents, json_text
from rayddl.errors import ArtifactError
from rayddl.storage import Folder
from tests.raising import raises

MANIFEST: dict[str, Any] = {
    "format": 1,
    "stage": "a",
    "kind": "experts",
    "fingerprint": "f" * 64,
    "config": {"kind": "experts"},
    "inputs": {"b": {"fingerprint": "0" * 64}},
    "source": {"config": {"name": "digits", "space": "zca"}},
    "seed": 0,
    "summary": {},
    "files": {"x": {"bytes": 3, "sha256": "ab"}},
    "table": [{"a": "b"}],
    "seconds": 1.5,
    "versions": {"rayddl": "1", "ray": None},
}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"[" * 100_000, "more than 64 levels"),
        (b'{"a":' * 100_000, "more than 64 levels"),
        (b"[" * 65 + b"]" * 65, "more than 64 levels"),
        (b"1" * 5000, "a number of 5,000 digits"),
        (b"[1e999]", "the number 1e999 is not finite"),
        (b"[NaN]", "the number NaN is not finite"),
        (b"[-Infinity]", "the number -Infinity is not finite"),
        (b'{"\\ud800": 1}', "surrogates not allowed"),
        (b"\xff\xfe[]", "can't decode byte"),
        (b"", "Expecting value"),
        (b"[1", "Expecting"),
    ],
)
def test_what_is_not_read(text: bytes, said: str) -> None:
    """Depth, digits, numbers without end and half characters would break later code."""
    with pytest.raises(ValueError, match=said) as caught:
        json_text.parse(text)
    assert "\n" not in str(caught.value)


def test_the_limit_of_bytes_is_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A document is read up to the limit and no further; the message names the setting."""
    (tmp_path / "d.json").write_text("[" + "1," * 1000 + "1]")
    monkeypatch.setenv("RAYDDL_MAX_DOCUMENT_BYTES", "2002")
    with pytest.raises(
        ValueError, match=r"2,003 bytes of JSON, the limit is 2,002.*RAYDDL_MAX_DOCUMENT_BYTES"
    ):
        Folder(str(tmp_path)).read_json("d.json")
    monkeypatch.setenv("RAYDDL_MAX_DOCUMENT_BYTES", "2003")
    assert len(Folder(str(tmp_path)).read_json("d.json")) == 1001
    monkeypatch.setenv("RAYDDL_MAX_DOCUMENT_BYTES", "-1")
    with raises("limit-malformed"):
        Folder(str(tmp_path)).read_json("d.json")


def test_whole_manifests_are_taken() -> None:
    """The base of the tests below is valid, and returned as it is."""
    assert documents.checked(MANIFEST, documents.Manifest, "m", "again") is MANIFEST


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("seed", "1", "seed"),
        ("seed", True, "seed"),
        ("seconds", -1, "seconds"),
        ("files", {"x": {"bytes": 1.5}}, "files.x.bytes"),
        ("table", [{"a": 1}], "table.0.a"),
        ("inputs", {"b": {}}, "inputs.b.fingerprint"),
        ("source", {"config": {"name": 1}}, "source.config.name"),
        ("versions", [], "versions"),
        ("summary", None, "summary"),
    ],
)
def test_the_key_is_named(key: str, value: Any, place: str) -> None:
    """Nothing is converted: text is no number, and true is not 1."""
    with raises("document-malformed") as caught:
        documents.checked({**MANIFEST, key: value}, documents.Manifest, "m.json", "run it again")
    assert str(caught.value).startswith(f"m.json is malformed at {place}: ")
    assert str(caught.value).endswith("; run it again")


@pytest.mark.parametrize("folder", ["..", "a/b", "a\0b", "", "a" * 256, 3, "-rf", "a\n"])
def test_a_record_names_folders_inside_its_own(folder: Any) -> None:
    """A record cannot lead anywhere else."""
    stage = {"kind": "a", "folder": folder, "fingerprint": "f", "state": "done"}
    with pytest.raises(ArtifactError) as caught:
        documents.checked(
            {"format": 1, "name": "r", "stages": {"s": stage}}, documents.RunRecord, "r.run.json", "again"
        )
    assert "stages.s.folder" in str(caught.value)


def test_the_order_of_a_record_names_its_stages() -> None:
    """Later code looks each one up."""
    with raises("document-malformed"):
        documents.checked(
            {"format": 1, "name": "r", "stages": {}, "order": ["gone"]},
            documents.RunRecord,
            "r.run.json",
            "again",
        )


def test_the_classes_of_a_set_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders, tables and pages grow with them."""
    monkeypatch.setenv("RAYDDL_MAX_CLASSES", "2")
    space = {"kind": "normalise", "shape": [1, 8, 8], "fingerprint": "f"}
    value = {"classes": ["a", "b", "c"], "space": space, "info": {}}
    with raises("document-malformed"):
        documents.checked(value, documents.DistilledSetDocument, "set.json", "again")


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(MANIFEST)), ANY)
def test_any_value_is_taken_or_refused(key: str, value: Any) -> None:
    """Never another error, whatever stands at a key."""
    text = json.dumps({**MANIFEST, key: value}).encode()
    with suppress(ValueError, ArtifactError):
        documents.checked(json_text.parse(text), documents.Manifest, "m.json", "again")
