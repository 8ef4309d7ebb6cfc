"""Mutations of a Python module: one small change each, as a programmer's slip would make it.

Operators, comparisons, numbers, conditions, arguments, slices and ends, statements and guards that are left out,
values returned. Text is left alone: of a wrong message no result depends. So are annotations, decorators,
docstrings, what is raised, and keywords that decide no result (:data:`SAME`).
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator
from dataclasses import dataclass

SAME = {"strict", "non_blocking"}
"""Keyword arguments that are left alone: of equal lengths asserted, and of how a copy is made."""
SYMMETRIC = {"min", "max", "minimum", "maximum", "promote_types"}
"""Functions whose arguments are not exchanged: it changes nothing."""
BINARY = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"), ast.Pow: ("**", "*"), ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&"),
    ast.LShift: ("<<", ">>"), ast.RShift: (">>", "<<"),
}  # fmt: skip
COMPARED = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"), ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is"), ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}  # fmt: skip
OPPOSED = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
"""Comparisons whose mutation in :data:`COMPARED` is their negation."""
JOINED = {ast.And: ("and", "or"), ast.Or: ("or", "and")}
LEAVES = (ast.Raise, ast.Return, ast.Continue, ast.Break)


@dataclass(frozen=True)
class Mutant:
    """A module with one change."""

    line: int
    """Of the change, counted from 1."""
    text: str
    """The whole module."""
    before: str
    """The changed lines as they were, without indentation, joined by spaces."""
    after: str


def mutants(source: str) -> list[Mutant]:
    """Every mutation of a module's ``source`` that is still Python, from its top down."""
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    raw, found = source.encode(), {}
    for first, last, text in _changes(ast.parse(source), _Text(raw, starts)):
        changed = (raw[:first] + text.encode() + raw[last:]).decode()
        try:
            compile(changed, "mutant", "exec")
        except SyntaxError:
            continue
        if changed != source:
            found.setdefault(changed, first)
    return [_described(source, changed, first, starts) for changed, first in found.items()]


def _described(source: str, changed: str, first: int, starts: list[int]) -> Mutant:
    difference = list(difflib.unified_diff(source.splitlines(), changed.splitlines(), n=0, lineterm=""))[2:]
    before, after = (
        " ".join(line[1:].strip() for line in difference if line.startswith(sign)) for sign in "-+"
    )
    line = next(n for n, start in enumerate(starts) if start > first)
    return Mutant(line, changed, before, after)


@dataclass(frozen=True)
class _Text:
    raw: bytes
    starts: list[int]

    def span(self, node: ast.AST) -> tuple[int, int]:
        start = self.starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]  # has a place
        return start, self.starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def of(self, node: ast.AST) -> str:
        first, last = self.span(node)
        return self.raw[first:last].decode()

    def between(self, left: ast.AST, right: ast.AST, old: str, new: str) -> Iterator[tuple[int, int, str]]:
        """``old`` replaced where it stands between two nodes."""
        start, end = self.span(left)[1], self.span(right)[0]
        place = self.raw.find(old.encode(), start, end)
        if place >= 0:
            yield place, place + len(old), new


Changes = Iterator[tuple[int, int, str]]


def _changes(tree: ast.AST, text: _Text) -> Changes:
    """Places in the source, first and one past the last byte, with what takes their place."""
    for child in _children(tree):
        yield from _of_node(child, text)
        yield from _changes(child, text)


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of a node that decide results."""
    if isinstance(node, (ast.Raise, ast.JoinedStr)):
        return
    skipped = {"annotation", "returns", "decorator_list", "type_comment", "msg"}
    for name, value in ast.iter_fields(node):
        if name in skipped:
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or (isinstance(child, ast.keyword) and child.arg in SAME):
                continue
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            if _is_alias(child):
                continue
            yield child


def _is_alias(node: ast.AST) -> bool:
    """A type's other name, such as ``Lectures = Callable[[int], Lecture]``."""
    if not isinstance(node, (ast.Assign, ast.AnnAssign)) or node.value is None:
        return False
    value = ast.unparse(node.value)
    return value.startswith(("Callable[", "Mapping[", "Literal[")) or (
        isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias"
    )


def _of_node(node: ast.AST, text: _Text) -> Changes:
    if isinstance(node, ast.BinOp) and type(node.op) in BINARY and not isinstance(node.left, ast.JoinedStr):
        yield from text.between(node.left, node.right, *BINARY[type(node.op)])
    elif isinstance(node, ast.AugAssign) and type(node.op) in BINARY:
        old, new = BINARY[type(node.op)]
        yield from text.between(node.target, node.value, old + "=", new + "=")
    elif isinstance(node, ast.Compare):
        for left, operator, right in zip(
            [node.left, *node.comparators], node.ops, node.comparators, strict=False
        ):
            yield from text.between(left, right, *COMPARED[type(operator)])
    elif isinstance(node, ast.BoolOp):
        for left, right in zip(node.values, node.values[1:], strict=False):
            yield from text.between(left, right, *JOINED[type(node.op)])
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield *text.span(node), f"({text.of(node.operand)})"
    elif isinstance(node, ast.Constant):
        yield from _constant(node, text)
    elif isinstance(node, ast.Call):
        yield from _call(node, text)
    elif isinstance(node, ast.Slice):
        yield from _slice(node, text)
    yield from _condition(node, text)
    if isinstance(node, ast.stmt):
        yield from _statement(node, text)


def _constant(node: ast.Constant, text: _Text) -> Changes:
    value = node.value
    if isinstance(value, bool):
        yield *text.span(node), str(not value)
    elif isinstance(value, int):
        yield *text.span(node), str(value + 1)
    elif isinstance(value, float):
        yield *text.span(node), f"{2 * value!r}" if value else "1.0"


def _call(node: ast.Call, text: _Text) -> Changes:
    plain = (ast.Name, ast.Attribute, ast.Subscript)
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if len(node.args) >= 2 and name not in SYMMETRIC and all(isinstance(a, plain) for a in node.args[:2]):
        one, other = node.args[:2]
        first, last = text.span(one)[0], text.span(other)[1]
        between = text.raw[text.span(one)[1] : text.span(other)[0]].decode()
        yield first, last, text.of(other) + between + text.of(one)
    if name == "len":
        yield *text.span(node), f"({text.of(node)} - 1)"
    if name == "range":
        end = node.args[0] if len(node.args) == 1 else node.args[1]
        yield *text.span(end), f"({text.of(end)}) - 1"


def _slice(node: ast.Slice, text: _Text) -> Changes:
    for end in (node.lower, node.upper):
        if end is not None:
            yield *text.span(end), ""
            if not isinstance(end, ast.Constant):
                yield *text.span(end), f"({text.of(end)}) + 1"


def _condition(node: ast.AST, text: _Text) -> Changes:
    tests = [node.test] if isinstance(node, (ast.If, ast.While, ast.IfExp)) else []
    for test in node.ifs if isinstance(node, ast.comprehension) else tests:
        opposed = isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], OPPOSED)
        if not opposed and not (isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)):
            yield *text.span(test), f"not ({text.of(test)})"


def _statement(node: ast.stmt, text: _Text) -> Changes:
    guard = isinstance(node, ast.If) and not node.orelse and isinstance(node.body[-1], LEAVES)
    said = isinstance(node, ast.Expr) and isinstance(node.value, (ast.Call, ast.YieldFrom))
    if guard or said or isinstance(node, (ast.AugAssign, ast.Continue, ast.Break)):
        yield *text.span(node), "pass"
    if isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant):
        yield *text.span(node.value), "None"
