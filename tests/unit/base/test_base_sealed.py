"""Sealed artifacts: whole and unaltered, or refused with what to do."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import torch as safetensors

from rayddl import sealed
from rayddl.errors import ArtifactError
from rayddl.storage import Folder

ONE = sealed.Kind("test thing", 2, "thing.json", "thing", "a", "make one again")
MANY = sealed.Kind("test things", 2, "things.json", "things", "", "make them again")


def filled(kind: sealed.Kind, place: Path) -> Folder:
    """A folder with one artifact of a kind."""
    folder = Folder(str(place))
    data = safetensors.save({"x": torch.arange(3)})
    folder.write("x.safetensors", data)
    folder.write_json(kind.document, {**kind.head(), "files": {"x.safetensors": sealed.entry(data)}})
    return folder


@pytest.mark.parametrize("kind", [ONE, MANY])
def test_what_was_sealed_is_read(kind: sealed.Kind, tmp_path: Path) -> None:
    """Document and tensors, as written."""
    folder = filled(kind, tmp_path)
    tensors = kind.file(folder, kind.read(folder), "x.safetensors")
    assert torch.equal(tensors["x"], torch.arange(3))


def refusal(kind: sealed.Kind, folder: Folder) -> str:
    """What is said instead."""
    with pytest.raises(ArtifactError) as caught:
        kind.file(folder, kind.read(folder), "x.safetensors")
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (
            ONE,
            (
                "{0} holds no whole thing: thing.json is missing, which is written last. Name the folder that "
                "holds it, or make one again.",
                "{0}/thing.json is not JSON: ",
                "{0}/thing.json does not describe a thing ('test thing').",
                "the thing in {0} has format version 3, this rayddl reads up to 2. Use a newer rayddl.",
                "the thing in {0} is incomplete: x.safetensors is missing. Copy the whole folder.",
            ),
        ),
        (
            MANY,
            (
                "{0} holds no whole things: things.json is missing, which is written last. Name the folder that "
                "holds them, or make them again.",
                "{0}/things.json is not JSON: ",
                "{0}/things.json does not describe things ('test things').",
                "the things in {0} have format version 3, this rayddl reads up to 2. Use a newer rayddl.",
                "the things in {0} are incomplete: x.safetensors is missing. Copy the whole folder.",
            ),
        ),
    ],
)
def test_messages_of_one_and_of_many(kind: sealed.Kind, said: tuple[str, ...], tmp_path: Path) -> None:
    """Each fault has a sentence that says what to do."""
    missing, broken, foreign, newer, incomplete = (line.format(tmp_path) for line in said)
    assert refusal(kind, Folder(str(tmp_path))) == missing
    folder = filled(kind, tmp_path)
    document = folder.read_json(kind.document)
    folder.write(kind.document, b"{")
    assert refusal(kind, folder).startswith(broken)
    folder.write(kind.document, b"\xff\xfe")
    assert "is not JSON" in refusal(kind, folder)
    folder.write_json(kind.document, [])
    assert "is malformed: found a list, expected a mapping" in refusal(kind, folder)
    folder.write_json(kind.document, {**document, "format": "pizza"})
    assert refusal(kind, folder) == foreign
    folder.write_json(kind.document, {**document, "files": {"x.safetensors": {"sha256": 5}}})
    assert "is malformed at files.x.safetensors.sha256: found 5, expected text" in refusal(kind, folder)
    folder.write_json(kind.document, {**document, "version": 3})
    assert refusal(kind, folder) == newer
    folder.write_json(kind.document, document)
    folder.delete("x.safetensors")
    assert refusal(kind, folder) == incomplete


def test_altered_files(tmp_path: Path) -> None:
    """Another hash is refused with both; a right hash of no tensors is refused too."""
    folder = filled(ONE, tmp_path)
    stored = folder.read_json("thing.json")["files"]["x.safetensors"]["sha256"]
    folder.write("x.safetensors", b"something else")
    found = sealed.entry(b"something else")
    assert refusal(ONE, folder) == (
        f"{tmp_path}/x.safetensors was altered: its SHA-256 is {found['sha256']}, thing.json says {stored}. "
        "Restore it, or make one again."
    )
    (tmp_path / "thing.json").write_text(json.dumps({**ONE.head(), "files": {"x.safetensors": found}}))
    assert "x.safetensors cannot be read: " in refusal(ONE, folder)
    assert refusal(ONE, folder).endswith(". Make one again.")
    folder.write_json("thing.json", ONE.head())
    assert "thing.json says None" in refusal(ONE, folder)
