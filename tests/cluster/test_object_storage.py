"""Source and results on object storage: a real S3 server on loopback, and no disk shared between the nodes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyarrow import fs
from typer.testing import CliRunner

from rayddl.cli.app import app
from rayddl.storage import Folder

pytestmark = pytest.mark.ray

KEY, SECRET = "AKIDRAYDDLTEST", "wJalrXUtnFEMI%2FK7MDENG%2FbPxRfiCY"
DEFINITION = 'name: d\nsource: {name: parquet, root: "ROOT"}\nstages: {report: {kind: report}}'


@dataclass(frozen=True)
class Bucket:
    """A bucket on a server of its own."""

    port: int

    def uri(self, path: str, keys: str = f"{KEY}:{SECRET}@") -> str:
        """A place in it, with the keys that open it."""
        return (
            f"s3://{keys}bucket/{path}?endpoint_override=127.0.0.1%3A{self.port}&scheme=http&region=us-east-1"
        )

    def objects(self) -> dict[str, bytes]:
        """Everything in it."""
        filesystem, _ = fs.FileSystem.from_uri(self.uri(""))
        found = filesystem.get_file_info(fs.FileSelector("bucket", recursive=True))
        return {f.path: filesystem.open_input_stream(f.path).read() for f in found if f.is_file}


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    """An empty bucket; the server ends with the module's tests."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(
        ip_address="127.0.0.1", port=0, verbose=False
    )
    server.start()
    made = Bucket(server.get_host_and_port()[1])
    filesystem, _ = fs.FileSystem.from_uri(made.uri("").replace("?", "?allow_bucket_creation=true&"))
    filesystem.create_dir("bucket")
    yield made
    server.stop()


def test_a_run_on_object_storage_is_interrupted_and_goes_on(
    undisturbed, bucket: Bucket, digits: Path, run_on
) -> None:
    """Killed after its first two experts and started again, a run that reads and writes S3 alone ends with the bits of
    one that read and wrote a disk. Nothing that it leaves or prints holds the keys.
    """
    for file in digits.iterdir():
        Folder(bucket.uri("digits")).write(file.name, file.read_bytes())
    run = run_on(source=bucket.uri("digits"))
    out = bucket.uri("runs")
    process = run.start("--out", out)
    experts = [undisturbed.file("experts", f"expert-000{number}.safetensors") for number in (0, 1)]
    done = [path.relative_to(undisturbed.folder / "runs").as_posix() for path in experts]
    run.until(lambda: all(Folder(out).has(path) for path in done), process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    first = run.begun
    run.finish(run.start("--out", out))
    objects = bucket.objects()
    # As a copy of the bucket would lie on a disk.
    for name, data in objects.items():
        Folder(str(run.folder)).write(name.removeprefix("bucket/"), data)

    assert not (run.begun - first).keys() & {"expert 0", "expert 1"}
    assert run.outcome() == undisturbed.outcome()
    told = CliRunner().invoke(app, ["status", "nodes", "--out", out])
    listed = CliRunner().invoke(app, ["list", "--out", out])
    assert (told.exit_code, listed.exit_code) == (0, 0)
    assert "done" in told.stdout
    said = {
        **objects,
        "log": run.log.encode(),
        "status": told.stdout.encode(),
        "list": listed.stdout.encode(),
    }
    assert any(name.endswith("report.html") for name in said)
    for name, data in said.items():
        for secret in (KEY, SECRET, SECRET.replace("%2F", "/")):
            assert secret.encode() not in data, name


def test_a_place_that_is_not_there_is_told_without_keys(bucket: Bucket, tmp_path: Path) -> None:
    """A source or an --out in a bucket that does not exist: exit 2, the place, and not the keys."""
    nowhere = bucket.uri("runs").replace("bucket/", "other/")
    (tmp_path / "source.yaml").write_text(DEFINITION.replace("ROOT", nowhere))
    (tmp_path / "out.yaml").write_text("name: d\nsource: {name: digits}\nstages: {report: {kind: report}}")
    for words in (["source.yaml", "--out", str(tmp_path)], ["out.yaml", "--out", nowhere]):
        ended = CliRunner().invoke(app, ["run", str(tmp_path / words[0]), *words[1:]])
        assert ended.exit_code == 2
        assert "s3://other/runs" in ended.stderr
        assert KEY not in ended.stderr
        assert SECRET.partition("%")[0] not in ended.stderr
