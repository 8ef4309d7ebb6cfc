"""Sources by name: the digits, CIFAR's own files, and fingerprints."""

from __future__ import annotations

import hashlib
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from rayddl.data.config import SourceConfig
from rayddl.data.sources import given
from rayddl.data.sources import registry as sources
from rayddl.errors import SourceError
from tests.raising import raises

DIGITS = SourceConfig(name="digits")
CIFAR_FILES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def test_digits_are_split_once_and_for_all() -> None:
    """About a fifth of each class is held out, every image is in one split, and the order is fixed."""
    source = sources.load(DIGITS)

    assert source.train.shape == source.test.shape == (1, 8, 8)
    assert source.train.images.dtype == torch.uint8
    assert source.train.labels.dtype == torch.int64
    assert source.train.classes == source.test.classes == tuple("0123456789")
    assert (len(source.train), len(source.test)) == (1438, 359)
    shares = [b / (a + b) for a, b in zip(source.train.counts(), source.test.counts(), strict=True)]
    assert all(0.19 < share < 0.21 for share in shares)
    assert source.bad == ()
    digest = hashlib.sha256(source.train.images.numpy().tobytes()).hexdigest()
    assert digest.startswith("773b1d6bc208d866")


@pytest.mark.parametrize("made", ["digits", "arrays"])
def test_grey_images_have_plain_strides(made: str) -> None:
    """Strides that are those of channels last as well make convolutions differ in the last bits."""
    grey, labels = np.zeros((3, 4, 5, 1), np.uint8), np.array([0, 1, 0])
    images = (
        sources.load(DIGITS).train.images
        if made == "digits"
        else given._made((grey, labels), ("a", "b")).images
    )

    assert images.stride() == torch.empty(images.shape).stride()


def test_digits_use_the_whole_range_of_a_byte() -> None:
    """Ink that is stored as 0 to 16 becomes 0 to 255."""
    from sklearn.datasets import load_digits

    source = sources.load(DIGITS)
    stored = {int(v) for v in np.unique(load_digits().images)}

    assert {int(v) for v in source.train.images.unique()} == {round(v * 255 / 16) for v in stored}


def test_digits_are_resized_when_asked() -> None:
    """``size`` brings them to another side, and changes the fingerprint."""
    larger = SourceConfig(name="digits", size=16)
    source = sources.load(larger)

    assert source.train.shape == (1, 16, 16)
    assert source.fingerprint != sources.fingerprint(DIGITS)


def test_loading_and_fingerprint_agree() -> None:
    """A loaded source carries the fingerprint that is computed without loading it."""
    assert sources.load(DIGITS).fingerprint == sources.fingerprint(DIGITS)
    assert re.fullmatch("[0-9a-f]{64}", sources.fingerprint(DIGITS))


def test_settings_that_change_no_pixel_keep_the_fingerprint() -> None:
    """Space, root, download and the share of bad images are not part of what the images are."""
    same = SourceConfig(name="digits", space="zca", root="elsewhere", download=True, max_bad_fraction=0.5)

    assert sources.fingerprint(same) == sources.fingerprint(DIGITS)


@pytest.mark.parametrize("name", ["digits", "parquet", "imagefolder", "cifar10"])
def test_a_fingerprint_imports_no_torch(name: str, tmp_path: Path) -> None:
    """Planning stays instant: neither torch nor PIL's decoders are loaded for it."""
    code = (
        "import sys\n"
        "from rayddl.data.sources import registry as sources\n"
        "from rayddl.data.config import SourceConfig\n"
        "from rayddl.errors import SourceError\n"
        f"config = SourceConfig(name={name!r}, root={str(tmp_path)!r})\n"
        "try:\n"
        "    sources.fingerprint(config)\n"
        "except SourceError:\n"
        "    pass\n"
        "print(sorted({'torch', 'torchvision', 'ray', 'PIL', 'sklearn'} & set(sys.modules)))\n"
    )

    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_missing_cifar_names_what_was_looked_for(name: str, tmp_path: Path) -> None:
    """The message gives the root, the files, and both ways out."""
    with pytest.raises(SourceError) as caught:
        sources.fingerprint(SourceConfig.model_validate({"name": name, "root": str(tmp_path)}))

    text = str(caught.value)
    folder = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]
    assert f"source {name}: not found in {tmp_path}. Looked for {folder}/ with " in text
    assert f"Set source.root to the folder that holds {folder}, or source.download=true" in text


