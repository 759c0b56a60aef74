"""The page in other languages than English: names, sentences and choices are in them, and have room."""

import json

import pytest

from devtools.comfyui.install import ROOT
from tests.support.browser import CLASSIC, NODES_2, ComfyPage, set_setting

LANGUAGES = sorted(path.name for path in (ROOT / "locales").iterdir())
ENGLISH = "en"

# A node of each of our classes in a row, as wide as the page makes a new one.
ALL_NODES = """() => {
  const ours = Object.keys(LiteGraph.registered_node_types).filter((type) => type.startsWith("SaRA"));
  let x = 0;
  for (const type of ours) {
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    node.pos = [x, 0];
    x += node.size[0] + 40;
  }
  return ours }"""

# What is wider than its node: [node, text, its width, the room for it] in pixels of the graph. A value gives way to the
# name of its input, and is shown with an ellipsis, in the page's own nodes as well.
TOO_WIDE = r"""() => {
  const context = document.createElement("canvas").getContext("2d"), found = [];
  const square = /[\u1100-\uffdc]/g;  // as wide as high, also where the machine has no font for them
  const wide = (size, text) => {
    context.font = `${size}px Arial`;
    return context.measureText(text.replace(square, "")).width + size * (text.match(square) ?? []).length };
  for (const node of app.graph.nodes) {
    const room = (text, needed, there) => { if (needed > there) found.push([node.type, text, needed, there]) };
    const title = node.getTitle();
    room(title, wide(LiteGraph.NODE_TEXT_SIZE, title), node.size[0] - 2 * LiteGraph.NODE_TITLE_HEIGHT);
    for (const widget of node.widgets ?? []) {
      if (widget.hidden || widget.element || widget.type === "hidden") continue;
      room(widget.label, wide(LiteGraph.NODE_TEXT_SIZE, widget.label ?? ""), node.size[0] - 80);
    }
    const slots = (kind) => (node[kind] ?? []).filter((slot) => !slot.widget)
      .map((slot) => slot.label ?? slot.localized_name ?? slot.name);
    const [inputs, outputs] = [slots("inputs"), slots("outputs")];
    for (let i = 0; i < Math.max(inputs.length, outputs.length); i += 1) {
      const both = `${inputs[i] ?? ""}  ${outputs[i] ?? ""}`;
      room(both, wide(LiteGraph.NODE_SUBTEXT_SIZE, both), node.size[0] - 2 * LiteGraph.NODE_SLOT_HEIGHT);
    }
  }
  return found }"""

CHOICES = """([type, name]) => {
  const node = LiteGraph.createNode(type), widget = node.widgets.find((one) => one.name === name);
  const { values, getOptionLabel } = widget.options;
  return Object.fromEntries(values.map((value) => [value, getOptionLabel ? getOptionLabel(value) : value])) }"""

SAID = """async () => {
  const ours = performance.getEntriesByType("resource").map((entry) => entry.name);
  const { say } = await import(ours.find((name) => name.split("?")[0].endsWith("/js/common/words.js")
    || name.split("?")[0].endsWith("/common/words.js")));
  return [say("step {step}", { step: 5 }), say("never said {x}", { x: 1 })] }"""


def table(language):
    return json.loads((ROOT / "js" / "common" / "languages" / f"{language}.json").read_text(encoding="utf-8"))


def nodes(language):
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tab(browser, page_server):
    """One tab, which speaks another language after each call of it."""
    set_setting(page_server, "Comfy.Locale", ENGLISH)
    made = ComfyPage(browser, page_server, CLASSIC)

    def speaks(language, renderer=CLASSIC):
        set_setting(page_server, "Comfy.Locale", language)
        set_setting(page_server, "Comfy.VueNodes.Enabled", renderer == NODES_2)
        made.open()
        made.empty()
        return made

    yield speaks
    made.close()
    set_setting(page_server, "Comfy.Locale", ENGLISH)


@pytest.mark.parametrize("language", [ENGLISH, *LANGUAGES])
def test_sentences_and_choices_are_in_the_language_of_the_page_and_no_name_is_wider_than_its_node(tab, language):
    page = tab(language)
    assert len(page.page.evaluate(ALL_NODES)) >= 12
    page.settle()
    assert page.page.evaluate(TOO_WIDE) == []
    shown, said = page.page.evaluate(CHOICES, ["SaRATrain", "layers"]), page.page.evaluate(SAID)
    assert page.page.evaluate(CHOICES, ["SaRATrainOptions", "optimizer"])["AdamW"] == "AdamW"
    if language == ENGLISH:
        assert said[0] == "step 5" and shown == {value: value for value in shown}
    else:
        words = table(language)
        assert said[0] == words["sentences"]["step {step}"].replace("{step}", "5")
        assert shown == {value: words["values"][value] for value in shown}
    assert said[1] == "never said 1"
    assert page.complaints() == []


def test_a_choice_is_kept_in_english(tab):
    page = tab("zh")
    node = page.add("SaRATrain")
    page.set_widget(node, "layers", "attention only")
    shown = "(id) => app.graph.getNodeById(id).widgets.find((widget) => widget.name === 'layers')._displayValue"
    assert page.page.evaluate(shown, node) == table("zh")["values"]["attention only"]
    (saved,) = page.page.evaluate("() => app.graph.serialize().nodes")
    assert "attention only" in saved["widgets_values"]


def test_nodes_2_shows_choices_and_names_in_the_language(tab):
    page = tab("ja", NODES_2)
    node = page.add("SaRATrain", (300, 200))
    page.settle(800)
    text = page.page.locator(f'[data-node-id="{node}"]').inner_text()
    assert nodes("ja")["SaRATrain"]["display_name"] in text
    assert table("ja")["values"]["density"] in text


def test_what_the_server_says_is_in_the_language(tab):
    """A refusal, the doubts before Run with what is counted in them, and why a preset is as it is."""
    page, words = tab("zh"), table("zh")["sentences"]
    dataset, train = page.add("SaRADataset"), page.add("SaRATrain", (700, 100))
    page.connect(dataset, "latents", train, "latents")
    page.set_widget(dataset, "folders", "nowhere")
    refused = "There is no folder {name} in ComfyUI's input folder: choose another one, or drop pictures here."
    page.page.get_by_text(words[refused].replace("{name}", "'nowhere'")).wait_for()
    page.expect_complaint("400")
    page.set_widget(dataset, "folders", "digits")
    page.set_widget(train, "steps", 1)
    seldom = words["Each picture is seen {times} times only: too seldom to be learned."].partition("{times}")[0]
    page.page.locator(".sara-check-doubt", has_text=seldom).wait_for()
    page.page.locator(".sara-check button").evaluate("(button) => button.click()")
    pictures = len(list((page.server.input / "digits").glob("*.png")))
    begins, _, ends = words["for {pictures}: {course}"].partition("{course}")[0].partition("{pictures}")
    why = begins + words["{count} pictures"].replace("{count}", str(pictures)) + ends
    page.page.locator(".sara-check-set", has_text=why).wait_for()
