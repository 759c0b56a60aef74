"""The tabs Merge, Bake, Extract, Inspect and Convert."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gradio

from sara_core.conversion.dense.programs import COMFYUI, PROGRAMS
from sara_core.conversion.registry import OWN
from sara_core.conversion.request import DEFAULT_RANK
from sara_core.merging.block_factors import ALL_BLOCKS, block_presets
from sara_core.merging.merge import METHODS, SIGNS, MergeSettings
from sara_core.models.bake import AS_THE_FILE, PRECISIONS

from .answers import reported
from .tools import EXTRACTED_BY, Report, Tools, formats


class ToolTabs:
    """Puts the tabs where the page is being built. tools: what they do"""

    def __init__(self, tools: Tools):
        self.tools = tools
        self._lists: list[tuple] = []

    def build(self, page: gradio.Blocks) -> None:
        with gradio.Tab("Merge"):
            self._merge()
        with gradio.Tab("Bake"):
            self._bake()
        with gradio.Tab("Extract"):
            self._extract()
        with gradio.Tab("Inspect"):
            self._inspect()
        with gradio.Tab("Convert"):
            self._convert()
        # Lists are made once, when the WebUI starts, and a page may be loaded at any time after that.
        _fill(page.load, self._lists)

    def _merge(self) -> None:
        defaults = MergeSettings()
        with self._page("Merge", self.tools.merge) as page:
            page += [
                self._of_deltas("Deltas", multiselect=True),
                gradio.Textbox("", label="Weights", info="One for each delta, with commas: 0.6, -0.4. Empty: 1 each."),
                gradio.Dropdown(list(METHODS), value=defaults.method, label="Method"),
                gradio.Slider(0.01, 1, defaults.keep, label="Keep", info="Share of a delta that ties and dare take."),
                gradio.Dropdown(list(SIGNS), value=defaults.sign, label="Sign", info="What ties votes by."),
                gradio.Number(defaults.seed, label="Seed", info="Of dare's choice.", precision=0),
                gradio.Dropdown(list(block_presets()), value=ALL_BLOCKS, label="Parts of the model"),
                gradio.Textbox("", label="Factors", lines=2, info="One a line, such as output_blocks = 0.5"),
                _name(),
            ]

    def _bake(self) -> None:
        with self._page("Bake", self.tools.bake) as page:
            page += [
                self._of_checkpoints("Checkpoint"), self._of_deltas("Delta"),
                gradio.Number(1.0, label="Strength"),
                gradio.Dropdown([AS_THE_FILE, *PRECISIONS], value=AS_THE_FILE, label="Precision",
                                info="Of quantised weights."),
                _name("Of the new checkpoint."),
            ]  # fmt: skip

    def _extract(self) -> None:
        with self._page("Extract", self.tools.extract) as page:
            page += [
                self._of_checkpoints("Base"), self._of_checkpoints("Tuned"),
                gradio.Dropdown(list(EXTRACTED_BY), value=EXTRACTED_BY[0], label="Select by"),
                gradio.Number(0.01, label="Density or count", info="The largest changes: this share, or so many."),
                _name(),
            ]  # fmt: skip

    def _inspect(self) -> None:
        with self._page("Inspect", self.tools.inspect) as page:
            page += [self._of_deltas("Delta")]

    def _convert(self) -> None:
        with self._page("Convert", self.tools.convert) as page:
            page += [
                self._listed("File", lambda: list(self.tools.foreign())),
                self._listed("Base", lambda: ["", *self.tools.files.checkpoints()], value=""),
                gradio.Number(0.0, label="Density", info="Share of the elements to keep of a LoRA; 0: all."),
                gradio.Dropdown(list(formats()), value=OWN, label="Format"),
                gradio.Number(DEFAULT_RANK, label="Rank", info="Of a LoRA.", precision=0),
                gradio.Dropdown(list(PROGRAMS), value=COMFYUI, label="Program", info="That a LoRA is for."),
                _name(),
            ]

    @contextmanager
    def _page(self, title: str, work: Callable[..., Report]) -> Iterator[list]:
        """A list for the inputs of `work`, with a button that works on them, and a place for its report."""
        inputs: list = []
        with gradio.Row():
            with gradio.Column():
                yield inputs
                with gradio.Row():
                    run, refresh = gradio.Button(title, variant="primary"), gradio.Button("Refresh lists")
            with gradio.Column():
                said = gradio.HTML()
        run.click(reported(work), inputs, [said])
        self._refreshing(refresh, inputs)

    def _of_deltas(self, label: str, **options):
        return self._listed(label, self.tools.deltas, **options)

    def _of_checkpoints(self, label: str):
        return self._listed(label, lambda: list(self.tools.files.checkpoints()))

    def _listed(self, label: str, names: Callable[[], list[str]], **options):
        made = gradio.Dropdown(names(), label=label, **options)
        self._lists.append((made, names))
        return made

    def _refreshing(self, button, made: list) -> None:
        """Let a button fill the lists of a page anew."""
        _fill(button.click, [(one, names) for one, names in self._lists if any(one is other for other in made)])


def _fill(event: Callable, lists: list[tuple]) -> None:
    """Let an event fill lists anew. lists: each with what gives its names"""

    def updates():
        found = [gradio.update(choices=names()) for _, names in lists]
        return found if len(found) != 1 else found[0]

    event(updates, [], [one for one, _ in lists])


def _name(info: str = "Of the new file, without its ending.") -> gradio.Textbox:
    return gradio.Textbox("", label="Name", info=info)
