"""One-line mistakes that a person might make, as changes of a module's text.

Left alone, because no test of behaviour could or should notice: docstrings, annotations, decorators, the text of errors
and of the log, f-strings, and what stands under `if TYPE_CHECKING`.
"""

import ast
from collections.abc import Iterator
from typing import NamedTuple

COMPARISONS = {
    ast.Lt: (b"<", b"<="), ast.LtE: (b"<=", b"<"), ast.Gt: (b">", b">="), ast.GtE: (b">=", b">"),
    ast.Eq: (b"==", b"!="), ast.NotEq: (b"!=", b"=="), ast.Is: (b"is", b"is not"), ast.IsNot: (b"is not", b"is"),
    ast.In: (b"in", b"not in"), ast.NotIn: (b"not in", b"in"),
}  # fmt: skip
SIGNS = {ast.Add: (b"+", b"-"), ast.Sub: (b"-", b"+"), ast.Mult: (b"*", b"/"), ast.Div: (b"/", b"*")}
LOGIC = {ast.And: (b"and", b"or"), ast.Or: (b"or", b"and")}
COPIES = {"clone", "detach", "contiguous", "float"}
# Swapped, these mean the same or fail at once, whatever is tested.
UNORDERED = {"max", "min", "equal", "isinstance", "issubclass", "getattr", "hasattr", "setattr"}
SILENT = {"logging", "warnings"}


class Mutation(NamedTuple):
    """A mistake: the bytes `begin` to `end` of a module become `replacement`.

    operator: the kind of mistake; function: the qualified name of where it is, "" for the module
    line: where it begins, from 1; first, last: the lines of its statement, of a compound one those of its head
    """

    operator: str
    function: str
    line: int
    first: int
    last: int
    begin: int
    end: int
    replacement: bytes

    def applied(self, source: bytes) -> bytes:
        """The module with the mistake."""
        return source[:self.begin] + self.replacement + source[self.end:]


def mutations(source: bytes) -> list[Mutation]:
    """Every mistake that the operators make in a module, in the order of its text."""
    finder = _Finder(source)
    finder.visit(ast.parse(source))
    return sorted(finder.found, key=lambda one: (one.begin, one.end, one.replacement))


class _Finder(ast.NodeVisitor):
    def __init__(self, source: bytes):
        self.source, self.found = source, []
        self._starts = [0]
        for line in source.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._names: list[str] = []
        self._statement = (1, 1)

    def visit(self, node):
        if not isinstance(node, ast.stmt):
            return super().visit(node)
        outer, body = self._statement, getattr(node, "body", None)
        last = max(node.lineno, body[0].lineno - 1) if body else node.end_lineno
        self._statement = (node.lineno, last)
        super().visit(node)
        self._statement = outer

    def visit_FunctionDef(self, node):
        self.visit(node.args)
        self._visit_body(node)

    def visit_ClassDef(self, node):
        self._visit_body(node)

    def _visit_body(self, node):
        self._names.append(node.name)
        for statement in node.body:
            self.visit(statement)
        self._names.pop()

    def visit_arguments(self, node):
        for default in (*node.defaults, *node.kw_defaults):
            if default is not None:
                self.visit(default)

    def visit_AnnAssign(self, node):
        if node.value is not None:
            self.visit(node.value)

    def visit_Raise(self, node):
        pass

    def visit_JoinedStr(self, node):
        pass

    def visit_If(self, node):
        if "TYPE_CHECKING" not in ast.unparse(node.test):
            self.generic_visit(node)

    def visit_Expr(self, node):
        if isinstance(node.value, ast.Call) and not _is_silent(node.value):
            self._add("deleted call", node, *self._span(node), b"pass")
        self.generic_visit(node)

    def visit_Call(self, node):
        if _is_silent(node):
            return
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
        if isinstance(node.func, ast.Attribute) and _copies(name, node):
            dot = self.source.index(b".", self._end(node.func.value))  # after a closing bracket
            self._add("dropped copy", node, dot, self._end(node), b"")
        if name not in UNORDERED:
            for first, second in _neighbours(node.args):
                (a, b), (c, d) = self._span(first), self._span(second)
                between = self.source[b:c]
                self._add("swapped arguments", first, a, d, self.source[c:d] + between + self.source[a:b])
        self.generic_visit(node)

    def visit_Compare(self, node):
        operands = [node.left, *node.comparators]
        for kind, left, right in zip(node.ops, operands, operands[1:]):
            self._replace("comparison", left, right, *COMPARISONS[type(kind)])
        self.generic_visit(node)

    def visit_BoolOp(self, node):
        for left, right in zip(node.values, node.values[1:]):
            self._replace("logic", left, right, *LOGIC[type(node.op)])
        self.generic_visit(node)

    def visit_BinOp(self, node):
        if type(node.op) in SIGNS and not (_is_text(node.left) or _is_text(node.right)):
            self._replace("sign", node.left, node.right, *SIGNS[type(node.op)])
        self.generic_visit(node)

    def visit_AugAssign(self, node):
        if type(node.op) in SIGNS and not _is_text(node.value):
            self._replace("sign", node.target, node.value, *SIGNS[type(node.op)])
        self.generic_visit(node)

    def visit_UnaryOp(self, node):
        begin, _ = self._span(node)
        if isinstance(node.op, ast.USub):
            self._add("sign", node, begin, begin + 1, b"")
        elif isinstance(node.op, ast.Not):
            self._add("logic", node, begin, begin + len("not "), b"")
        self.generic_visit(node)

    def visit_Constant(self, node):
        if isinstance(node.value, (bool, int, float)):
            self._add("constant", node, *self._span(node), repr(_other(node.value)).encode())

    def _replace(self, operator, left, right, token: bytes, other: bytes):
        """Put another token between two expressions, which may be in brackets."""
        begin = self.source.index(token, self._end(left), self._span(right)[0])
        self._add(operator, left, begin, begin + len(token), other)

    def _add(self, operator, node, begin, end, replacement):
        function = ".".join(self._names)
        line = self.source.count(b"\n", 0, begin) + 1
        self.found.append(Mutation(operator, function, line, *self._statement, begin, end, replacement))

    def _span(self, node) -> tuple[int, int]:
        return self._starts[node.lineno - 1] + node.col_offset, self._end(node)

    def _end(self, node) -> int:
        return self._starts[node.end_lineno - 1] + node.end_col_offset


def _is_silent(call: ast.Call) -> bool:
    """Whether it makes an error or writes to the log: its arguments are text for people."""
    name = ast.unparse(call.func)
    return name.endswith("Error") or name.split(".")[0] in SILENT


def _copies(name: str, call: ast.Call) -> bool:
    if name == "to":
        return any(ast.unparse(argument) == "torch.float32" for argument in call.args)
    return name in COPIES and not call.args


def _neighbours(arguments: list[ast.expr]) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Positional arguments side by side that differ, up to the first whose number is unknown."""
    for first, second in zip(arguments, arguments[1:]):
        if isinstance(first, ast.Starred) or isinstance(second, ast.Starred):
            return
        if ast.dump(first) != ast.dump(second):
            yield first, second


def _is_text(node) -> bool:
    return isinstance(node, ast.JoinedStr) or isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes))


def _other(value: bool | int | float) -> bool | int | float:
    if isinstance(value, bool):
        return not value
    if value in (0, 1) and isinstance(value, int):
        return 1 - value
    return value + 1 if isinstance(value, int) else 2 * value or 1.0
