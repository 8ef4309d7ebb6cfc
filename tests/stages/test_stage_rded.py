"""RDED's stage on a real local Ray: what it selects, whatever happens to its workers."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from rayddl import seeds
from rayddl.data.config import SourceConfig
from rayddl.data.distilled import DistilledSet
from rayddl.data.pixels.cutting import as_jpeg
from rayddl.data.sources import listing
from rayddl.data.sources import registry as sources
from rayddl.errors import SourceError
from rayddl.filenames import FileList
from rayddl.methods.patches.boxes import crops, preselected
from rayddl.methods.training.observer import Observer
from rayddl.nets.build import build
from rayddl.nets.config import NetConfig
from rayddl.stages import parquet as tables
from rayddl.stages.context import Context, Input, Progress, Result, Silent
from rayddl.stages.rded import selection as rded_select
from rayddl.stages.rded import stage as rded
from rayddl.stages.rded.settings import RdedConfig
from rayddl.stages.runtime import cluster, streams, workers
from rayddl.stages.runtime.in_process import InProcess
from rayddl.stages.runtime.sizes import Share
from rayddl.stages.settings import Resources
from rayddl.storage import Folder
from tests.finishing import finished
from tests.raising import raises

CLASSES = ("bear", "cat", "dog")
PER_CLASS = 30
SIDE = 16
MEAN, STD = (0.45, 0.5, 0.55), (0.25, 0.3, 0.2)
NET = NetConfig(name="convnet", depth=2, width=8, norm="batch")


def _noise(index: int, height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    coarse = np.random.default_rng(index).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))


def _encoded(image: Image.Image, format_: str) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format_)
    return sink.getvalue()


def _tree(root: Path) -> Path:
    """Pictures of many sizes, PNG and JPEG, in three classes."""
    for split, count in (("train", PER_CLASS), ("val", 2)):
        for c, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                image = Image.fromarray(_noise(1000 * c + k, 20 + k % 7 * 3, 18 + k % 5 * 4))
                format_ = "JPEG" if k % 2 else "PNG"
                (folder / f"{k:03d}.{format_.lower()}").write_bytes(_encoded(image, format_))
    return root


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The train pictures, all of them sound."""
    return _tree(tmp_path_factory.mktemp("tree"))


def _teacher(folder: Path, classes: tuple[str, ...] = CLASSES) -> Input:
    shape = (3, SIDE, SIDE)
    module = build(NET, shape, len(classes), seed=1).eval()
    Observer(module, NET, classes, shape, MEAN, STD, 0.9).save(Folder(str(folder / "observer")))
    return Input("teacher", "teacher", Folder(str(folder)), {}, {})


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Input:
    """An untrained observer: any scores will do."""
    return _teacher(tmp_path_factory.mktemp("teacher"))


@dataclass(frozen=True)
class Found:
    """A finished stage."""

    out: Folder
    summary: Mapping[str, Any]

    @property
    def winners(self) -> dict[str, list[Any]]:
        return tables.read(self.out, "winners.parquet")

    @property
    def made(self) -> DistilledSet:
        return DistilledSet.load(self.out.child("set"))

    @property
    def bits(self) -> bytes:
        return self.out.child("set").read("set.safetensors") + self.out.read("winners.parquet")


Runs = Callable[..., Found]


def in_process(config: RdedConfig, context: Context) -> Result:
    """The stage in this process."""
    return rded.run(config, replace(context, backend=InProcess()))


def _config(**changes: Any) -> RdedConfig:
    base = {"kind": "rded", "teacher": "teacher", "ipc": 2, "factor": 2, "mipc": 20, "precision": "fp32"}
    return RdedConfig.model_validate({**base, "batch": 16, "num_crops": 3, **changes})


def _context(
    tree: Path, teacher: Input, out: Path, progress: Progress | None = None, **source: Any
) -> Context:
    config = SourceConfig(name="imagefolder", root=str(tree), **source)
    return Context("rded", config, 4, Folder(str(out)), {"teacher": teacher}, {}, progress or Silent())


