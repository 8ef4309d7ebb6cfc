"""Networks with batch norm through the stages."""

from __future__ import annotations

import pytest

from rayddl.stages.experts.settings import ExpertsConfig
from rayddl.stages.match.stage import BATCH_NORM

pytestmark = pytest.mark.ray

NET = {"name": "convnet", "depth": 1, "width": 8, "norm": "batch"}


@pytest.fixture(scope="module")
def normed(stages, tmp_path_factory):
    """An expert with batch norm."""
    return stages.experts(tmp_path_factory.mktemp("normed"), net=NET, count=1, epochs=4)


def test_experts_with_batch_norm_learn(normed):
    """Tested by its running statistics, an expert of four epochs knows most digits."""
    table = normed.table("metrics.parquet")

    assert table["test_accuracy"][0] < 0.4
    assert table["test_accuracy"][-1] > 0.7


def test_matching_says_once_that_statistics_are_not_carried(stages, normed, tmp_path, told):
    """One note tells what matching with batch norm means; other networks get none."""
    progress = told()
    made = stages.match(normed, tmp_path / "match", progress, iterations=2, max_start_epoch=2)

    assert progress.notes.count(BATCH_NORM) == 1
    judged = stages.evaluate(made, tmp_path / "judged", seeds=1, nets=[NET], random=False)
    assert judged.summary["rows"][0]["net"] == "convnet-d1-w8-batch"
    assert judged.summary["rows"][0]["mean"] > 0.2


def test_other_networks_are_matched_without_a_word(mct_run):
    """The note is for batch norm alone."""
    assert BATCH_NORM not in mct_run.told.notes


def test_transformers_cannot_be_matched(stages):
    """A definition that matches vision transformers is refused before anything runs."""
    config = stages.match_config()
    experts = ExpertsConfig.model_validate({"kind": "experts", "net": "tv_vit_b_16", "keep": "all"})

    problems = config.check({"experts": experts})
    assert "torch's attention cannot be differentiated twice" in problems[0]
