"""Errors in tests: asserted by code and place; their sentences stand in one file, ``tests/golden/sentences.json``.

A sentence that is reworded is one change there: ``uv run pytest -n0 tests/unit --renew-sentences`` writes it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from rayddl.errors import DefinitionError, RayddlError
from rayddl.pipeline.definition.problems import dotted
from rayddl.pipeline.definition.schema import explain

SENTENCES = Path(__file__).parent / "golden" / "sentences.json"
_VARYING = (
    (re.compile(r"[^\s'\"]*/pytest-of-[^/]+/pytest-\d+/(popen-gw\d+/)?[^/\s'\"]+"), "<tmp>"),
    (re.compile(r"\b0x[0-9a-f]+"), "<address>"),
    (re.compile(r"\b(?=[0-9a-f]*\d)[0-9a-f]{12,64}\b"), "<hash>"),
    (re.compile(r":\d{4,5}\b"), ":<port>"),
    (re.compile(r"process \d+"), "process <number>"),
    (re.compile(r"(?<![\d.])\d+(\.\d+){1,2}(e[+-]?\d+)?(?!\.?\d)"), "<number>"),
    (re.compile(r"\bline \d+ of (?=test_)"), "line <number> of "),
    (re.compile(r"\d+ times the start"), "<number> times the start"),
    (re.compile(r"-py3\d+"), "-py<number>"),
)
"""What another machine or another run writes in its own way."""

OWN = "for-a-test"
"""The code of errors that tests raise themselves; their sentences are not rayddl's."""
renewed: dict[str, set[str]] | None = None
"""The sentences seen in this session, while they are renewed."""


@contextmanager
def raises(code: str, key: str | None = None) -> Iterator[pytest.ExceptionInfo[RayddlError]]:
    """An error with ``code`` is raised in the block; for a problem of a definition, at ``key``.

    In unit tests, whose inputs are fixed, its sentence has to be one of those recorded for the code.
    """
    with pytest.raises(RayddlError) as caught:
        yield caught
    error = caught.value
    if isinstance(error, DefinitionError) and error.problems:
        found = {(problem["code"], problem["key"] if key is not None else None) for problem in error.problems}
        assert (code, key) in found, str(error)
        texts = [problem["text"] for problem in error.problems if problem["code"] == code]
    else:
        assert (error.code, key) == (code, None), str(error)
        texts = [str(error)]
    if code != OWN and os.environ.get("PYTEST_CURRENT_TEST", "").startswith("tests/unit/"):
        for text in texts:
            _compare(code, steady(text, error.__cause__))


def refused(model: type[BaseModel], **values: Any) -> set[tuple[str, str]]:
    """The code and key of each fault of ``values`` as settings, as a definition with them reports it."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate(values)
    return {(fault.code, dotted(fault.key)) for fault in explain(caught.value, model)}


def steady(text: str, cause: BaseException | None = None) -> str:
    """``text`` without what varies from run to run, and without the text of a library's error behind it."""
    reason = str(cause) if cause is not None else ""
    # What one of this house's errors says stands in its own place.
    foreign = cause is not None and not isinstance(cause, RayddlError)
    text = text.replace(reason, "<reason>") if foreign and len(reason) > 1 else text
    for pattern, name in _VARYING:
        text = pattern.sub(name, text)
    return text


def _compare(code: str, sentence: str) -> None:
    if renewed is not None:
        renewed.setdefault(code, set()).add(sentence)
        return
    known = json.loads(SENTENCES.read_text(encoding="utf-8")).get(code, [])
    assert sentence in known, f"{code} is worded otherwise; uv run pytest -n0 tests/unit --renew-sentences"


def write_renewed(*, everything: bool) -> None:
    """Record the sentences seen in this session: in place of all others, or, if only some tests ran, beside them."""
    assert renewed is not None
    before = (
        json.loads(SENTENCES.read_text(encoding="utf-8")) if SENTENCES.exists() and not everything else {}
    )
    found = before | {code: sorted({*before.get(code, ()), *seen}) for code, seen in renewed.items()}
    text = json.dumps(dict(sorted(found.items())), indent=1, ensure_ascii=False)
    SENTENCES.write_text(text + "\n", encoding="utf-8")
