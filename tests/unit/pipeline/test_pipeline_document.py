"""YAML with line numbers and variables, and without code or YAML 1.1 types."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayddl.pipeline.definition.document import Document, parse
from rayddl.pipeline.definition.problems import Problems


def read(text: str) -> tuple[Document, list[str]]:
    """The document, and its problems as text."""
    problems = Problems()
    document = parse(text, "d.yaml", problems)
    return document, [str(problem) for problem in problems.found]


class TestTypes:
    @pytest.mark.parametrize(
        ("written", "expected"),
        [
            ("1e-5", 1e-5),
            ("1_000", "1_000"),
            ("0x10", 16),
            ("0o17", 15),
            ("010", 10),
            (".5", 0.5),
            ("-.inf", float("-inf")),
            ("yes", "yes"),
            ("no", "no"),
            ("True", True),
            ("~", None),
            ("", None),
            ("12:30", "12:30"),
            ("2024-01-01", "2024-01-01"),
            ("'12'", "12"),
            ("[1, a, {b: c}]", [1, "a", {"b": "c"}]),
            ('!!int "12"', 12),
        ],
    )
    def test_scalars(self, written: str, expected: Any) -> None:
        """Types are YAML 1.2's: 1e-5 is a number, while no, 12:30 and dates are text."""
        document, problems = read(f"a: {written}\n")

        assert document.value == {"a": expected}
        assert problems == []

    def test_merge_keys(self) -> None:
        """A merge key takes over an anchored mapping, and own keys win."""
        document, problems = read("a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}\n")

        assert document.value["b"] == {"p": 1, "q": 3}
        assert problems == []

    def test_places(self) -> None:
        """Every key knows the line it was written on, and a missing one the nearest around it."""
        document, _ = read("a:\n  b: 1\n  c:\n    - x\n    - y\n")

        assert str(document.place(("a", "c", 1))) == "d.yaml:5"
        assert str(document.place(("a", "zzz"))) == "d.yaml:1"


COLON = (
    "a ':' where no key can stand; give the keys of one level the same indentation, and quote text with ': '"
)


class TestProblems:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("a: 1\nb: 2\na: 3\n", "d.yaml:3: a: duplicate key; first written on line 1"),
            ("a: {x: 1, x: 2}\n", "d.yaml:1: a.x: duplicate key; first written on line 1"),
            ("1: x\n", "d.yaml:1: the key '1' is not text; put it in quotes"),
            ("a: [1\n", "d.yaml:2: not valid YAML: a ',' or a closing bracket is missing"),
            (
                "a: 1\n---\nb: 2\n",
                "d.yaml:2: not valid YAML: '---' begins a second definition, and a file holds one",
            ),
            ("a:\n\tb: 1", "d.yaml:2: not valid YAML: this line is indented with a tab; indent with spaces"),
            ("a:\n  b: 1\n   c: 2\n", f"d.yaml:3: not valid YAML: {COLON}"),
            ("a: x: y\n", f"d.yaml:1: not valid YAML: {COLON}"),
            (
                "a:\n  b: 1\n c: 2\n",
                "d.yaml:3: not valid YAML: this line is indented otherwise than the others of its level; give them "
                "all the same number of spaces",
            ),
            ("a: 'x\nb: 1\n", "d.yaml:3: not valid YAML: a quote is not closed"),
            ("a: @x", "d.yaml:1: not valid YAML: found character '@' that cannot start any token"),
            (
                "a: !!python/object:os.system x\n",
                "d.yaml:1: a: the tag '!!python/object:os.system' is not allowed",
            ),
            ("a: !!timestamp 2020-01-01\n", "d.yaml:1: a: the tag '!!timestamp' is not allowed"),
            ("a: !!int many\n", "d.yaml:1: a: 'many' does not fit '!!int'"),
            (
                "a: {b: ${C}}\n",
                "d.yaml:1: not valid YAML: expected ',' or '}', but got '{'; "
                "inside { } and [ ] a ${NAME} needs quotes",
            ),
            ("b: {<<: 3}\n", "d.yaml:1: b: '<<' takes one mapping"),
            ("a: &x [*x]\n", "d.yaml:1: more than 100000 values, or an alias that holds itself"),
        ],
    )
    def test_message(self, text: str, expected: str) -> None:
        """Each problem has its line and key."""
        _, problems = read(text)

        assert problems == [expected]

    def test_control_characters(self) -> None:
        """A character that YAML does not allow is a problem, not a crash."""
        _, problems = read("a: \x00")

        assert len(problems) == 1
        assert problems[0].startswith("d.yaml: not valid YAML: unacceptable character #x0000")

    def test_deep_nesting(self) -> None:
        """Nesting beyond all measure is a problem, not a crash."""
        _, problems = read("[" * 20000)

        assert problems == ["d.yaml: values are nested too deeply"]

    def test_alias_bomb(self) -> None:
        """Aliases of aliases are refused before they fill the memory."""
        bomb = "x0: &x0 [1]\n" + "".join(
            f"x{level}: &x{level} [{', '.join([f'*x{level - 1}'] * 12)}]\n" for level in range(1, 10)
        )

        _, problems = read(bomb)

        assert "more than 100000 values" in problems[0]


class TestSubstitution:
    def test_types_after_substitution(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A substituted value is typed as if it had been written; in quotes it stays text."""
        monkeypatch.setenv("N", "20")
        document, problems = read("""a: ${N}\nb: "${N}"\nc: x-${N}-${N}\nd: ${NOT_SET_HERE:-1e3}\n""")

        assert document.value == {"a": 20, "b": "20", "c": "x-20-20", "d": 1000.0}
        assert problems == []

    def test_empty_variables(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An empty variable takes its default, and without one is empty text."""
        monkeypatch.setenv("EMPTY", "")
        document, problems = read("a: ${EMPTY:-3}\nb: ${EMPTY}\nc: ${EMPTY:-}\n")

        assert document.value == {"a": 3, "b": None, "c": None}
        assert problems == []

    def test_unset(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An unset variable without a default is a problem, named by place."""
        monkeypatch.delenv("M", raising=False)
        _, problems = read("x: 1\nsource: {root: '${M}/data'}\n")

        assert problems == [
            "d.yaml:2: source.root: the environment variable M is not set; set it, or give a default: ${M:-value}"
        ]

    @pytest.mark.parametrize("text", ["${}", "${1x}", "${A:-${B}}", "${A", "${A-b}"])
    def test_malformed(self, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Anything else that looks like a substitution is refused, not left standing."""
        monkeypatch.setenv("B", "b")
        _, problems = read(f"a: '{text}'\n")

        assert problems == [
            f"d.yaml:1: a: '{text}' is not a substitution; write ${{NAME}} or ${{NAME:-default}}"
        ]

    def test_keys_are_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Only values are substituted, never keys."""
        monkeypatch.setenv("N", "20")
        document, _ = read("${N}: ${N}\n")

        assert document.value == {"${N}": 20}

    def test_values_are_never_structure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A variable cannot add keys or lists."""
        monkeypatch.setenv("EVIL", "{a: 1}\nb: [2]")
        document, problems = read("x: ${EVIL}\n")

        assert document.value == {"x": "{a: 1}\nb: [2]"}
        assert problems == []


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Whatever the text: a value comes back, or a problem, and nothing is raised."""
    document, problems = read(text)

    assert problems or document.value is None or isinstance(document.value, str | int | float | list | dict)
