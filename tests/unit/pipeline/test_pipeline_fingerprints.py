"""The fingerprint in a stage's folder name: it covers all that determines the content, and nothing else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

BASE: dict[str, Any] = {
    "name": "d",
    "seed": 3,
    "source": {"name": "digits", "space": "normalise"},
    "stages": {
        "one": {"kind": "make", "count": 4, "label": "x", "shape": {"side": 2, "colour": "red"}},
        "two": {"kind": "make", "count": 4, "shapes": [{"side": 1}, {"side": 2}]},
        "user": {"kind": "use", "make": "one"},
        "last": {"kind": "use", "make": "two", "other": "user"},
        "page": {"kind": "page"},
    },
}

once = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def shuffled(draw: st.DrawFn, value: Any) -> Any:
    """The same mapping with the keys on every level in another order, stages' order aside."""
    if not isinstance(value, dict):
        return value
    keys = draw(st.permutations(list(value)))
    return {key: draw(shuffled(value[key])) for key in keys}


@once
@given(data=st.data())
def test_key_order_does_not_matter(lab: Any, data: st.DataObject) -> None:
    """Two definitions that differ in the order of their keys find the same folders."""
    other = data.draw(shuffled({k: v for k, v in BASE.items() if k != "stages"}))
    other["stages"] = {name: data.draw(shuffled(stage)) for name, stage in BASE["stages"].items()}

    assert lab.fingerprints(other) == lab.fingerprints(BASE)


@once
@given(
    st.sampled_from(list(BASE["stages"])),
    st.fixed_dictionaries(
        {},
        optional={
            "num_cpus": st.floats(0.1, 64),
            "num_gpus": st.floats(0, 8),
            "memory": st.integers(1, 1 << 40),
            "at_once": st.integers(1, 100),
        },
    ),
)
def test_resources_do_not_matter(lab: Any, stage: str, resources: dict[str, Any]) -> None:
    """The resources of workers change no folder."""
    other = copy.deepcopy(BASE)
    other["stages"][stage]["resources"] = resources

    assert lab.fingerprints(other) == lab.fingerprints(BASE)


@pytest.mark.parametrize(
    "overrides",
    [[], ["one.kind=make"], ["user.needs=0"], ["user.other=null"]],
)
def test_what_decides_nothing(lab: Any, overrides: list[str]) -> None:
    """A default written out changes no folder."""
    assert lab.fingerprints(BASE, overrides) == lab.fingerprints(BASE)


EVERY = set(BASE["stages"])
AFTER_ONE = {"one", "user", "last", "page"}


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("one.count=5", AFTER_ONE),
        ("one.label=y", AFTER_ONE),
        ("one.rate=0.25", AFTER_ONE),
        ("one.shape.side=3", AFTER_ONE),
        ("one.shape.colour=green", AFTER_ONE),
        ("two.shapes.1.side=3", {"two", "last", "page"}),
        ("two.shapes=[{side: 2}, {side: 1}]", {"two", "last", "page"}),
        ("user.needs=1", {"user", "last", "page"}),
        ("user.make=two", {"user", "last", "page"}),
        ("last.other=null", {"last", "page"}),
        ("page.of=[one]", {"page"}),
        ("name=other", {"page"}),
        ("description=words", {"page"}),
        ("page.of=[two, one, user, last]", {"page"}),
        ("seed=4", EVERY),
        ("source.space=zca", EVERY),
    ],
)
def test_what_a_change_reaches(lab: Any, override: str, changed: set[str]) -> None:
    """A changed key gives new folders to its stage and to all that depend on it, and to no others."""
    before, after = lab.fingerprints(BASE), lab.fingerprints(BASE, [override])

    assert {name for name in before if before[name] != after[name]} == changed


@once
@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_different_values_never_share_a_folder(lab: Any, one: int, other: int) -> None:
    """Fingerprints are equal exactly when the settings are."""
    same = lab.fingerprints(BASE, {"one.count": one}) == lab.fingerprints(BASE, {"one.count": other})

    assert same == (one == other)


def test_source(lab: Any) -> None:
    """Other images give every stage another folder, wherever they lie."""
    before = lab.fingerprints(BASE)
    lab.source = "other-images"
    after = lab.fingerprints(BASE)

    assert all(before[name] != after[name] for name in before)


def test_kind_version(lab: Any) -> None:
    """A kind whose output changed gets new folders, and so does what reads it."""
    before, after = lab.fingerprints(BASE), lab.fingerprints(BASE, use=2)

    assert {name for name in before if before[name] != after[name]} == {"user", "last", "page"}


def test_names_of_stages(lab: Any) -> None:
    """A stage's name decides its random numbers, so it is part of the fingerprint."""
    other = copy.deepcopy(BASE)
    other["stages"] = {"uno" if name == "one" else name: stage for name, stage in other["stages"].items()}
    other["stages"]["user"]["make"] = "uno"

    assert lab.fingerprints(other)["uno"] != lab.fingerprints(BASE)["one"]


def test_folder_name(lab: Any) -> None:
    """A folder is the stage's name and the first 12 of 64 digits."""
    planned = lab.plan(BASE).stages[0]

    assert len(planned.fingerprint) == 64
    assert planned.folder_name == f"one-{planned.fingerprint[:12]}"
    assert str(planned.folder).endswith(planned.folder_name)


def test_stable_over_versions(lab: Any) -> None:
    """The fingerprint of a fixed definition is fixed: a change would make all finished runs useless."""
    assert lab.fingerprints(BASE)["one"] == "c96b7881d8522a65745ec24869663946a6302281a88a6eb8aa4f7e82d73f3ec2"


def test_a_plan_as_json(lab: Any, three: dict[str, Any]) -> None:
    """Everything that a person or a program is shown of a plan, stage by stage, and no credentials."""
    lab.run(three, ["page.of=[first]"])
    plan = lab.plan(three, ["seed=0"])
    prints = [stage.fingerprint for stage in plan.stages]
    folders = [
        f"{lab.out}/{name}-{print_[:12]}" for name, print_ in zip(three["stages"], prints, strict=True)
    ]

    assert plan.to_json() == {
        "name": "three", "seed": 0, "out": str(lab.out), "source_fingerprint": "a-source",
        "stages": [
            {"stage": "first", "kind": "make", "reads": [], "state": "done", "fingerprint": prints[0],
             "folder": folders[0]},
            {"stage": "second", "kind": "use", "reads": ["first"], "state": "done", "fingerprint": prints[1],
             "folder": folders[1]},
            {"stage": "page", "kind": "page", "reads": ["first", "second"], "state": "new",
             "fingerprint": prints[2], "folder": folders[2]},
        ],
    }  # fmt: skip
    assert [stage.artifact is not None for stage in plan.stages] == [True, True, False]
