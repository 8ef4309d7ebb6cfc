"""Evaluation by soft labels on the digits: live and stored, with the observer beside the set and without."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import torch as safetensors
from safetensors.torch import save_file

from rayddl.data.config import SourceConfig
from rayddl.data.distilled import DistilledSet
from rayddl.data.pixels import space
from rayddl.data.sources import picking
from rayddl.data.sources import registry as sources
from rayddl.errors import ArtifactError
from rayddl.methods.training.input_spec import InputSpec
from rayddl.methods.training.observer import Observer
from rayddl.methods.training.soft import EpochData, Execution, SoftProtocol, SoftTraining
from rayddl.methods.training.teacher import predictions, share_right
from rayddl.nets.build import build
from rayddl.nets.config import NetConfig
from rayddl.seeds import derive, generator
from rayddl.stages.context import Context, Input, Result, Silent
from rayddl.stages.evaluate import protocol, soft_labels
from rayddl.stages.evaluate import stage as evaluate
from rayddl.stages.evaluate import worker as students
from rayddl.stages.evaluate.settings import EvaluateConfig
from rayddl.stages.evaluate.student_data import Shared, Student, TrainingData
from rayddl.stages.runtime import listings, shards
from rayddl.stages.runtime.in_process import InProcess
from rayddl.stages.runtime.sources import publish
from rayddl.stages.teacher import stage as teacher
from rayddl.stages.teacher.settings import TeacherConfig
from rayddl.storage import Folder
from tests.digits import as_parquet
from tests.finishing import finished
from tests.raising import raises

pytestmark = pytest.mark.ray

NET = {"name": "convnet", "depth": 1, "width": 8, "norm": "batch"}
SOURCE = SourceConfig(name="digits")
CPU = torch.device("cpu")
IPC, EPOCHS, LR = 5, 40, 5e-3


@dataclass(frozen=True)
class Made:
    """A stage that ran, and what it handed back."""

    out: Folder
    result: Result

    @property
    def rows(self) -> dict[str, Mapping[str, Any]]:
        return {row["data"]: row for row in self.result.summary["rows"]}


@pytest.fixture(scope="module")
def taught(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Input:
    """A teacher of the digits."""
    base = {"kind": "teacher", "net": NET, "epochs": 8, "compile": False, "augment": "crop"}
    out = Folder(str(tmp_path_factory.mktemp("teacher")))
    here = InProcess(torch.get_num_threads())
    context = Context("teacher", SOURCE, 5, out, {}, {}, Silent(), backend=here)
    result = teacher.run(TeacherConfig.model_validate(base), context)
    return Input("teacher", "teacher", out, base, result.summary)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Input:
    """A set of real images as RDED leaves one, of grids of 2 x 2."""
    train = sources.load(SOURCE).train
    picked = picking.per_class(train.labels, train.classes, IPC, torch.Generator().manual_seed(0))
    fitted = space.fit("normalise", train.images)
    info = {
        "method": "RDED",
        "source": SOURCE.model_dump(mode="json"),
        "net": NetConfig.model_validate(NET).model_dump(mode="json"),
        "factor": 2,
        "protocol": {"name": "soft"},
    }
    made = DistilledSet(train.images[picked], train.labels[picked], 0.01, train.classes, fitted, info)
    out = Folder(str(tmp_path_factory.mktemp("rded")))
    made.save(out.child("set"))
    return Input("rded", "rded", out, {}, {})


def settings(**changes: Any) -> EvaluateConfig:
    base = {"kind": "evaluate", "set": "rded", "observer": "teacher", "seeds": 2, "epochs": EPOCHS, "lr": LR}
    return EvaluateConfig.model_validate({**base, "compile": False, **changes})


def run(config: EvaluateConfig, out: Path, *inputs: Input) -> Made:
    read = {i.stage: i for i in inputs}
    context = Context("evaluate", SOURCE, 5, Folder(str(out)), read, {}, Silent())
    return Made(context.out, finished(evaluate.run, config, context))


def test_a_team_of_one_process_trains_the_students_of_single_workers(
    taught: Input, chosen: Input, tmp_path: Path
) -> None:
    """All students of soft labels in one unit of work, after those of hard labels, and in the same order."""
    rows = []
    for workers in (1, 2):
        config = settings(workers=workers, epochs=2, whole_epochs=1, ranking=True)
        out, read = Folder(str(tmp_path / str(workers))), {i.stage: i for i in (taught, chosen)}
        context = Context("evaluate", SOURCE, 5, out, read, {}, backend=InProcess(torch.get_num_threads()))
        rows.append(finished(evaluate.run, config, context).summary["rows"])
        assert out.names() == ["confusion.parquet", "students.parquet"]
    assert {row["data"] for row in rows[1]} >= {
        "distilled",
        "distilled-own",
        "random-own",
        "distilled-hard",
        "whole",
    }
    assert rows[1] == rows[0]


def test_a_team_of_students_that_loses_a_worker_goes_on(
    taught: Input, chosen: Input, tmp_path: Path, killing: Callable[..., Any]
) -> None:
    """The student in training from its last epochs, to what single workers train; finished ones are kept."""
    epochs = 60
    config = settings(workers=2, epochs=epochs, random=False, own_labels=False)
    out, over, lengths = tmp_path / "team", threading.Event(), dict[str, list[int]]()

    def watch() -> None:
        while not over.wait(0.005):
            for partial in out.glob("*.partial.safetensors"):
                with suppress(FileNotFoundError):
                    losses = safetensors.load(partial.read_bytes())["numbers.losses"]
                    lengths.setdefault(partial.name, []).append(len(losses))

    def second_is_under_way() -> bool:
        return len(lengths) == 2 and list(lengths.values())[1][-1] > 2

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        with killing("ray::RayTrainWorker", second_is_under_way) as killed:
            team = run(config, out, taught, chosen)
    finally:
        over.set()
        thread.join()
    assert killed
    assert len(lengths) == 2
    # A student that began again would have fewer losses than before.
    assert all(seen == sorted(seen) and seen[0] < epochs for seen in lengths.values())
    assert team.out.names() == ["confusion.parquet", "students.parquet"]

    alone = run(config.model_copy(update={"workers": 1}), tmp_path / "alone", taught, chosen)
    pairs = zip(*(made.rows["distilled"]["accuracies"] for made in (team, alone)), strict=True)
    assert all(abs(one - other) < 0.05 for one, other in pairs)


@pytest.fixture(scope="module")
def live(taught: Input, chosen: Input, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The set and random images, judged with the observer at hand."""
    return run(settings(), tmp_path_factory.mktemp("live"), taught, chosen)