def test_cifar_without_a_root_says_so() -> None:
    """There is no default place to look for it."""
    with raises("cifar-without-root"):
        sources.fingerprint(SourceConfig(name="cifar10"))


def test_a_root_of_an_unknown_kind_is_refused() -> None:
    """The message says what to check, and quotes no key."""
    config = SourceConfig(name="parquet", root="nfs5://AKID:hidden@host/x", train="a.parquet")
    with raises("root-cannot-be-opened") as caught:
        sources.fingerprint(config)

    assert "hidden" not in str(caught.value)
    assert "Check how it is written" in str(caught.value)


def test_cifar_from_a_remote_root_is_refused() -> None:
    """CIFAR's reader takes local files only; the message names the source that reads from anywhere."""
    with raises("cifar-root-not-local"):
        sources.fingerprint(SourceConfig(name="cifar10", root="s3://bucket/x?region=us-east-1"))


def test_a_download_is_not_started_by_a_fingerprint(tmp_path: Path) -> None:
    """With ``download`` on, planning succeeds before anything was fetched, and fetches nothing."""
    config = SourceConfig(name="cifar10", root=str(tmp_path), download=True)

    assert re.fullmatch("[0-9a-f]{64}", sources.fingerprint(config))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def cifar_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A few images in CIFAR-10's published form, with torchvision's checksums set to theirs."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    values = np.random.default_rng(0).integers(0, 256, (6, 10, 3072), dtype=np.uint8)
    sums = {}
    for name, batch in zip(CIFAR_FILES, values, strict=True):
        data = pickle.dumps({"data": batch, "labels": list(range(10))})
        (folder / name).write_bytes(data)
        sums[name] = hashlib.md5(data).hexdigest()
    names = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    meta = pickle.dumps({"label_names": names})
    (folder / "batches.meta").write_bytes(meta)
    monkeypatch.setattr(CIFAR10, "train_list", [[n, sums[n]] for n in CIFAR_FILES[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    described = {"filename": "batches.meta", "key": "label_names", "md5": hashlib.md5(meta).hexdigest()}
    monkeypatch.setattr(CIFAR10, "meta", described)
    return tmp_path


def test_cifar_in_its_published_form(cifar_root: Path) -> None:
    """Both splits come as stored, channels first, with the published class names."""
    config = SourceConfig(name="cifar10", root=str(cifar_root))
    source = sources.load(config)
    first = pickle.loads((cifar_root / "cifar-10-batches-py" / "data_batch_1").read_bytes())

    assert (len(source.train), len(source.test)) == (50, 10)
    assert source.train.shape == (3, 32, 32)
    assert source.train.images.is_contiguous()
    assert np.array_equal(source.train.images[:10].numpy().reshape(10, -1), first["data"])
    assert source.test.labels.tolist() == list(range(10))
    assert source.train.classes[1] == "car"
    assert sources.load(config.model_copy(update={"size": 16})).test.shape == (3, 16, 16)


def test_damaged_cifar_files_are_refused(cifar_root: Path) -> None:
    """A file whose checksum is wrong is not read; the message says how to fetch it again."""
    file = cifar_root / "cifar-10-batches-py" / "data_batch_2"
    file.write_bytes(file.read_bytes()[:-1])

    with raises("cifar-damaged"):
        sources.load(SourceConfig(name="cifar10", root=str(cifar_root)))
