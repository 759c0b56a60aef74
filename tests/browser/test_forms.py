"""Every example that has a form: opened in App mode, all of its fields there, filled in and run."""

import json
import uuid

import pytest

from demo import settings
from devtools.comfyui.install import ROOT
from devtools.templates import workflows
from devtools.templates.apps import APPS
from devtools.templates.graphs import LEARN_A_SUBJECT, TRAIN_A_STYLE
from tests.support.browser import NODES_2, ComfyPage
from tests.support.person import IN_APP_MODE, Person, styled_pictures

FOLDER = ROOT / "example_workflows"
FIELDS = "app-mode-widget-item"
# What makes every run short, by node class, or class and title.
SMALL = {
    "KSampler": {"steps": 1},
    "EmptyLatentImage": {"width": settings.SIZE, "height": settings.SIZE},
    "EmptyLatentImage How many others": {"batch_size": 2},
    "PrimitiveInt Picture size": {"value": settings.SIZE},
    "SaRADataset": {"folders": "few"},
    "SaRATrain": {"steps": 2},
    "SaRATrainSamples": {"every": 1, "steps": 1},
}


@pytest.fixture(scope="module")
def delta(page_server, checkpoint, passing_files):
    """The name of a delta of the demo's model; the few pictures that all trainings here have are there then."""
    folder = page_server.input / "few"
    folder.mkdir()
    styled_pictures(folder, 2)
    training = {**settings.TRAINING, "steps": 1, "batch_size": 1}
    client = page_server.client
    prompt = workflows.train_style(client.object_info(), checkpoint.name, folder.name, training, "sara/for_forms")
    return workflows.output_of(prompt, client.run(prompt), "SaRASave")["text"][0].split("/")[-1]


@pytest.fixture(scope="module")
def tab(browser, page_server, delta):
    """A tab of its own: App mode stays when a workflow goes."""
    opened = ComfyPage(browser, page_server, NODES_2)
    yield opened
    opened.close()


@pytest.mark.parametrize("name", sorted(APPS))
def test_a_form_shows_all_its_fields_and_runs(tab, name, delta, checkpoint):
    workflow = json.loads((FOLDER / f"{name}.app.json").read_text(encoding="utf-8"))
    tab.load({**workflow, "id": str(uuid.uuid4())})  # or the form shows what another test has trained in it
    asked = workflow["extra"]["linearData"]["inputs"]
    tab.until(lambda: tab.page.get_by_test_id(FIELDS).count() == len(asked))
    if name in (TRAIN_A_STYLE, LEARN_A_SUBJECT):
        assert tab.page.get_by_test_id(FIELDS).get_by_text("After Run you see here how it learns.").is_visible()
    _fill(tab, workflow, delta, checkpoint.name)
    over = tab.wait(Person(tab).run(IN_APP_MODE))
    assert over["status"]["status_str"] == "success", over["status"]["messages"]
    shown = [picture["filename"] for output in over["outputs"].values() for picture in output.get("images", ())
             if picture["type"] == "output"]  # fmt: skip
    for picture in shown[:1]:
        tab.page.locator(f'img[src*="{picture}"]:visible').first.wait_for()
    if name in (TRAIN_A_STYLE, LEARN_A_SUBJECT):
        tab.page.get_by_test_id(FIELDS).get_by_text("Finished: step 2 of 2").wait_for()
    assert shown or name in ("Bake a delta", "Convert a LoRA")
    assert not tab.complaints()


def _fill(tab, workflow, delta, checkpoint):
    values = {
        **SMALL, "SaRALoader": {"sara_name": delta}, "CheckpointLoaderSimple": {"ckpt_name": checkpoint},
        "SaRABake": {"ckpt_name": checkpoint}, "SaRAConvert": {"file_name": delta, "to": "diff"},
    }  # fmt: skip
    for node in workflow["nodes"]:
        wanted = {**values.get(node["type"], {}), **values.get(f"{node['type']} {node.get('title')}", {})}
        for widget, value in wanted.items():
            tab.set_widget(node["id"], widget, value)
