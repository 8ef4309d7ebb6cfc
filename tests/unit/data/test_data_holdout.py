"""``source.holdout``: a share of each class is held out of a source that has no held-out split of its own."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rayddl import plugins
from rayddl.data.config import SourceConfig
from rayddl.data.sources import registry as sources
from rayddl.data.sources.holdout import ADVICE
from rayddl.data.sources.summary import source_summary
from rayddl.errors import RayddlError
from rayddl.plugins import Plugin, Splits
from tests.raising import raises

COUNTS = (10, 5, 2)
"""Images of the three classes; image ``k`` of a source has the grey level ``k``."""
LABELS = [label for label, count in enumerate(COUNTS) for _ in range(count)]
CLASSES = ("n00000001", "n00000002", "n00000003")


def _png(value: int) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.full((6, 6, 3), value, np.uint8)).save(sink, "PNG")
    return sink.getvalue()


def _folders(root: Path) -> None:
    for k, label in enumerate(LABELS):
        path = root / CLASSES[label] / f"{k:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_png(k))


def _train_folders(root: Path) -> None:
    _folders(root / "train")


def _table(name: str) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        root.mkdir(exist_ok=True, parents=True)
        table = pa.table({"image": [_png(k) for k in range(len(LABELS))], "label": LABELS})
        named = table.replace_schema_metadata({"classes": "\n".join(CLASSES)})
        pq.write_table(named, root / name, row_group_size=4)

    return write


def _shard(root: Path) -> None:
    root.mkdir(exist_ok=True, parents=True)
    (root / "classes.txt").write_text("\n".join(CLASSES))
    with tarfile.open(root / "photos-000.tar", "w") as tar:
        for k, label in enumerate(LABELS):
            for ending, content in (("png", _png(k)), ("cls", str(label).encode())):
                head = tarfile.TarInfo(f"{k:03d}.{ending}")
                head.size = len(content)
                tar.addfile(head, io.BytesIO(content))


SOURCES = {
    "class folders": ("imagefolder", _folders),
    "train folder": ("imagefolder", _train_folders),
    "imagenet": ("imagenet", _train_folders),
    "parquet": ("parquet", _table("photos.parquet")),
    "parquet named train": ("parquet", _table("photos-train.parquet")),
    "webdataset": ("webdataset", _shard),
}


def _config(name: str, root: Path, **settings: Any) -> SourceConfig:
    return SourceConfig.model_validate({"name": name, "root": str(root), "size": 6, **settings})


@pytest.fixture(params=list(SOURCES))
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., SourceConfig]:
    """A source without a held-out split: ``made(holdout=…)`` is its configuration."""
    name, write = SOURCES[request.param]
    write(tmp_path / "photos")
    return lambda **settings: _config(name, tmp_path / "photos", **settings)


def _levels(images: Any) -> set[int]:
    return set(images[:, 0, 0, 0].tolist())


def test_a_share_of_each_class_is_held_out(made: Callable[..., SourceConfig]) -> None:
    """A fifth of each class, at least one image; no image is in both splits and none is lost."""
    source = sources.load(made(holdout=0.2))
    assert source.test.counts() == (2, 1, 1)
    assert source.train.counts() == (8, 4, 1)
    train, test = _levels(source.train.images), _levels(source.test.images)
    assert train | test == set(range(len(LABELS)))
    assert not train & test
    labels = dict(zip(source.test.images[:, 0, 0, 0].tolist(), source.test.labels.tolist(), strict=True))
    assert labels == {level: LABELS[level] for level in test}


def test_listings_and_counts_agree_with_what_is_loaded(made: Callable[..., SourceConfig]) -> None:
    """Streams, plans and training see the same split, in the same order."""
    config = made(holdout=0.4)
    source, seen = sources.load(config), source_summary(config)
    assert (seen.train, seen.test) == (len(source.train), len(source.test))
    for split, loaded in (("train", source.train), ("test", source.test)):
        listed = sources.listing(config, split)  # type: ignore[arg-type]  # a parameter
        assert listed is not None
        found, bad = sources.decoded(config, listed)
        assert not bad
        assert found.images[:, 0, 0, 0].tolist() == loaded.images[:, 0, 0, 0].tolist()
        assert found.labels.tolist() == loaded.labels.tolist()


def test_the_split_is_the_seeds_and_part_of_the_fingerprint(made: Callable[..., SourceConfig]) -> None:
    """The same seed gives the same split; another seed or share another split and another fingerprint."""
    first, again, other = (sources.load(made(holdout=0.4, holdout_seed=seed)) for seed in (0, 0, 1))
    assert _levels(first.test.images) == _levels(again.test.images) != _levels(other.test.images)
    assert len({sources.fingerprint(made(holdout=share)) for share in (0.2, 0.4)}) == 2
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_a_source_without_held_out_images_names_the_setting(made: Callable[..., SourceConfig]) -> None:
    """Without ``holdout`` the refusal says what to set."""
    with pytest.raises(RayddlError) as caught:
        sources.fingerprint(made())
    assert ADVICE in str(caught.value)


@pytest.mark.parametrize("key", ["class folders", "imagenet", "parquet", "webdataset"])
def test_a_held_out_split_that_exists_is_used(key: str, tmp_path: Path) -> None:
    """``holdout`` then changes neither images nor the fingerprint."""
    name, write = SOURCES[key]
    if name in ("imagefolder", "imagenet"):
        _folders(tmp_path / "train")
        _folders(tmp_path / "val")
    else:
        write(tmp_path)
        whole = next(path for path in tmp_path.iterdir() if path.suffix in (".parquet", ".tar"))
        content = whole.read_bytes()
        whole.unlink()
        for split in ("train", "val"):
            (tmp_path / f"photos-{split}{whole.suffix}").write_bytes(content)
    plain, with_share = _config(name, tmp_path), _config(name, tmp_path, holdout=0.2, holdout_seed=3)
    assert sources.fingerprint(plain) == sources.fingerprint(with_share)
    assert sources.load(with_share).test.counts() == COUNTS


@pytest.fixture
def _alone() -> Iterator[None]:
    """Plugins of a test are gone after it."""
    yield
    plugins.activate([])


@pytest.mark.usefixtures("_alone")
def test_data_of_a_plugin_may_have_no_test_split() -> None:
    """``rayddl.Splits(train)`` with ``holdout``; without it the refusal names the setting."""
    images = (
        np.arange(len(LABELS), dtype=np.uint8)[:, None, None, None].repeat(3, 1).repeat(6, 2).repeat(6, 3)
    )
    plugins.activate(
        [Plugin("mine", sources={"photos": Splits((images, np.array(LABELS)), classes=CLASSES)})]
    )
    source = sources.load(SourceConfig(name="photos", holdout=0.2))
    assert source.test.counts() == (2, 1, 1)
    assert _levels(source.train.images) | _levels(source.test.images) == set(range(len(LABELS)))
    with raises("source-without-held-out"):
        sources.load(SourceConfig(name="photos"))


def test_a_class_of_one_image_cannot_be_split(tmp_path: Path) -> None:
    """It would have no training image."""
    _folders(tmp_path)
    for path in sorted((tmp_path / CLASSES[2]).iterdir())[1:]:
        path.unlink()
    with raises("class-too-small-to-hold-out"):
        sources.fingerprint(_config("imagefolder", tmp_path, holdout=0.2))


@pytest.mark.parametrize(
    "settings",
    [{"name": "digits", "holdout": 0.2}, {"name": "imagefolder", "root": "x", "test": "val", "holdout": 0.2}],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any]) -> None:
    """A source with a fixed held-out split needs none, and ``test`` names one."""
    with pytest.raises(ValueError, match="leave"):
        SourceConfig.model_validate(settings)
