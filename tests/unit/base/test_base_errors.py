"""Errors have codes: stable, well formed, carried through pickles and shown to machines."""

from __future__ import annotations

import ast
import json
import pickle
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayddl import errors
from rayddl.errors import DefinitionError, NetError, RayddlError, StageError
from tests.raising import OWN, SENTENCES, steady

ROOT = Path(__file__).resolve().parents[3]
CLASSES = {name for name, value in vars(errors).items() if isinstance(value, type)}
PROBLEM = "a problem of a definition"


def raised() -> Iterator[tuple[str, str]]:
    """Every code that is written in the sources, with the class of error that carries it."""
    for path in (ROOT / "rayddl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
                given = [word.value for word in node.keywords if word.arg == "code"]
                given += node.args[2:3] if called == "Fault" else []
                given += node.args[1:2] if called == "refuse" else []
                for code in given:
                    if isinstance(code, ast.Constant):
                        yield str(code.value), called if called in CLASSES else PROBLEM
            if (
                isinstance(node, ast.Return)
                and path.name in ("schema.py", "reading.py")
                and isinstance(node.value, ast.Tuple)
            ):
                last = node.value.elts[-1]
                if isinstance(last, ast.Constant) and isinstance(last.value, str):
                    yield last.value, PROBLEM


def test_a_code_is_one_kind_of_fault() -> None:
    """Codes are short, in kebab case, and belong to one class of error."""
    classes = defaultdict(set)
    for code, called in raised():
        classes[code].add(called)

    assert len(classes) > 200
    assert [code for code in classes if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+){0,5}", code)] == []
    assert {code: found for code, found in classes.items() if len(found) > 1} == {}


def test_recorded_sentences_are_of_known_codes() -> None:
    """A code that is gone leaves no sentence behind."""
    assert set(json.loads(SENTENCES.read_text(encoding="utf-8"))) <= {code for code, _ in raised()} | {
        "variable-not-set"
    }


def test_tests_do_not_pin_sentences_of_errors() -> None:
    """Outside the recorded sentences, rayddl's errors are asserted by their codes."""
    pinned = re.compile(rf"pytest\.raises\(\s*({'|'.join(CLASSES)}), match=")
    found = [path.name for path in (ROOT / "tests").rglob("*.py") if pinned.search(path.read_text("utf-8"))]
    assert found == []


@pytest.mark.parametrize(
    "error",
    [
        StageError("lost", code=OWN),
        NetError("small", code=OWN),
        DefinitionError("1 problem", code=OWN, problems=[{"key": "a", "code": "unknown-key"}]),
    ],
)
def test_errors_come_out_of_pickles_as_they_went_in(error: RayddlError) -> None:
    """What a worker raises reaches the driver with its code and problems."""
    found = pickle.loads(pickle.dumps(error))
    assert (type(found), str(found), found.__dict__) == (type(error), str(error), error.__dict__)


def test_an_error_that_ray_wraps_has_its_code() -> None:
    """A task's error is one of Ray's and the worker's own in one."""
    ray = pytest.importorskip("ray")
    wrapped = ray.exceptions.RayTaskError("f", "the traceback", StageError("lost", code=OWN))
    found = wrapped.as_instanceof_cause()
    assert isinstance(found, StageError)
    assert found.code == OWN


def test_sentences_are_compared_without_what_varies() -> None:
    """Temporary folders, hashes, ports and a library's own words are left out; values that are given stay."""
    text = f"/tmp/pytest-of-me/pytest-7/test_x0/a is {'0a' * 32}, at 127.0.0.1:43210, 8 bytes: disk on fire"
    assert (
        steady(text, OSError("disk on fire")) == "<tmp>/a is <hash>, at 127.0.0.1:<port>, 8 bytes: <reason>"
    )


def test_a_message_has_a_limit() -> None:
    """One that quotes a long name from a file keeps its beginning and its end."""
    error = StageError(f"begin {'x' * 50_000} end", code=OWN)
    again = pickle.loads(pickle.dumps(error))
    assert len(str(error)) == 10_000
    assert str(error).startswith("begin x")
    assert str(error).endswith("x end")
    assert str(again) == str(error)


@pytest.mark.parametrize(
    "error", sorted(name for name in CLASSES if issubclass(getattr(errors, name), RayddlError))
)
def test_no_message_quotes_a_key(error: str) -> None:
    """Whoever raises it, and also where the message is cut."""
    kind = getattr(errors, error)
    place = "s3://AKID:hidden@bucket/photos?token=hidden"
    for message in (f"{place} has no files", "x" * (kind.longest - 20) + f" {place}"):
        found = kind(message, code="source-empty")

        assert "hidden" not in f"{found}{found.args}{pickle.loads(pickle.dumps(found))}"
        assert "s3://" in str(found)