@pytest.fixture
def run_rded(local_ray: None, tree: Path, teacher: Input, tmp_path: Path) -> Runs:
    """Runs the stage into a fresh folder, or into the one given."""
    count = 0

    def run(
        progress: Progress | None = None, *, out: Path | None = None, root: Path = tree, by: Input = teacher,
        how: Callable[[RdedConfig, Context], Result] = rded.run, source: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> Found:  # fmt: skip
        nonlocal count
        count += 1
        context = _context(root, by, out or tmp_path / f"run-{count}", progress, **(source or {}))
        return Found(context.out, finished(how, _config(**changes), context).summary)

    return run


@pytest.fixture(scope="session")
def reference(local_ray: None, tree: Path, teacher: Input, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """One worker, undisturbed, chunks of five images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "CHUNK", 5)
        context = _context(tree, teacher, tmp_path_factory.mktemp("reference"))
        result = finished(rded.run, _config(resources={"at_once": 1}), context)
    return Found(context.out, result.summary)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "CHUNK", 5)
    monkeypatch.setattr(streams, "CHUNKS_A_BLOCK", 1)


def _patch(tree: Path, name: str, box: tuple[int, int, int]) -> Tensor:
    pixels = torch.from_numpy(np.array(Image.open(tree / "train" / name).convert("RGB"))).permute(2, 0, 1)
    top, left, side = box
    part = pixels[None, :, top : top + side, left : left + side]
    return F.interpolate(part, size=(SIDE // 2, SIDE // 2), mode="bilinear", antialias=True)[0]


def _directly(tree: Path, teacher: Input) -> dict[str, list[tuple[str, int, tuple[int, int, int]]]]:
    """The algorithm as the paper tells it, class by class and image by image, without any of the stage."""
    module = Observer.load(teacher.folder.child("observer")).module
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    seed = seeds.derive(4, "rded")
    names = sorted(f"{p.parent.name}/{p.name}" for p in (tree / "train").glob("*/*"))
    labels = np.array([CLASSES.index(name.split("/")[0]) for name in names], np.int32)
    looked_at = [names[i] for i in preselected(seed, names, labels, 20)]
    chosen = {}
    for c, class_ in enumerate(CLASSES):
        candidates = []
        for name in (n for n in looked_at if n.startswith(f"{class_}/")):
            with Image.open(tree / "train" / name) as image:
                boxes = crops(seeds.derive(seed, "crops"), name, image.height, image.width, 3)
            losses = []
            for box in boxes.tolist():
                canvas = torch.zeros(1, 3, SIDE, SIDE)
                canvas[0, :, 4:12, 4:12] = (_patch(tree, name, box).float() / 255 - mean) / std
                with torch.no_grad():
                    losses.append(float(-torch.log(torch.softmax(module(canvas), 1)[0, c])))
            best = min(range(3), key=losses.__getitem__)
            candidates.append((losses[best], name, best, tuple(boxes[best].tolist())))
        chosen[class_] = [(n, k, b) for _, n, k, b in sorted(candidates)[:8]]
    return chosen


def test_the_selection_is_the_papers_image_by_image(reference: Found, tree: Path, teacher: Input) -> None:
    """Same images, same crops, same ranks as a direct implementation, and each stands in its tile."""
    expected, found = _directly(tree, teacher), reference.winners
    rows = list(zip(*(found[c] for c in ("class", "image", "crop", "top", "left", "side")), strict=True))
    got = {c: [(n, k, tuple(box)) for x, n, k, *box in rows if x == c] for c in CLASSES}
    assert got == expected
    pixels = reference.made.pixels()
    for index, image in enumerate(pixels):
        class_, place_in_class = CLASSES[index // 2], index % 2
        for tile in range(4):
            name, _, box = expected[class_][tile * 2 + place_in_class]
            top, left = tile // 2 * 8, tile % 2 * 8
            assert torch.equal(image[:, top : top + 8, left : left + 8], _patch(tree, name, box))


def test_the_set_says_how_it_was_made(reference: Found) -> None:
    """Pixels are kept as bytes, with the observer's scaling and the protocol that the set is meant for."""
    made = reference.made
    assert made.stored.dtype == torch.uint8
    assert made.classes == CLASSES
    assert made.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert made.info["factor"] == 2
    assert made.info["protocol"]["name"] == "soft"
    expected = (made.pixels().float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(
        3, 1, 1
    )
    assert torch.allclose(made.images, expected, atol=1e-6)
    assert reference.summary["looked_at"] == 60
    assert reference.summary["bad"] == 0


def test_four_workers_give_the_same_set_as_one(run_rded: Runs, reference: Found) -> None:
    """The bits do not depend on how many score, nor on who is first."""
    assert run_rded(resources={"num_cpus": 0.5}).bits == reference.bits


def test_few_chunks_are_spread_and_many_are_bundled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every worker gets its share while there is little; a bundle has a limit."""
    monkeypatch.setattr(streams, "CHUNKS_A_BLOCK", 8)
    monkeypatch.setattr(streams, "BLOCKS_A_WORKER", 4)
    found = [streams.rows_a_block(images, 2, 10) for images in (0, 1, 150, 160, 395, 640, 50_000)]
    assert found == [10, 10, 10, 20, 50, 80, 80]


def test_block_sizes_and_a_shuffled_listing_change_nothing(
    run_rded: Runs, reference: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers, other portions, and files found in another order give the same bits."""
    monkeypatch.setattr(listing, "CHUNK", 7)
    monkeypatch.setattr(streams, "CHUNKS_A_BLOCK", 3)
    monkeypatch.setattr(streams, "BLOCKS_A_WORKER", 1)
    found, lengths = Folder.listed, list[int]()

    def shuffled(folder: Folder, within: Folder | None = None) -> FileList:
        files = found(folder, within)
        order = np.random.default_rng(3).permutation(len(files))
        lengths.append(len(files))
        return FileList(files.names.take(order), files.bytes[order])

    monkeypatch.setattr(Folder, "listed", shuffled)
    assert run_rded().bits == reference.bits
    assert max(lengths) > 1


def test_both_backends_give_the_same_set(
    run_rded: Runs, reference: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process the stage selects the same as on Ray, and sends no work out.

    A worker's tasks and streams would wait for the CPU that it holds, as a whole search once did, for ever.
    """

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("work was sent out by a worker")

    for module, name in ((cluster, "spread"), (cluster, "sized"), (workers, "opened"), (streams, "stream")):
        monkeypatch.setattr(module, name, refused)
    assert run_rded(how=in_process).bits == reference.bits


def test_cutters_apart_from_judges_give_the_same_rows(
    local_ray: None, tree: Path, teacher: Input, tmp_path: Path
) -> None:
    """Where the observer has a GPU, crops are cut in other processes: the outcome is the same."""
    context = _context(tree, teacher, tmp_path)
    job, _ = rded.prepared(_config(), context)
    numbers = np.arange(len(job.listing))
    one = Share(0.5, 0.0, None, 1)
    rows = {}
    for name, cutters in (("together", None), ("apart", one)):
        blocks = streams.stream(numbers, rded_select.steps(job), one, cutters, Silent().note)
        rows[name] = sorted(
            (int(i), float(s), int(k))
            for b in blocks
            for i, s, k in zip(b["image"], b["score"], b["crop"], strict=True)
        )
    assert rows["together"] == rows["apart"]
    assert len(rows["apart"]) == 60


def test_errors_of_the_stream_keep_their_kind(
    local_ray: None, tree: Path, teacher: Input, tmp_path: Path
) -> None:
    """A refusal reads like that of every other work; Ray Data would wrap it in an error of its own."""

    def refused(block: streams.Block, sent: bytes) -> streams.Block:
        raise SourceError("no images today", code="for-a-test")

    job, _ = rded.prepared(_config(), _context(tree, teacher, tmp_path))
    steps = replace(rded_select.steps(job), both=refused)
    with raises("for-a-test"):
        list(streams.stream(np.arange(10), steps, Share(0.5, 0.0, None, 1), None, Silent().note))


def test_a_worker_killed_in_mid_stream_costs_nothing(
    run_rded: Runs, told: Any, killing: Callable[..., Any]
) -> None:
    """The scoring process dies by SIGKILL; another takes over, and the bits are the same."""
    slow = {"num_crops": 64, "batch": 1, "mipc": PER_CLASS}
    progress = told()
    with killing("ray::MapBatches(rded_cut_and_judge)", progress.under_way) as killed:
        found = run_rded(progress, resources={"at_once": 1}, **slow)
    assert killed
    assert found.bits == run_rded(how=in_process, **slow).bits


def test_a_driver_that_ends_in_mid_stream_goes_on_where_it_stood(
    run_rded: Runs, reference: Found, told: Any, cut_when: Any, cut: type[Exception], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Chunks that were finished are not scored again, and the bits are the same."""
    monkeypatch.setattr(rded_select, "SAVE_SECONDS", 0.0)
    out = tmp_path / "resumed"
    progress = cut_when(lambda: progress.updates[-1][0] >= 25)
    with pytest.raises(cut):
        run_rded(progress, out=out)
    again = told()
    assert run_rded(again, out=out).bits == reference.bits
    assert again.updates[0][0] >= 20
    assert not (out / rded_select.PROGRESS_FILE).exists()


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """The same tree with odd and broken files in place of some of the cats."""
    root = _tree(tmp_path / "damaged")
    cats = root / "train" / "cat"
    picture = Image.fromarray(_noise(7, 30, 30))
    whole = _encoded(picture, "JPEG")
    for name, data in {
        "000.png": b"",
        "002.png": b"no image",
        "001.jpeg": whole[: len(whole) // 2],
        "004.png": _encoded(picture.convert("L"), "PNG"),
        "003.jpeg": _encoded(picture.convert("CMYK"), "JPEG"),
        "006.png": _encoded(picture.convert("RGBA"), "PNG"),
        "008.png": _encoded(Image.new("RGB", (1, 1)), "PNG"),
    }.items():
        (cats / name).write_bytes(data)
    return root


def test_broken_files_are_counted_and_listed_and_odd_ones_converted(run_rded: Runs, damaged: Path) -> None:
    """Empty, meaningless and cut-off files are named; grey, CMYK, alpha and one pixel are images."""
    found = run_rded(root=damaged, mipc=PER_CLASS, source={"max_bad_fraction": 0.1})
    assert found.summary["bad"] == 3
    assert [line.split(":")[0] for line in found.summary["bad_examples"]] == [
        "cat/000.png", "cat/001.jpeg", "cat/002.png",
    ]  # fmt: skip
    assert len(found.made) == 6


def test_too_many_broken_files_end_the_stream(run_rded: Runs, damaged: Path) -> None:
    """Past the fraction that is allowed, the message counts and names them."""
    with raises("too-many-bad-images"):
        run_rded(root=damaged, mipc=PER_CLASS)


@pytest.mark.parametrize(("policy", "images"), [("cap", 7), ("repeat", 8)])
def test_a_short_class_is_capped_or_repeats(run_rded: Runs, policy: str, images: int) -> None:
    """32 patches are asked of 30 images: one image fewer, or two patches twice."""
    found = run_rded(ipc=8, mipc=40, short_class=policy, how=in_process)
    assert torch.bincount(found.made.labels).tolist() == [images] * 3


def test_a_short_class_is_refused_by_default(run_rded: Runs) -> None:
    """The message has the class, both numbers and the ways out."""
    with raises("class-too-small-for-patches"):
        run_rded(ipc=8, mipc=40)


def test_fewer_images_than_mipc_are_told(run_rded: Runs, told: Any) -> None:
    """All of a small class are looked at, with a note."""
    progress = told()
    run_rded(progress, mipc=40, how=in_process)
    assert any("fewer than mipc (40) images" in note for note in progress.notes)


def test_an_observer_of_other_classes_is_refused_before_scoring(run_rded: Runs, tmp_path: Path) -> None:
    """A class that the observer does not know, a renamed folder for one, stops the run by name."""
    stranger = _teacher(tmp_path / "stranger", ("bear", "cat", "wolf", "yak"))
    with raises("observer-lacks-classes"):
        run_rded(by=stranger)


def test_an_observer_in_another_order_is_matched_by_name(
    run_rded: Runs, reference: Found, tmp_path: Path
) -> None:
    """Outputs in another order, with more classes among them, score the same way."""
    names = ("dog", "yak", "bear", "cat")
    base = build(NET, (3, SIDE, SIDE), 3, seed=1).eval()
    wide = build(NET, (3, SIDE, SIDE), 4, seed=1).eval()
    state = dict(base.state_dict())
    order = [CLASSES.index(n) if n in CLASSES else 0 for n in names]
    last = [k for k, v in state.items() if v.shape[:1] == (3,) and wide.state_dict()[k].shape[:1] == (4,)]
    assert last
    wide.load_state_dict({k: (v[order] if k in last else v) for k, v in state.items()})
    shape = (3, SIDE, SIDE)
    Observer(wide, NET, names, shape, MEAN, STD, 0.9).save(Folder(str(tmp_path / "wide" / "observer")))
    permuted = Input("teacher", "teacher", Folder(str(tmp_path / "wide")), {}, {})
    found = run_rded(by=permuted, how=in_process)
    assert found.winners["image"] == reference.winners["image"]
    assert found.winners["crop"] == reference.winners["crop"]


def test_whole_images_are_scored_and_stored_as_jpeg(run_rded: Runs) -> None:
    """One centred square of each image; the set has the pixels that a JPEG file of the same images leaves."""
    plain = run_rded(whole=True, factor=1)
    rows = plain.winners
    assert set(rows["crop"]) == {0}
    assert all(min(top, left) == 0 for top, left in zip(rows["top"], rows["left"], strict=True))
    packed = run_rded(whole=True, factor=1, jpeg=75)
    assert packed.winners == rows
    expected = torch.stack([as_jpeg(image, 75) for image in plain.made.stored])
    assert torch.equal(packed.made.stored, expected)
    assert not torch.equal(packed.made.stored, plain.made.stored)


def test_more_patches_than_images_looked_at_are_refused_in_the_definition() -> None:
    """The check needs no image."""
    problems = _config(ipc=10, mipc=20).check({})
    assert problems == [
        "10 images of 2 x 2 patches need 40 images of each class, but mipc looks at 20; "
        "raise mipc, or lower ipc or factor"
    ]


def test_the_listing_of_a_source_is_of_its_train_split(tree: Path) -> None:
    """Nothing of the held-out images is ever looked at."""
    found = sources.listing(SourceConfig(name="imagefolder", root=str(tree)))
    assert found is not None
    assert len(found) == len(CLASSES) * PER_CLASS


def test_resources_are_no_part_of_the_result() -> None:
    """Workers may be changed without making the set anew."""
    from rayddl.stages.settings import without_resources

    changed = _config(decoders=Resources(num_cpus=3), resources=Resources(at_once=7))
    assert without_resources(changed) == without_resources(_config())


def test_stitching_keeps_to_the_room_of_the_decoders(
    local_ray: None, tree: Path, teacher: Input, tmp_path: Path
) -> None:
    """It runs on CPUs, and the scoring workers' room may be one of GPUs."""
    keys = []

    class Recorded(InProcess):
        def opened(self, *args: Any, key: str = "resources", **more: Any) -> Any:
            keys.append(key)
            return super().opened(*args, key=key, **more)

    rded.run(_config(), replace(_context(tree, teacher, tmp_path / "out"), backend=Recorded()))
    assert keys == ["decoders"]