@pytest.fixture(scope="module")
def stored(taught: Input, chosen: Input, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The set judged by labels that are kept with it."""
    config = settings(labels="stored", random=False)
    return run(config, tmp_path_factory.mktemp("stored"), taught, chosen)


def test_soft_labels_teach_far_better_than_chance(live: Made) -> None:
    """Students of the set and of random images read digits; seeds differ."""
    assert set(live.rows) == {"distilled", "random", "distilled-own", "random-own"}
    for name, row in live.rows.items():
        assert row["images"] == 10 * IPC
        assert row["mean"] > (0.2 if name.endswith("-own") else 0.4), row
        assert len(set(row["accuracies"])) == 2
    assert live.out.names() == ["confusion.parquet", "students.parquet"]


def test_a_student_is_the_one_that_floor_one_trains(live: Made, taught: Input, chosen: Input) -> None:
    """The accuracy in the table is that of the protocol carried out by hand."""
    made, observer = (
        DistilledSet.load(chosen.folder.child("set")),
        Observer.load(taught.folder.child("observer")),
    )
    net, protocol = NetConfig.model_validate(NET), SoftProtocol(batch=10, factor=2, epochs=EPOCHS, lr=LR)
    seed = derive(derive(5, "evaluate"), "student", "distilled", net.model_dump_json(), 1)
    draws = lambda e: EpochData(protocol.draw(e, 10 * IPC, (8, 8), observer.input_spec, seed))  # noqa: E731
    student = build(net, (1, 8, 8), 10, seed=derive(seed, "start"))
    seen = observer.on(CPU).module
    trained = SoftTraining(
        student, protocol, observer.input_spec, made.pixels(), draws, seen, Execution(CPU), seed
    ).run()
    test = sources.load(SOURCE).test
    right = share_right(predictions(trained, observer.input_spec, test.images, CPU), test.labels)
    assert live.rows["distilled"]["accuracies"][1] == right


def test_the_protocol_is_written_down(live: Made, taught: Input) -> None:
    """Everything that another judge needs, with the observer's accuracy; the batch is the published one."""
    protocol = dict(live.result.summary["protocol"])
    observer = protocol.pop("observer")
    assert observer == {
        "stage": "teacher",
        "net": "convnet-d1-w8-batch",
        "accuracy": taught.summary["accuracy"],
        "folder": "observer",
    }
    expected = {"name": "soft", "lr": LR, "epochs": EPOCHS, "batch": 10, "labels": "live", "compile": False}
    assert {k: protocol[k] for k in expected} == expected
    assert DistilledSet.load(live.out.child("set")).info["protocol"]["observer"] == observer


def test_a_judged_set_reaches_its_figures_by_itself(live: Made) -> None:
    """The observer lies beside the set: judged from its folder alone, every accuracy is the same."""
    again = evaluate.evaluate_set(live.out.child("set"))
    assert [r["accuracies"] for r in again.summary["rows"]] == [
        r["accuracies"] for r in live.result.summary["rows"]
    ]


def test_few_logits_of_each_image_are_kept(
    stored: Made, taught: Input, chosen: Input, tmp_path: Path
) -> None:
    """In fewer bytes, which are noted with the images'; without the observer the figures are the same."""
    notes: list[str] = []

    class Noting(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    config = settings(labels="stored", label_top=2, random=False, own_labels=False, seeds=1)
    read = {i.stage: i for i in (taught, chosen)}
    made = evaluate.run(config, Context("evaluate", SOURCE, 5, Folder(str(tmp_path)), read, {}, Noting()))
    folder = Folder(str(tmp_path)).child("set")
    assert made.summary["label_bytes"] < 0.8 * stored.result.summary["label_bytes"]
    assert [note for note in notes if "stored labels take" in note and "the images 3.5 KiB" in note]
    assert made.summary["rows"][0]["mean"] > 0.4
    for name in folder.child("observer").names():
        folder.child("observer").delete(name)
    again = evaluate.evaluate_set(folder).summary
    assert again["rows"][0] == made.summary["rows"][0]
    assert again["protocol"]["label_top"] == 2


def test_two_equal_observers_label_as_one(live: Made, taught: Input, chosen: Input, tmp_path: Path) -> None:
    """The mean of equal logits has their bits, and the set's folder alone gives the same figures."""
    twin = replace(taught, stage="twin")
    made = run(settings(observer=["teacher", "twin"], seeds=1), tmp_path, taught, twin, chosen)
    for name in ("distilled", "random"):
        assert made.rows[name]["accuracies"] == live.rows[name]["accuracies"][:1]
    assert [each["folder"] for each in made.result.summary["protocol"]["observer"]] == [
        "observer-0",
        "observer-1",
    ]
    again = {row["data"]: row for row in evaluate.evaluate_set(made.out.child("set")).summary["rows"]}
    assert again == made.rows


def test_an_open_protocol_is_written_down_and_repeated(taught: Input, chosen: Input, tmp_path: Path) -> None:
    """A recipe's choices are stored one by one; the set's folder alone gives the same figures, the best ones, too."""
    config = settings(recipe="edc", epochs=12, seeds=1, report="best", random=False, crop_within_patch=True)
    made = run(config, tmp_path, taught, chosen)
    protocol = made.result.summary["protocol"]
    expected = {"recipe": "edc", "loss": "mse_gt", "ema": 0.99, "crop_min": 0.08, "crop_within_patch": True}
    assert {k: protocol[k] for k in expected} == expected
    assert "optimizer" not in protocol
    assert set(made.rows) == {"distilled", "distilled-own"}
    for row in made.rows.values():
        assert row["best"]["mean"] >= row["mean"]
    again = evaluate.evaluate_set(made.out.child("set"))
    repeated = {row["data"]: row for row in again.summary["rows"]}
    assert {name: repeated[name] for name in made.rows} == made.rows
    assert {"accuracy % (last epoch)", "best of late epochs %"} <= set(again.table[0])


@pytest.mark.parametrize(
    ("given", "expected"), [({}, 0.5), ({"crop_min": 0.3}, 0.3), ({"recipe": "bps"}, 0.1)]
)
def test_random_images_are_cropped_as_the_sets(
    given: Mapping[str, Any], expected: float, taught: Input, chosen: Input, tmp_path: Path
) -> None:
    """A set of 2 x 2 patches is cropped down to a half of an image by RDED's recipe, and so are random images."""
    read = {each.stage: each for each in (taught, chosen)}
    context = Context("evaluate", SOURCE, 5, Folder(str(tmp_path)), read, {}, Silent())
    config = settings(whole=True, epochs=1, **given)
    made = DistilledSet.load(chosen.folder.child("set"))
    task = evaluate._task(config, made, SOURCE, soft_labels.of_stage(config, made, context), 5)
    by_name = {data.name: data.protocol for data, _ in protocol.training_data_of(task)}
    areas = {}
    for name in ("distilled", "random", "whole"):
        drawn = by_name[name].draw(0, 2000, (8, 8), task.label_source.input_spec, 1)  # type: ignore[union-attr]
        areas[name] = drawn.boxes[:, 2:].prod(1).float().div(64)

    assert {name: by_name[name].factor for name in areas} == {"distilled": 2, "random": 1, "whole": 1}
    for area in areas.values():
        # A crop's sides are whole pixels.
        assert expected - 0.1 <= float(area.min()) <= expected + 0.1
        assert float(area.mean()) == pytest.approx((expected + 1) / 2, abs=0.08)


def test_a_set_keeps_the_definition_that_evaluated_it(taught: Input, chosen: Input, tmp_path: Path) -> None:
    """With its figures, not the first one that made the images; an imported set keeps the latter, too."""
    made = DistilledSet.load(chosen.folder.child("set"))
    first, mine = {"name": "first"}, {"name": "mine"}
    config = settings(epochs=1, seeds=1, random=False, own_labels=False)
    for more, kept in (
        ({}, {"definition": mine}),
        ({"imported": {"form": "set"}}, {"definition": first, "evaluated_by": mine}),
    ):
        folder = Folder(str(tmp_path / str(len(kept))))
        replace(made, info={**made.info, "definition": first, **more}).save(folder.child("set"))
        read = {each.stage: each for each in (taught, replace(chosen, folder=folder))}
        context = Context("evaluate", SOURCE, 5, folder.child("out"), read, mine, Silent())
        finished(evaluate.run, config, context)
        info = DistilledSet.load(folder.child("out/set")).info
        assert {key: info[key] for key in ("definition", "evaluated_by") if key in info} == kept


def test_comparisons_can_be_turned_off(taught: Input, chosen: Input, tmp_path: Path) -> None:
    """Students of own labels and of random images are trained by default, and not if the settings say so."""
    config = settings(epochs=1, seeds=1, random=False, own_labels=False)
    assert set(run(config, tmp_path, taught, chosen).rows) == {"distilled"}


def test_a_large_observer_stays_where_it_is(
    live: Made, taught: Input, chosen: Input, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the limit its path is kept; where it has gone, the message says how to name it."""
    monkeypatch.setattr(soft_labels, "CARRIED_BYTES", 10)
    made = run(settings(random=False, epochs=1, seeds=1, lr=None), tmp_path, taught, chosen)
    assert made.result.summary["protocol"]["lr"] == 1e-3  # the published one
    folder = made.out.child("set")
    assert "observer" not in folder.folders()
    assert made.result.summary["protocol"]["observer"]["folder"] == str(taught.folder.child("observer"))
    found = evaluate.evaluate_set(folder)
    assert found.summary["rows"][0] == made.result.summary["rows"][0]

    read = DistilledSet.load(folder)
    gone = {**read.info["protocol"], "observer": {**read.info["protocol"]["observer"], "folder": "nowhere"}}
    replace(read, info={**read.info, "protocol": gone}).save(folder)
    with pytest.raises(ArtifactError) as caught:
        evaluate.evaluate_set(folder)
    assert str(caught.value) == (
        f"{folder} was made for soft labels, and the observer that gives them is not there (looked for nowhere). "
        "Name it with --observer PATH: the folder of the teacher stage."
    )
    named = evaluate.evaluate_set(folder, observer=str(taught.folder))
    assert named.summary["rows"][0]["accuracies"] == made.result.summary["rows"][0]["accuracies"]
    with raises("no-observer-here"):
        evaluate.evaluate_set(folder, observer=str(tmp_path))


def test_stored_labels_make_the_observer_superfluous(stored: Made) -> None:
    """With the observer taken away, the set's students reach the same figures; random ones are left out."""
    folder = stored.out.child("set")
    assert stored.rows["distilled"]["mean"] > 0.4
    assert folder.child("labels").has("labels.json")
    sizes = [folder.child("labels").size(name) for name in folder.child("labels").names()]
    assert stored.result.summary["label_bytes"] == sum(sizes) > stored.result.summary["bytes"]
    for name in folder.child("observer").names():
        folder.child("observer").delete(name)
    again = evaluate.evaluate_set(folder)
    assert [dict(row) for row in again.summary["rows"]] == stored.result.summary["rows"]
    with raises("soft-labels-too-short"):
        evaluate.evaluate_set(folder, epochs=50)


def test_a_killed_student_goes_on_bit_for_bit(
    live: Made,
    taught: Input,
    chosen: Input,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cut: type[Exception],
) -> None:
    """Cut after some epochs, the student's task goes on from its partial file to the same accuracy."""
    import ray

    made, observer = (
        DistilledSet.load(chosen.folder.child("set")),
        Observer.load(taught.folder.child("observer")),
    )
    net, seed = NetConfig.model_validate(NET), derive(5, "evaluate")
    out = Folder(str(tmp_path))
    shared = Shared(
        publish(SOURCE), None, out, seed, "fp32", False, 1, observer.input_spec, ray.put(observer)
    )
    protocol = SoftProtocol(batch=10, factor=2, epochs=EPOCHS, lr=LR)
    data = TrainingData("distilled", made.pixels(), None, None, protocol)
    student = Student("distilled", net, 0, "student-distilled-0-0.json", LR)
    own = derive(seed, "student", "distilled", net.model_dump_json(), 0)
    write, kept = Folder.write, []

    def cutting(folder: Folder, name: str, data: bytes) -> None:
        write(folder, name, data)
        kept.append(name)
        if len(kept) == 7:
            raise cut

    monkeypatch.setattr(students, "PARTIAL_SECONDS", 0.0)
    monkeypatch.setattr(Folder, "write", cutting)
    with pytest.raises(cut):
        students.train_soft(shared, data, student, own, CPU)
    partial = "student-distilled-0-0.partial.safetensors"
    assert out.names() == [partial]
    images, score = students.train_soft(shared, data, student, own, CPU)

    assert (images, score.accuracy) == (10 * IPC, live.rows["distilled"]["accuracies"][0])
    assert len(kept) == EPOCHS - 1
    # Until the result is written, it is where the training would go on.
    assert out.names() == [partial]
    students.train_one(shared, data, student)
    assert out.names() == [student.file]


def test_sets_for_soft_labels_ask_for_an_observer(chosen: Input, local_ray: None, tmp_path: Path) -> None:
    """Without one, the stage says so; a set that was never judged says how to name it."""
    with raises("observer-not-named"):
        run(settings(observer=None), tmp_path, chosen)
    with raises("observer-gone"):
        evaluate.evaluate_set(chosen.folder.child("set"))


def test_hard_labels_of_the_same_set(chosen: Input, local_ray: None, tmp_path: Path) -> None:
    """``protocol: hard`` judges a set of pixels as it judges any other."""
    config = settings(observer=None, protocol="hard", augment="none", epochs=5, seeds=1, random=False)
    made = run(config, tmp_path, chosen)
    assert made.result.summary["protocol"]["name"] == "hard"
    assert made.rows["distilled"]["images"] == 10 * IPC


def test_ranking_adds_hard_labels_and_plain_views(taught: Input, chosen: Input, tmp_path: Path) -> None:
    """All that DD-Ranking's scores need of a set of soft labels, and the recovery by soft ones beside it."""
    config = settings(ranking=True, epochs=2, whole_epochs=1, seeds=1, augment="none")
    made = run(config, tmp_path, taught, chosen)

    assert {name: row["images"] for name, row in made.rows.items()} == {
        "distilled": 10 * IPC, "random": 10 * IPC, "whole": 1438, "distilled-bare": 10 * IPC,
        "random-bare": 10 * IPC, "distilled-hard": 10 * IPC, "whole-hard": 1438, "distilled-own": 10 * IPC,
        "random-own": 10 * IPC,
    }  # fmt: skip
    (scores,) = made.result.summary["scores"].values()
    assert set(scores) == {"over_random", "of_whole", "hlr", "slr", "over_random_bare", "lrs", "ars"}
    recovery = made.rows["whole-hard"]["mean"] - made.rows["distilled-hard"]["mean"]
    assert scores["hlr"]["mean"] == pytest.approx(recovery)


def test_hard_labels_need_images_of_the_sources_size(chosen: Input, local_ray: None, tmp_path: Path) -> None:
    """A set of other pixels than the source's can only be judged by soft labels."""
    made = DistilledSet.load(chosen.folder.child("set"))
    large = made.pixels().repeat_interleave(2, 2).repeat_interleave(2, 3)
    out = Folder(str(tmp_path / "set"))
    replace(made, stored=large, space=replace(made.space, shape=(1, 16, 16))).save(out.child("set"))
    given = Input("rded", "rded", out, {}, {})
    config = settings(observer=None, protocol="hard", epochs=1, seeds=1)
    with raises("set-of-another-size"):
        run(config, tmp_path / "out", given)


def test_soft_labels_need_no_more_of_a_source_than_is_held_out(
    taught: Input, chosen: Input, live: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The train split stays where it lies; the figures are those of the source in memory, bit for bit."""
    config = as_parquet(tmp_path)

    def refused(_: SourceConfig) -> None:
        raise AssertionError("the whole source was loaded")

    monkeypatch.setattr(sources, "load", refused)
    context = Context("evaluate", config, 5, Folder(str(tmp_path / "out")), {
        "teacher": taught, "rded": chosen,
    }, {}, Silent())  # fmt: skip
    found = evaluate.run(settings(), context)
    assert {row["data"]: row for row in found.summary["rows"]} == live.rows


def test_a_ready_teacher_needs_no_more_of_a_source_than_is_held_out(
    taught: Input, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that say how pixels are scaled are checked without the train split."""
    config, known = as_parquet(tmp_path), Observer.load(taught.folder.child("observer"))
    save_file(known.module.state_dict(), tmp_path / "w.safetensors")

    def refused(_: SourceConfig) -> None:
        raise AssertionError("the whole source was loaded")

    monkeypatch.setattr(sources, "load", refused)
    asked = TeacherConfig.model_validate({
        "kind": "teacher", "net": NET, "weights": str(tmp_path / "w.safetensors"), "classes": "source",
        "mean": known.mean, "std": known.std,
    })  # fmt: skip
    context = Context("teacher", config, 5, Folder(str(tmp_path / "out")), {}, {}, Silent())
    assert teacher.run(asked, context).summary["accuracy"] == known.accuracy


def test_random_images_that_cannot_be_read_are_drawn_anew(tmp_path: Path) -> None:
    """Each class has as many as asked for, none of them the broken one, as long as there are others."""
    as_parquet(tmp_path)
    table = pq.read_table(tmp_path / "train.parquet")
    rows = table.to_pylist()
    sound = [k for k, row in enumerate(rows) if row["label"] == 3][:2]
    for k, row in enumerate(rows):
        if row["label"] == 3 and k not in sound:
            row["image"] = {"bytes": b"broken"}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    config = SourceConfig(name="parquet", root=str(tmp_path))
    draws = torch.Generator().manual_seed(1)
    images, labels = listings.drawn(config, listings.listing_of(config), 2, draws)
    assert labels.tolist() == [label for label in range(10) for _ in range(2)]
    expected = sources.load(SOURCE).train.images[sound]
    assert sorted(map(bytes, images[6:8].numpy())) == sorted(map(bytes, expected.numpy()))


def test_an_observer_of_another_size_sees_images_as_published(
    taught: Input, chosen: Input, tmp_path: Path
) -> None:
    """Set, random images and test images are brought to the observer's side before anything else."""
    small = Observer.load(taught.folder.child("observer"))
    shape = (1, 16, 16)
    net = NetConfig.model_validate(NET)
    input_spec = InputSpec(shape, small.mean, small.std)
    observer = Observer(
        build(net, shape, 10, seed=0).eval(),
        net,
        small.classes,
        input_spec.shape,
        input_spec.mean,
        input_spec.std,
        0.1,
    )
    observer.save(Folder(str(tmp_path)).child("observer"))
    given = Input("teacher", "teacher", Folder(str(tmp_path)), {}, {})
    made = run(settings(epochs=1, seeds=1), tmp_path / "out", given, chosen)
    assert set(made.rows) == {"distilled", "random", "distilled-own", "random-own"}


def test_large_sets_are_shared_in_parts(
    taught: Input, chosen: Input, live: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Students of the set, by soft and by own labels, read one file of a node; they are those of small sets."""
    puts: list[int] = []
    parted = shards.parted

    def counted(images: torch.Tensor) -> torch.Tensor | shards.Shards:
        found = parted(images)
        puts.append(len(found.counts) if isinstance(found, shards.Shards) else 0)
        return found

    monkeypatch.setattr("rayddl.stages.runtime.sizes.WHOLE_BYTES", 0)
    monkeypatch.setattr(shards, "SHARD_BYTES", 8 * 8 * 7)
    monkeypatch.setattr(shards, "parted", counted)
    monkeypatch.setattr(evaluate, "is_large", lambda *_: False)
    made = run(settings(), tmp_path, taught, chosen)

    assert puts == [-(-10 * IPC // 7)]
    for name in ("distilled", "distilled-own"):
        assert made.rows[name]["accuracies"] == live.rows[name]["accuracies"]


def test_random_images_in_files_are_read_by_the_students_worker(
    taught: Input, chosen: Input, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver decodes none of them; of a class with fewer than asked for there are all, with their own labels."""
    as_parquet(tmp_path)
    table = pq.read_table(tmp_path / "train.parquet")
    few = np.flatnonzero(np.array(table.column("label")) == 3)[:2]
    kept = [k for k, label in enumerate(table.column("label").to_pylist()) if label != 3 or k in few]
    pq.write_table(table.take(kept), tmp_path / "train.parquet")
    config = SourceConfig(name="parquet", root=str(tmp_path))
    out, read = Folder(str(tmp_path / "out")), {i.stage: i for i in (taught, chosen)}

    def refused(*_: object) -> NoReturn:
        raise AssertionError("the driver decodes random images")

    monkeypatch.setattr(listings, "drawn", refused)
    where = Context("evaluate", config, 5, out, read, {}, Silent())
    random = settings(recipe="edc", epochs=2, own_labels=False, batch=10)
    rows = {row["data"]: row for row in evaluate.run(random, where).summary["rows"]}
    monkeypatch.undo()

    assert rows["random"]["images"] == 10 * IPC - (IPC - 2)
    images, labels = listings.drawn(config, listings.listing_of(config), IPC, generator(5, "random", 0))
    assert labels.bincount().tolist() == [IPC] * 3 + [2] + [IPC] * 6
    train = sources.load(config).train
    for label in labels.unique():
        known = {bytes(image) for image in train.images[train.labels == label].numpy()}
        assert {bytes(image) for image in images[labels == label].numpy()} <= known
