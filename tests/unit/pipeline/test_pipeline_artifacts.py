"""Manifests: what is written, what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import rayddl
from rayddl.errors import ArtifactError
from rayddl.pipeline import artifacts
from rayddl.storage import Folder
from tests.raising import raises

DESCRIPTION = {
    "stage": "first",
    "kind": "make",
    "kind_version": 1,
    "fingerprint": "f" * 64,
    "config": {"kind": "make"},
    "inputs": {},
    "source": {"config": {"name": "parquet", "root": "s3://key:secret@bucket/x?token=t"}, "fingerprint": "s"},
    "seed": 0,
    "summary": {"b": 1, "a": [1, 2]},
    "table": [{"net": "convnet", "accuracy": "61 ± 1"}],
    "seconds": 1.5,
}


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    """A finished stage's folder."""
    folder = Folder(str(tmp_path / "first-ffff"))
    folder.write("a.bin", b"12345")
    folder.write("deep/b.txt", b"hello")
    artifacts.seal(folder, DESCRIPTION)
    return tmp_path / "first-ffff"


def altered(folder: Path, **changes: Any) -> None:
    """Rewrite keys of the manifest."""
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


class TestSealed:
    def test_files(self, sealed: Path) -> None:
        """Every file, in sub-folders too, is listed with its size and hash."""
        artifact = artifacts.open_artifact(Folder(str(sealed)))

        assert artifact.files == {
            "a.bin": {"bytes": 5, "sha256": hashlib.sha256(b"12345").hexdigest()},
            "deep/b.txt": {"bytes": 5, "sha256": hashlib.sha256(b"hello").hexdigest()},
        }
        assert artifact.bytes == 10

    def test_what_was_written_down(self, sealed: Path) -> None:
        """Stage, kind, fingerprint, summary and time are those handed over; a reader gets them as its input."""
        artifact = artifacts.open_artifact(Folder(str(sealed)))

        assert (artifact.stage, artifact.kind, artifact.fingerprint) == ("first", "make", "f" * 64)
        assert (artifact.summary, artifact.seconds) == ({"b": 1, "a": [1, 2]}, 1.5)
        assert artifact.table == ({"net": "convnet", "accuracy": "61 ± 1"},)
        assert artifact.tables("first") == {"first": artifact.table}
        read = artifact.as_input({"cpu": 2.0})
        assert (read.stage, read.kind, read.config, read.summary) == (
            "first", "make", {"kind": "make"}, {"b": 1, "a": [1, 2]},
        )  # fmt: skip
        assert (read.folder, read.spent) == (artifact.folder, {"cpu": 2.0})

    def test_an_artifact_of_before_times_were_kept(self, sealed: Path) -> None:
        """A manifest without seconds counts as none."""
        path = sealed / "manifest.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "seconds"}))

        assert artifacts.open_artifact(Folder(str(sealed))).seconds == 0.0

    def test_large_files_are_not_hashed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """From a size on, 64 MiB, only the bytes are counted."""
        assert artifacts._HASHED_BELOW == 64 * 2**20
        monkeypatch.setattr(artifacts, "_HASHED_BELOW", 4)
        folder = Folder(str(tmp_path / "x"))
        folder.write("large", b"12345")
        folder.write("small", b"123")
        folder.write("limit", b"1234")

        artifact = artifacts.seal(folder, DESCRIPTION)

        assert artifact.files["large"] == {"bytes": 5}
        assert artifact.files["limit"] == {"bytes": 4}
        assert set(artifact.files["small"]) == {"bytes", "sha256"}

    def test_credentials_are_not_stored(self, sealed: Path) -> None:
        """The source's URI is kept without user and query."""
        text = (sealed / "manifest.json").read_text()

        assert '"root": "s3://bucket/x"' in text
        assert "secret" not in text
        assert "token" not in text

    def test_versions(self, sealed: Path) -> None:
        """The manifest says what it was made with."""
        versions = artifacts.open_artifact(Folder(str(sealed))).manifest["versions"]

        assert versions["rayddl"] == rayddl.__version__
        assert set(versions) == {"rayddl", "python", "torch", "ray"}

    def test_table_keeps_its_columns(self, sealed: Path) -> None:
        """Rows come back with their columns in order."""
        artifact = artifacts.open_artifact(Folder(str(sealed)))

        assert [list(row) for row in artifact.table] == [["net", "accuracy"]]

    def test_nan_is_refused(self, tmp_path: Path) -> None:
        """A summary that is not JSON leaves no manifest."""
        folder = Folder(str(tmp_path / "x"))
        with pytest.raises(ValueError, match="JSON compliant"):
            artifacts.seal(folder, {**DESCRIPTION, "summary": {"loss": float("nan")}})

        assert artifacts.state(folder) == "new"

    def test_leftovers_stay_until_the_manifest_is_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An interrupted seal leaves what the stage goes on from; then files and folders of them are deleted."""
        folder = Folder(str(tmp_path / "x"))
        for name in ("a.bin", "work/1/state", "work.txt", "checkpoint"):
            folder.write(name, b"1")
        write = Folder.write

        def cut(folder: Folder, name: str, data: bytes) -> None:
            if name == artifacts.MANIFEST:
                raise OSError("no space left on device")
            write(folder, name, data)

        monkeypatch.setattr(Folder, "write", cut)
        with pytest.raises(OSError, match="no space"):
            artifacts.seal(folder, DESCRIPTION, ("work", "checkpoint", "gone"))
        assert set(folder.files()) == {"a.bin", "work/1/state", "work.txt", "checkpoint"}

        monkeypatch.setattr(Folder, "write", write)
        artifact = artifacts.seal(folder, DESCRIPTION, ("work", "checkpoint", "gone"))
        assert set(artifact.files) == {"a.bin", "work.txt"}
        assert set(folder.files()) == {"a.bin", "work.txt", "manifest.json"}

    def test_an_artifact_is_complete_if_its_leftovers_cannot_be_deleted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A failing storage does not take the finished stage back."""

        def failing(folder: Folder, name: str) -> None:
            raise OSError("unreachable")

        monkeypatch.setattr(
            Folder, "delete", lambda folder, name: name == "error.txt" or failing(folder, name)
        )
        folder = Folder(str(tmp_path / "x"))
        folder.write("checkpoint", b"1")
        artifacts.seal(folder, DESCRIPTION, ("checkpoint",))

        assert artifacts.state(folder) == "done"
        assert artifacts.open_artifact(folder).files == {}

    def test_what_killed_writers_left_is_no_part_of_it(self, tmp_path: Path) -> None:
        """Nor does it take up the disk for ever."""
        folder = Folder(str(tmp_path / "x"))
        folder.write("a.bin", b"1")
        (tmp_path / "x" / "a.bin.tmp-0a1b2c3d").write_bytes(b"1")
        assert set(artifacts.seal(folder, DESCRIPTION).files) == {"a.bin"}
        assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["a.bin", "manifest.json"]

    def test_an_old_error_is_removed(self, tmp_path: Path) -> None:
        """A stage that finished has no error any more."""
        folder = Folder(str(tmp_path / "x"))
        folder.write("error.txt", b"Traceback")

        artifacts.seal(folder, DESCRIPTION)

        assert folder.names() == ["manifest.json"]


