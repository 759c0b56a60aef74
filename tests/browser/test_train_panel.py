"""SaRA Train's panel shows a training on the node whose training it is, across a reload, and goes on from its end."""

import json
import uuid

from devtools.comfyui.install import PACK_FOLDER, ROOT
from tests.support.browser import CLASSIC, ComfyPage

PANEL = "[...document.querySelectorAll('.sara-train')].find((panel) => panel.offsetParent)"


def sentence(english, **values):
    return {"key": english, "values": values, "english": english.format(**values)}


def state(page: ComfyPage, node: int | str, **changes) -> dict:
    """A run of a node of the open workflow, after 3 of 10 steps."""
    workflow = page.page.evaluate("() => (app.rootGraph ?? app.graph).id")
    return {
        "run": uuid.uuid4().hex, "prompt": None, "node": str(node), "workflow": workflow, "phase": "training",
        "message": None, "step": 3, "steps": 10, "rate": 0.0002, "seconds_per_step": 1.25, "seconds_left": 160,
        "memory": None, "marks": [{"step": 2, "kind": "snapshot"}], "samples": None, "warnings": [],
        "end": None, **changes,
    }  # fmt: skip


def send(page: ComfyPage, news: dict, losses=(), first: int = 0) -> None:
    """An event of the server's, as the page's own socket hands it on."""
    news = {**news, "new_losses": list(losses), "first_new": first, "new_held_out": [], "first_new_held_out": 0}
    script = """async (news) => (await import("/scripts/api.js")).api.dispatchCustomEvent("sara.run", news)"""
    page.page.evaluate(script, news)
    page.settle(200)


def text(page: ComfyPage, part: str = "") -> str | None:
    return page.page.evaluate(f"() => {PANEL}{f'?.querySelector({json.dumps(part)})' if part else ''}?.innerText")


def node_size(page: ComfyPage, node: int) -> list[float]:
    return page.page.evaluate("(id) => [...app.graph.getNodeById(id).size]", node)


def train_node(page: ComfyPage) -> int:
    """The only node of a workflow of its own."""
    page.load(
        {"id": str(uuid.uuid4()), "nodes": [], "links": [], "groups": [], "config": {}, "extra": {}, "version": 0.4}
    )
    return page.add("SaRATrain")


LOSSES = [[1, 0.2], [2, 0.1], [3, 0.3]]


def test_a_node_without_a_run_is_as_ever_and_one_with_a_run_grows_once(page):
    node = train_node(page)
    page.settle()
    before = node_size(page, node)
    assert text(page) is None
    run = state(page, node, estimate=sentence("Memory: about {size} MB", size=87))
    send(page, run)
    assert text(page, ".sara-train-said") == "Memory: about 87 MB"
    send(page, run, LOSSES)
    during = node_size(page, node)
    kept = "What was trained in 3 steps is in output/sara/unsaved/x.safetensors."
    send(page, {**run, "saved": sentence(kept)})
    assert text(page, ".sara-train-said") == kept
    assert during[0] == before[0] and during[1] > before[1]
    assert "step 3 of 10" in text(page, ".sara-train-head") and "2:40 left" in text(page, ".sara-train-head")
    assert "2e-4" in text(page, ".sara-train-numbers") and "1.3 s/step" in text(page, ".sara-train-numbers")
    ended = {
        "kind": "stopped", "sentences": [sentence("Stopped after {step} steps.", step=4)], "delta": None,
        "snapshot": None, "seconds": 5.0, "loss": 0.1, "trained": 7, "error": None,
    }  # fmt: skip
    send(page, {**run, "phase": "stopped", "step": 4, "end": ended}, [[4, 0.1]], first=3)
    assert "Stopped after 4 steps." in text(page, ".sara-train-ending") and not text(page, ".sara-train-said")
    assert node_size(page, node) == during


def test_a_training_whose_node_is_made_part_of_a_subgraph_keeps_its_panel_and_is_told_of_around_it(page):
    node = train_node(page)
    run = state(page, node)
    send(page, run, LOSSES)
    around = page.page.evaluate("""(id) => {
      const graph = app.graph;
      return graph.convertToSubgraph(new Set([graph.getNodeById(id)])).node.id }""", node)
    page.settle()
    send(page, {**run, "step": 4}, [[4, 0.1]], first=3)
    badges = page.page.evaluate("(id) => app.graph.getNodeById(id).badges.map((badge) => badge.text)", around)
    assert badges[1:] == (["Training: step 4 of 10 · 2:40 left"] if page.renderer == CLASSIC else [])
    enter = "(id) => { const node = app.graph.getNodeById(id); app.canvas.openSubgraph(node.subgraph, node) }"
    page.page.evaluate(enter, around)
    page.until(lambda: "step 4 of 10" in (text(page, ".sara-train-head") or ""))


def test_a_training_that_failed_before_its_first_step_says_so_at_the_top(classic_page):
    page = classic_page
    node = train_node(page)
    error = "There is no image to train on."
    ended = {"kind": "failed", "sentences": [], "delta": None, "snapshot": None, "seconds": 5.0, "error": error}
    send(page, {**state(page, node, step=0), "phase": "failed", "end": ended})
    places = page.page.evaluate(f"""() => [".sara-train-head", ".sara-train-words"].map(
      (part) => {PANEL}.querySelector(part).getBoundingClientRect()).map((box) => [box.top, box.bottom])""")
    assert places[1][0] - places[0][1] < 30 and error in text(page, ".sara-train-words")


