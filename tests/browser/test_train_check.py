"""SaRA Train says before Run what a training will take, fills in a preset, and shows only the widgets that count."""

import os
from pathlib import Path

CHECK = ".sara-check"
HIDDEN = "([id, name]) => Boolean(app.graph.getNodeById(id).widgets.find((w) => w.name === name).hidden)"


def is_hidden(page, node, name):
    return page.page.evaluate(HIDDEN, [node, name])


def test_the_check_follows_the_graph_and_a_preset_fills_it_in(page, checkpoint):
    train, dataset, loader = page.add("SaRATrain"), page.add("SaRADataset", (-600, 100)), page.add(
        "CheckpointLoaderSimple", (-1000, 100))  # fmt: skip
    page.set_widget(loader, "ckpt_name", checkpoint.name)
    page.set_widget(dataset, "folders", "digits")
    page.connect(loader, "MODEL", train, "model")
    page.connect(loader, "VAE", dataset, "vae")
    page.connect(dataset, "latents", train, "latents")
    line = page.page.locator(".sara-check-line")
    page.until(lambda: "512 px" in line.inner_text() and "GB" in line.inner_text())
    count = len(list((page.server.input / "digits").glob("*.png")))
    assert f"{count} pictures" in line.inner_text()
    page.until(lambda: "made for 64 px" in page.page.locator(CHECK).inner_text())
    # The list of doubts has the room that it takes, however many lines stand above it.
    doubts = page.page.locator(".sara-check-more")
    page.until(lambda: doubts.evaluate("(list) => list.scrollHeight <= list.clientHeight"))

    page.page.get_by_role("button", name="Apply preset").evaluate("(button) => button.click()")
    page.until(lambda: page.widget(train, "density") == 4)
    assert (page.widget(train, "steps"), page.widget(train, "batch_size")) == (400, 8)
    assert page.widget(dataset, "resolution") == 64
    page.until(lambda: "64 px" in line.inner_text() and not page.page.locator(".sara-check-doubt").count())
    assert "density 1 → 4" in page.page.locator(CHECK).inner_text()
    page.show()
    if folder := os.environ.get("SARA_SHOTS"):
        page.screenshot(Path(folder) / f"check_{page.renderer}.png")


def test_only_the_amount_that_counts_shows_and_its_value_stays(page):
    node = page.add("SaRATrain")
    page.settle()
    page.set_widget(node, "density", 1)  # the page gives a new node what an earlier one of its number had
    assert [is_hidden(page, node, name) for name in ("density", "count", "threshold")] == [False, True, True]
    page.set_widget(node, "select_by", "threshold")
    assert [is_hidden(page, node, name) for name in ("density", "count", "threshold")] == [True, True, False]
    assert page.widget(node, "count") == 5_000_000
    label = "(id) => app.graph.getNodeById(id).widgets.find((w) => w.name === 'learning_rate').label"
    assert "(paper's rule)" in page.page.evaluate(label, node)
    page.set_widget(node, "learning_rate", 0.0002)
    assert page.widget(node, "learning_rate") == 0.0002
    assert page.page.evaluate(label, node) == "learning_rate"
    values = page.page.evaluate("(id) => app.graph.getNodeById(id).serialize().widgets_values", node)
    assert values[:4] == ["threshold", 1, 5_000_000, 0.002] and len(values) == 19
