"""What our part of the page can say: every English sentence that is a key of a table of translations."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

# A string of one line: plain, or a template without anything put into it.
STRING = r'"((?:[^"\\\n]|\\.)*)"'
# Calls that take a sentence, and which of their arguments it is, or they are.
PYTHON_CALLS = {"Sentence": [0], "amount": [1, 2], "sentence": [0], "doing": [0], "is_doing": [1]}
# What hands on the key that it was given.
PASSED_ON = {"plain", "sentence", "amount"}


def sentences_of_scripts(folder: Path) -> set[str]:
    """Of all calls of say( in JavaScript: literals, and what the constants hold that are named there in capitals."""
    return {found for file in sorted(folder.rglob("*.js")) for found in sentences_of_script(file.read_text("utf-8"))}


def sentences_of_script(text: str) -> Iterator[str]:
    for call in re.finditer(r"\bsay\(", text):
        argument = _first_argument(text[call.end() :])
        if literal := re.fullmatch(STRING, argument.strip()):
            yield _unescaped(literal[1])
        for constant in re.findall(r"\b[A-Z][A-Z_]+\b(?!\.includes)", re.sub(STRING, "", argument)):
            definition = re.search(rf"^const (?:.*, )?{constant} = (.*?);\n", text, re.MULTILINE | re.DOTALL)
            assert definition, f"{constant}, which is said, is defined nowhere in its file"
            yield from map(_unescaped, re.findall(STRING, definition[1]))
        if "??" in argument:
            yield from map(_unescaped, re.findall(STRING, argument.split("??", 1)[1]))


def _first_argument(text: str) -> str:
    depth, is_quoted = 0, False
    for position, character in enumerate(text):
        if character == '"' and text[position - 1] != "\\":
            is_quoted = not is_quoted
        elif is_quoted:
            continue
        elif character in "([{":
            depth += 1
        elif character in ")]}" or (character == "," and depth == 0):
            if depth == 0:
                return text[:position]
            depth -= 1
    raise ValueError("a call that does not end")


def _unescaped(literal: str) -> str:
    return literal.replace('\\"', '"').replace("\\\\", "\\")


def sentences_of_server(folder: Path) -> set[str]:
    """Of all that Python tells the page with the functions that are for it."""
    return {found for file in sorted(folder.rglob("*.py")) for found in sentences_of_module(file.read_text("utf-8"))}


def sentences_of_module(text: str) -> Iterator[str]:
    module = ast.parse(text)
    functions = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)]
    for part in [module, *functions]:
        for call in ast.walk(part):
            if isinstance(call, ast.Call):
                for place in PYTHON_CALLS.get(_name(call.func), []):
                    yield from _keys(call.args[place], part) if place < len(call.args) else ()


def _keys(argument: ast.AST, part: ast.AST) -> Iterator[str]:
    """What a call can be given: strings, or what a name stands for in its function."""
    yield from _strings(argument)
    if isinstance(argument, ast.Name) and isinstance(part, ast.FunctionDef):
        for node in ast.walk(part):
            if isinstance(node, ast.Assign) and _name(node.targets[0]) == argument.id:
                yield from _strings(node.value)


def sentences_without_key(text: str) -> list[str]:
    """Lines of a module in which a Sentence is made of what no translator can be given: a text put together."""
    found = []
    for part in ast.walk(ast.parse(text)):
        if isinstance(part, ast.FunctionDef) and part.name not in PASSED_ON:
            for call in ast.walk(part):
                if isinstance(call, ast.Call) and _name(call.func) in ("Sentence", "amount"):
                    keys = [call.args[place] for place in PYTHON_CALLS[_name(call.func)]]
                    found += [ast.unparse(key) for key in keys if not list(_keys(key, part))]
    return found


def _name(node: ast.AST) -> str:
    return getattr(node, "attr", getattr(node, "id", ""))


def _strings(node: ast.AST) -> Iterator[str]:
    """Those that an expression can be: not the keys by which a table is asked."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value:
        yield node.value
    elif isinstance(node, ast.BoolOp):
        for value in node.values:
            yield from _strings(value)
    elif isinstance(node, ast.IfExp):
        yield from _strings(node.body)
        yield from _strings(node.orelse)
    elif isinstance(node, ast.Subscript):
        yield from _strings(node.value)
    elif isinstance(node, ast.Dict):
        for value in node.values:
            yield from _strings(value)