def test_a_run_of_another_workflow_or_node_is_not_shown(classic_page):
    page = classic_page
    node = train_node(page)
    send(page, {**state(page, node), "workflow": "11111111-2222-3333-4444-555555555555"}, LOSSES)
    send(page, {**state(page, f"{node}1"), "run": "another"}, LOSSES)
    assert text(page) is None


def test_what_a_file_says_is_text(classic_page):
    page = classic_page
    node = train_node(page)
    hostile = "<img src=x onerror=alert(1)>"
    samples = {"captions": [hostile], "columns": []}
    send(page, state(page, node, samples=samples, warnings=[sentence(hostile)]), LOSSES)
    assert hostile in text(page, ".sara-train-warnings")
    assert page.page.evaluate(f"() => {PANEL}.querySelectorAll('img').length") == 0


def test_losses_that_are_all_but_equal_have_an_axis(classic_page):
    script = """async (values) => {
      const module = await import(`/extensions/${PACK}/train/numbers.js`);
      return values.map((value) => {
        const raw = Array.from({ length: 40 }, (_, step) => [step + 1, value]);
        const [low, high] = module.valueRange(raw, module.smoothed(raw));
        return [high - low, value];
      });
    }""".replace("${PACK}", PACK_FOLDER)
    for width, value in classic_page.page.evaluate(script, [0.1, 0.3, 1e-9, 7.7, 0]):
        assert width >= 0.1 * value and width > 0


def test_points_that_a_lost_connection_took_are_asked_for(classic_page):
    page = classic_page
    node = train_node(page)
    whole = {**state(page, node, step=9), "losses": [[step, 0.1] for step in range(1, 10)], "held_out": [], "points": 9}
    asked = []

    def answer(route):
        asked.append(route.request.url)
        route.fulfill(json=whole)

    page.page.route(f"**/sara/runs/{whole['run']}", answer)
    send(page, {**state(page, node, step=9), "run": whole["run"]}, [[9, 0.1]], first=8)
    page.until(lambda: "step 9 of 10" in (text(page) or "") and asked)
    label = page.page.evaluate(f"() => {PANEL}.querySelector('svg').getAttribute('aria-label')")
    assert "0.1 after step 9" in label
    page.page.unroute(f"**/sara/runs/{whole['run']}")


def test_a_training_that_went_with_its_server_says_so(classic_page):
    page = classic_page
    node = train_node(page)
    send(page, state(page, node), LOSSES)
    assert "step 3 of 10" in text(page, ".sara-train-head")
    page.page.evaluate("""async () => (await import("/scripts/api.js")).api.dispatchCustomEvent("reconnected")""")
    page.until(lambda: "ComfyUI ended during this training" in (text(page, ".sara-train-ending") or ""))
    assert "left" not in text(page, ".sara-train-head")
    page.expect_complaint("/sara/runs/")  # the server has no such run


def test_a_training_survives_a_reload_finishes_early_and_is_trained_on(classic_page, checkpoint):
    page = classic_page
    few = page.server.input / "few"
    few.mkdir(exist_ok=True)
    for picture in sorted((ROOT / "demo" / "style").glob("plain-00[0-1].*")):
        (few / picture.name).write_bytes(picture.read_bytes())
    page.load(ROOT / "example_workflows" / "Train a style, like LoRA training.json")
    page.set_widget(page.node("CheckpointLoaderSimple"), "ckpt_name", checkpoint.name)
    page.set_widget(page.node("SaRADataset"), "folders", few.name)
    page.set_widget(page.node("PrimitiveInt"), "value", 64)
    node = page.node("SaRATrain")
    page.set_widget(node, "density", 4)
    page.set_widget(node, "steps", 1000)
    prompt = page.queue()
    page.until(lambda: "step " in (text(page, ".sara-train-phase") or ""), 120)
    page.settle(3000)  # the host keeps a draft of the workflow, from which a reload opens it
    page.open()
    page.until(lambda: "step " in (text(page, ".sara-train-phase") or ""))
    page.page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.page.get_by_role("button", name="Finish early").evaluate("(button) => button.click()")
    assert page.wait(prompt)["status"]["status_str"] == "success"
    page.until(lambda: "Finished early" in (text(page, ".sara-train-ending") or ""))
    page.page.get_by_role("button", name="Train on").evaluate("(button) => button.click()")
    page.until(lambda: page.widget(node, "steps") == 2000)
    assert page.widget(node, "resume") != "none"
    page.page.get_by_role("button", name="Draw with it").evaluate("(button) => button.click()")
    page.until(lambda: page.page.evaluate("() => app.graph.nodes.some((node) => node.type === 'SaRALoader')"))
    loader = page.node("SaRALoader")
    page.until(lambda: page.widget(loader, "sara_name").startswith("my_style_"))  # SaRA Save has taken it
