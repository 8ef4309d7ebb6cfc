"""Any input gives a value or one of rayddl's errors, soon, in little memory, and touches nothing else.

A short part with fixed examples runs with the other tests; a long one with new examples by ``RAYDDL_FUZZ=5000 uv run
pytest -n0 -o faulthandler_timeout=0 tests/fuzz``. Here, values and bytes of whole files are changed.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import rayddl
from rayddl.data.config import SourceConfig
from rayddl.data.distilled import DistilledSet
from rayddl.data.formats.export import FORMATS, export_set
from rayddl.data.pixels.decode import FORMATS as IMAGES
from rayddl.data.pixels.decode import Encoded, decode
from rayddl.data.pixels.space import fit
from rayddl.data.sources import registry as sources
from rayddl.pipeline.browse.listing import listing
from rayddl.pipeline.browse.show import inspect
from rayddl.pipeline.browse.status import run_status
from rayddl.storage import Folder
from tests.fuzz.watch import CHANGES, LONG, bounded, changed, fuzzed

pytestmark = [pytest.mark.timeout(0)] if LONG else []

NUMBERS = st.sampled_from([0, -1, 1, 2**31, 2**63, 10**18, 10**30, 1e308, 0.5])
ANY = st.recursive(
    st.none()
    | st.booleans()
    | NUMBERS
    | st.text(max_size=8)
    | st.sampled_from(["../x", "a\0b", "\x1b[31m", "s3://h/x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
REPLACED = st.lists(
    st.tuples(st.lists(st.integers(0, 20), min_size=1, max_size=6), ANY), min_size=1, max_size=3
)


def replaced(value: Any, path: list[int], new: Any) -> Any:
    """``value`` with ``new`` at a place that the numbers in ``path`` choose, one a level."""
    if not path or not value or not isinstance(value, dict | list):
        return new
    keys = list(value) if isinstance(value, dict) else range(len(value))
    chosen = keys[path[0] % len(keys)]
    copy = value.copy()
    copy[chosen] = replaced(value[chosen], path[1:], new)
    return copy


def whole_run(out: Path) -> None:
    """Write a run's folder with a record, a finished stage and its set."""
    images = torch.randint(
        0, 256, (4, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    space = fit("normalise", images)
    rows = [{"data": "random", "net": "convnet", "images": 4, "mean": 0.1, "std": 0.0, "accuracies": [0.1]}]
    info = {"method": "MCT", "source": {"name": "digits"}, "metrics": {"accuracy": rows}, "seed": 1}
    stage = out / "e-0123456789ab"
    made = DistilledSet(space.encode(images), torch.tensor([0, 0, 1, 1]), 0.1, ("a", "b"), space, info)
    made.save(Folder(str(stage / "set")))
    files = {str(p.relative_to(stage)): {"bytes": p.stat().st_size} for p in stage.rglob("*") if p.is_file()}
    source = {"config": {"name": "digits", "root": None, "space": "zca"}, "fingerprint": "f"}
    manifest = {
        "format": 1, "stage": "e", "kind": "evaluate", "fingerprint": "0123456789ab" + "0" * 52,
        "config": {"kind": "evaluate", "resources": {"cpus": None}}, "inputs": {"d": {"fingerprint": "f"}},
        "source": source, "seed": 0, "summary": {"rows": rows}, "files": files, "table": [{"a": "b"}], "seconds": 1.0,
        "versions": {"rayddl": "1"},
    }  # fmt: skip
    (stage / "manifest.json").write_text(json.dumps(manifest))
    entry = {
        "kind": "evaluate", "folder": stage.name, "fingerprint": manifest["fingerprint"], "state": "running",
        "heard": "2026-01-01T00:00:00+00:00", "seconds": 1.0, "error": "",
        "progress": {"done": 1, "total": 2, "rate": 0.5, "left": 3, "metric": "m"},
    }  # fmt: skip
    record = {
        "format": 1, "rayddl": "1", "name": "x", "file": "x.yaml", "overrides": [], "order": ["e"],
        "definition": {"name": "x"}, "stages": {"e": entry},
    }  # fmt: skip
    (out / "x.run.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run."""
    out = tmp_path_factory.mktemp("runs")
    whole_run(out)
    return out


def looked_at(out: Path) -> Iterator[Callable[[], object]]:
    """What a person does with the folder of a run that somebody sent."""
    stage = str(out / "e-0123456789ab")
    yield lambda: list(listing(str(out)).parts())
    for where in (stage, f"{stage}/set", "x"):
        yield lambda where=where: [str(part) for part in inspect(where, str(out), verify=True).parts()]
    yield lambda: (found := run_status("x", str(out))) and found.parts()
    yield lambda: rayddl.load_set(f"{stage}/set")
    for form in FORMATS:
        yield lambda form=form: export_set(Folder(f"{stage}/set"), form, Folder(str(out / "to" / form)))


@pytest.mark.parametrize(
    "name", ["x.run.json", "e-0123456789ab/manifest.json", "e-0123456789ab/set/set.json"]
)
@fuzzed
@given(replacements=REPLACED)
def test_documents(whole: Path, name: str, replacements: list[tuple[list[int], Any]]) -> None:
    """Values of any type at any key."""
    file = whole / name
    original = file.read_text()
    value = json.loads(original)
    for path, new in replacements:
        value = replaced(value, path, new)
    try:
        file.write_text(json.dumps(value))
        for look in looked_at(whole):
            with bounded(whole):
                look()
            for written in sorted((whole / "to").rglob("*"), reverse=True):
                written.rmdir() if written.is_dir() else written.unlink()
    finally:
        file.write_text(original)


DEFINITION = {
    "name": "x",
    "seed": 1,
    "description": "d",
    "source": {"name": "digits", "space": "normalise"},
    "stages": {
        "e": {"kind": "experts", "net": {"name": "convnet", "depth": 2, "width": 8}, "count": 2, "epochs": 3},
        "d": {"kind": "match", "experts": "e", "ipc": 1, "iterations": 3, "trajectory": "convex"},
        "j": {"kind": "evaluate", "set": "d", "seeds": 2},
        "r": {"kind": "report"},
    },
}


@fuzzed
@given(replacements=REPLACED, changes=CHANGES, raw=st.booleans())
def test_definitions(
    tmp_path_factory: pytest.TempPathFactory, replacements: list[Any], changes: list[Any], raw: bool
) -> None:
    """Keys with any value, and text with any bytes."""
    folder = tmp_path_factory.mktemp("definitions")
    value: Any = DEFINITION
    for path, new in replacements:
        value = replaced(value, path, new)
    data = json.dumps(value).encode()
    (folder / "d.yaml").write_bytes(changed(data, changes) if raw else data)
    with bounded(folder):
        rayddl.plan(folder / "d.yaml", out=folder / "runs")


def encoded(form: str) -> bytes:
    sink = io.BytesIO()
    picture = Image.effect_noise((24, 24), 60)
    picture.convert("P" if form == "GIF" else "RGB").save(sink, form)
    return sink.getvalue()


@pytest.mark.parametrize("form", IMAGES)
@fuzzed
@given(changes=CHANGES, size=st.sampled_from([None, 8]))
def test_images(
    tmp_path_factory: pytest.TempPathFactory, form: str, changes: list[Any], size: int | None
) -> None:
    """Pixels, or the reason why there are none."""
    data = changed(encoded(form), changes)
    with bounded(tmp_path_factory.mktemp("images")):
        (found,) = decode([[Encoded("x", 0, lambda: data)]], size)
        assert found.pixels if isinstance(found.pixels, str) else found.pixels.ndim in (2, 3)


def shard() -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for i in range(6):
            for kind, content in (
                ("png", encoded("PNG")),
                ("cls", str(i % 2).encode()),
                ("json", b'{"label": 1}'),
            ):
                head = tarfile.TarInfo(f"{i:04d}{'x' * 120 if i == 3 else ''}.{kind}")
                head.size = len(content)
                tar.addfile(head, io.BytesIO(content))
    return sink.getvalue()


def table() -> bytes:
    sink = io.BytesIO()
    features = {"info": {"features": {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}}}
    cells = pa.array([{"bytes": encoded("PNG"), "path": "x"}] * 6)
    rows = pa.table({"image": cells, "label": [0, 1] * 3})
    pq.write_table(
        rows.replace_schema_metadata({"huggingface": json.dumps(features)}), sink, row_group_size=4
    )
    return sink.getvalue()


@pytest.mark.parametrize(
    ("name", "ending", "make"), [("webdataset", "tar", shard), ("parquet", "parquet", table)]
)
@fuzzed
@given(changes=CHANGES)
def test_containers(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    ending: str,
    make: Callable[[], bytes],
    changes: list[Any],
) -> None:
    """A source of damaged files is loaded or refused."""
    folder = tmp_path_factory.mktemp(name)
    (folder / f"train.{ending}").write_bytes(changed(make(), changes))
    (folder / f"test.{ending}").write_bytes(make())
    with bounded(folder):
        sources.load(SourceConfig.model_validate({"name": name, "root": str(folder), "size": 8}))


def saved(value: Any, *, zipped: bool = True) -> bytes:
    sink = io.BytesIO()
    torch.save(value, sink, _use_new_zipfile_serialization=zipped)
    return sink.getvalue()


@fuzzed
@given(
    changes=CHANGES,
    name=st.sampled_from(["images_best.pt", "labels_best.pt", "lr_best.pt"]),
    zipped=st.booleans(),
)
def test_pairs(tmp_path_factory: pytest.TempPathFactory, changes: list[Any], name: str, zipped: bool) -> None:
    """Files of tensors with damaged bytes, in both of torch's layouts."""
    folder = tmp_path_factory.mktemp("pair")
    parts = {
        "images_best": torch.rand(4, 1, 8, 8),
        "labels_best": torch.tensor([0, 0, 1, 1]),
        "lr_best": torch.tensor(0.1),
    }
    for part, tensor in parts.items():
        (folder / f"{part}.pt").write_bytes(saved(tensor, zipped=zipped))
    (folder / name).write_bytes(changed((folder / name).read_bytes(), changes))
    with bounded(folder):
        rayddl.load_set(folder).pixels()