class TestState:
    def test_states(self, tmp_path: Path, sealed: Path) -> None:
        """A folder is done with a manifest, partial with other files, and new with none."""
        folder = Folder(str(tmp_path / "y"))
        assert artifacts.state(folder) == "new"
        folder.write("error.txt", b"Traceback")
        folder.write(".lock", b"{}")
        assert artifacts.state(folder) == "new"
        folder.write("deep/half.bin", b"1")
        assert artifacts.state(folder) == "partial"
        assert artifacts.state(Folder(str(sealed))) == "done"


class TestRefused:
    def test_no_manifest(self, tmp_path: Path) -> None:
        """A folder without a manifest is never read as whole."""
        folder = Folder(str(tmp_path))
        with pytest.raises(ArtifactError) as error:
            artifacts.open_artifact(folder)

        assert str(error.value) == (
            f"{tmp_path} has no manifest.json: the stage has not finished there; run its definition again"
        )

    def test_newer_format(self, sealed: Path) -> None:
        """A newer format is refused with both versions."""
        altered(sealed, format=2, versions={"rayddl": "9.1"})
        with pytest.raises(ArtifactError) as error:
            artifacts.open_artifact(Folder(str(sealed)))

        assert str(error.value) == (
            f"{sealed}/manifest.json has format 2, written by rayddl 9.1; this rayddl ({rayddl.__version__}) "
            "reads formats up to 1: upgrade rayddl, or choose another --out"
        )

    def test_missing_file(self, sealed: Path) -> None:
        """A listed file that is gone is named."""
        (sealed / "deep" / "b.txt").unlink()
        with pytest.raises(ArtifactError) as error:
            artifacts.open_artifact(Folder(str(sealed)))

        assert str(error.value) == (
            f"{sealed}/deep/b.txt is missing, the manifest lists it with 5 bytes; "
            "delete the folder; rayddl run with --stage makes it again"
        )

    def test_other_size(self, sealed: Path) -> None:
        """A file of another size is named with both sizes, without reading any file."""
        (sealed / "a.bin").write_bytes(b"123")
        with pytest.raises(ArtifactError) as error:
            artifacts.open_artifact(Folder(str(sealed)))

        assert str(error.value) == (
            f"{sealed}/a.bin was altered: it has 3 bytes, the manifest says 5; "
            "delete the folder; rayddl run with --stage makes it again"
        )

    def test_other_bytes(self, sealed: Path) -> None:
        """Altered bytes of the same size are found when hashes are verified, and both are named."""
        (sealed / "a.bin").write_bytes(b"54321")
        artifacts.open_artifact(Folder(str(sealed)))
        with pytest.raises(ArtifactError) as error:
            artifacts.open_artifact(Folder(str(sealed)), verify=True)

        found, listed = (hashlib.sha256(data).hexdigest() for data in (b"54321", b"12345"))
        assert str(error.value) == (
            f"{sealed}/a.bin was altered: its sha256 is {found}, the manifest says {listed}; "
            "delete the folder; rayddl run with --stage makes it again"
        )

    def test_other_fingerprint(self, sealed: Path) -> None:
        """A folder that holds something else than expected is refused with both fingerprints."""
        with raises("artifact-of-another-fingerprint"):
            artifacts.open_artifact(Folder(str(sealed)), fingerprint="0" * 64)

    @pytest.mark.parametrize(
        ("text", "code"),
        [
            ("{", "document-not-json"),
            ("[]", "document-malformed"),
            ('{"format": "1"}', "document-malformed"),
            ('{"format": 1}', "document-malformed"),
        ],
    )
    def test_not_a_manifest(self, sealed: Path, text: str, code: str) -> None:
        """Anything else under that name is refused with what is wrong about it."""
        (sealed / "manifest.json").write_text(text)
        with raises(code):
            artifacts.open_artifact(Folder(str(sealed)))

    @pytest.mark.parametrize(
        "files", [{"a.bin": 5}, {"a.bin": {"bytes": "5"}}, {"a.bin": {"bytes": -5}}, ["a.bin"], [], None]
    )
    def test_files_that_cannot_be_read(self, sealed: Path, files: Any) -> None:
        """A manifest whose files are not named with their sizes is refused, a list of names too."""
        altered(sealed, files=files)
        with raises("document-malformed"):
            artifacts.open_artifact(Folder(str(sealed)))

    def test_files_outside_the_folder(self, sealed: Path, tmp_path: Path) -> None:
        """A listed name cannot reach outside the folder."""
        (tmp_path / "secret").write_text("x")
        altered(sealed, files={"../secret": {"bytes": 1, "sha256": ""}})
        with raises("artifact-file-missing"):
            artifacts.open_artifact(Folder(str(sealed)), verify=True)
