"""As much of gradio as the tab uses of it: parts that are made, and the handlers that their events are given."""

import sys
from types import ModuleType


class Part:
    """Any component or layout; as a layout it is a context."""

    made: list["Part"] = []

    def __init__(self, *values, **options):
        self.values, self.options = values, options
        self.handlers = {}
        Part.made.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False

    def click(self, work, inputs, outputs):
        self.handlers["click"] = work, inputs, outputs
        return Clicked(self)

    def change(self, work, inputs, outputs):
        self.handlers["change"] = work, inputs, outputs

    def load(self, work, inputs, outputs):
        self.handlers.setdefault("load", []).append((work, inputs, outputs))


class Clicked:
    """What the event of a button gives: something to follow when its handler has ended."""

    def __init__(self, button: Part):
        self.button = button

    def then(self, work, inputs, outputs):
        self.button.handlers.setdefault("then", []).append((work, inputs, outputs))


KINDS = (
    "Blocks", "Tab", "Row", "Column", "Accordion", "Dropdown", "Textbox", "Number", "Slider", "Checkbox", "Button",
    "HTML", "Gallery",
)  # fmt: skip


def install(monkeypatch) -> None:
    """Put it where `import gradio` finds it."""
    module = ModuleType("gradio")
    for kind in KINDS:
        setattr(module, kind, type(kind, (Part,), {}))
    module.update = lambda **changes: changes
    Part.made = []
    monkeypatch.setitem(sys.modules, "gradio", module)
    for name in [name for name in sys.modules if name.startswith("sara_webui.tab.")]:
        monkeypatch.delitem(sys.modules, name)


def button(label: str) -> Part:
    """The only button of this label."""
    found, = [part for part in Part.made if type(part).__name__ == "Button" and part.values == (label,)]
    return found


def loaded(page: Part) -> list[tuple]:
    """Each part that loading a page changes, with what it is given."""
    found = []
    for work, inputs, outputs in page.handlers["load"]:
        answer = work(*(part.options["value"] for part in inputs))
        found += zip(outputs, answer if len(outputs) > 1 else [answer], strict=True)
    return found


def press(label: str, *values):
    """What the handler of a button answers: a list of what it says one after the other, if it does."""
    work, inputs, outputs = button(label).handlers["click"]
    assert len(inputs) == len(values) and outputs
    answer = work(*values)
    return list(answer) if hasattr(answer, "__next__") else answer
