"""Stored labels of which the largest logits are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load

from rayddl.data.config import SourceConfig
from rayddl.data.sources.summary import SourceSummary
from rayddl.methods.training import softlabels
from rayddl.methods.training.input_spec import InputSpec
from rayddl.methods.training.soft import EpochData, SoftProtocol
from rayddl.methods.training.soft_settings import epoch_bytes
from rayddl.methods.training.softlabels import Index, StoredLabels
from rayddl.methods.training.top_logits import TopLogits
from rayddl.stages.estimates import Estimate, Machine, Outlook
from rayddl.stages.evaluate.estimate import estimate
from rayddl.stages.evaluate.settings import EvaluateConfig
from rayddl.stages.rded.settings import RdedConfig
from rayddl.stages.teacher.settings import TeacherConfig
from rayddl.storage import Folder


def logits(count: int, classes: int) -> torch.Tensor:
    return 6 * torch.randn(count, classes, generator=torch.Generator().manual_seed(classes))


@pytest.mark.parametrize(("classes", "top"), [(10, 3), (300, 1), (40_000, 5)])
def test_kept_classes_keep_their_probabilities(classes: int, top: int) -> None:
    """At temperature 20, by the definition of softmax in float64; the others share what is left equally."""
    given = logits(4, classes)
    found = TopLogits.of(given, top, 20.0)[0:4]
    expected, mine = (torch.softmax(x.double() / 20, 1) for x in (given, found))

    for row in range(4):
        order = sorted(range(classes), key=lambda k, r=row: -float(given[r, k]))
        kept, others = order[:top], order[top:]
        torch.testing.assert_close(mine[row, kept], expected[row, kept], rtol=2e-3, atol=0)
        left = (1 - expected[row, kept].sum()) / len(others)
        torch.testing.assert_close(mine[row, others], left.expand(len(others)), rtol=2e-3, atol=0)
    assert torch.equal(found[1:3], TopLogits.of(given, top, 20.0)[1:3])


@pytest.mark.parametrize("classes", [10, 300])
def test_files_hold_what_is_kept_and_little_else(classes: int, tmp_path: Path) -> None:
    """Written and read: the logits come back batch by batch; the bytes are those that an estimate counts."""
    input_spec, protocol = InputSpec((1, 8, 8), (0.5,), (0.5,)), SoftProtocol(batch=4, epochs=3)
    images = torch.zeros(20, 1, 8, 8, dtype=torch.uint8)
    index = Index.of(images, tuple(map(str, range(classes))), input_spec, protocol, 2)
    folder, epochs = Folder(str(tmp_path)), [logits(20, classes) + e for e in range(3)]
    ((name, _),) = index.parts()
    draws = [protocol.draw(e, 20, (8, 8), input_spec, 0) for e in range(3)]
    folder.write(
        name, softlabels.pack([EpochData(*pair) for pair in zip(draws, epochs, strict=True)], index.top)
    )
    softlabels.finish(folder, index)

    read = StoredLabels(folder)
    assert (read.index.top, index) == (2, read.index)
    for e in (2, 0):
        lecture = read(e)
        assert lecture.logits is not None
        assert torch.equal(lecture.logits[4:8], TopLogits.of(epochs[e], 2, 20.0)[4:8])
        assert torch.equal(lecture.draws.picked, draws[e].picked)
    bytes_ = sum(t.nbytes for t in load(folder.read(name)).values())
    assert bytes_ == pytest.approx(3 * epoch_bytes(20, classes, 1, 2), rel=0.1)
    assert bytes_ < 3 * epoch_bytes(20, classes, 1)


def test_as_many_as_there_are_classes_are_all() -> None:
    """Then labels are stored as without the setting."""
    input_spec = InputSpec((1, 8, 8), (0.5,), (0.5,))
    whole = Index.of(torch.zeros(2, 1, 8, 8), ("a", "b", "c"), input_spec, SoftProtocol(batch=2), 3)
    assert whole.top is None
    assert "top" not in whole.to_json()
    assert epoch_bytes(7, 3, 2, 3) == epoch_bytes(7, 3, 2)


def test_live_labels_have_no_bytes_to_save() -> None:
    """The setting is refused where it would do nothing."""
    base = {"kind": "evaluate", "set": "s", "observer": "t", "label_top": 3}
    with pytest.raises(ValidationError, match="label_top is of labels: stored"):
        EvaluateConfig.model_validate(base)
    assert EvaluateConfig.model_validate({**base, "labels": "stored"}).label_top == 3


def test_a_plan_shows_the_bytes_of_labels_and_of_images() -> None:
    """Of every image at every epoch; labels on the fly have none."""
    stages: dict[str, Any] = {
        "s": RdedConfig.model_validate({"kind": "rded", "teacher": "t", "ipc": 5, "factor": 2}),
        "t": TeacherConfig.model_validate({"kind": "teacher"}),
    }
    here = Outlook(
        SourceConfig(name="digits"), SourceSummary((1, 8, 8), 10, 1000, 100), Machine(4, 2**33, ())
    )
    base = {"kind": "evaluate", "set": "s", "observer": "t", "epochs": 7}

    def expected(**more: Any) -> Estimate:
        return estimate(EvaluateConfig.model_validate({**base, **more}), stages, here)

    live, stored, top = expected(), expected(labels="stored"), expected(labels="stored", label_top=2)
    assert live.written is not None
    assert stored.written == live.written + 7 * epoch_bytes(50, 10, 2)
    assert top.written == live.written + 7 * epoch_bytes(50, 10, 2, 2)
    assert top.notes == ("stored labels ~9.9 KiB, the images ~3.1 KiB",)
    assert not live.notes
