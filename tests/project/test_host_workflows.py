"""The example workflows, run as a client runs them, over HTTP, on the demo's checkpoint."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from demo import settings
from devtools.demo import STYLE_FOLDER
from devtools.templates import workflows
from sara_core import SparseDelta

CAPTION = f"{settings.STYLE}, a handwritten digit three"
# Few steps, at a rate at which even these are seen in a picture.
TRAINING = {"steps": 3, "batch_size": 2, "density": 5.0, "learning_rate": 1e-2}


class Session:
    """One client of the server, with the host's node descriptions at hand."""

    def __init__(self, server, checkpoint):
        self.server, self.checkpoint = server, checkpoint.name
        self.info = server.client.object_info()

    def run(self, prompt, node):
        """The outputs of one node."""
        for step in prompt.values():
            if step["class_type"] == "KSampler":
                step["inputs"]["steps"] = 4
        return workflows.output_of(prompt, self.server.client.run(prompt), node)

    def pixels(self, prompt, node):
        file = self.run(prompt, node)["images"][0]
        return np.asarray(Image.open(io.BytesIO(self.server.client.view(file))))

    def draw(self, delta, with_delta=True, checkpoint=None, change=lambda prompt: None):
        prompt = workflows.use_delta(
            self.info, checkpoint or self.checkpoint, delta, CAPTION, seed=3, with_delta=with_delta
        )
        change(prompt)
        return self.pixels(prompt, "SaveImage" if with_delta else "PreviewImage")


@pytest.fixture(scope="module")
def session(server, checkpoint):
    return Session(server, checkpoint)


@pytest.fixture(scope="module")
def before(session):
    """A picture of the base, drawn before anything is trained."""
    return session.draw("none yet", with_delta=False)


def copy_pictures(session, folder, kind):
    """Four pictures of the demo's style folder with their captions, in a folder of ComfyUI's input."""
    folder = session.server.input / folder
    folder.mkdir()
    for picture in sorted(STYLE_FOLDER.glob(f"{kind}-*.png"))[:4]:
        for file in (picture, picture.with_suffix(".txt")):
            shutil.copy(file, folder)


@pytest.fixture(scope="module")
def trained(session, before):
    """The outputs of SaRASave and LossGraphNode after a short training on four captioned pictures."""
    copy_pictures(session, "few", "sunset")
    prompt = workflows.train_style(session.info, session.checkpoint, "few", TRAINING, "sara/few")
    outputs = session.server.client.run(prompt)
    return [workflows.output_of(prompt, outputs, node) for node in ("SaRASave", "LossGraphNode")]


@pytest.fixture(scope="module")
def delta(session, trained):
    """The trained delta's name in SaRALoader."""
    return (session.server.output / trained[0]["text"][0]).name


def test_training_leaves_a_delta_of_the_asked_density_and_a_loss_curve(session, trained, delta):
    file = session.server.output / "sara" / delta
    loaded = SparseDelta.load(file)
    assert loaded.density == pytest.approx(0.05, rel=1e-3)
    assert all(name.startswith("diffusion_model.") for name in loaded.entries)
    (plot,) = trained[1]["images"]
    assert Image.open(io.BytesIO(session.server.client.view(plot))).size == (840, 520)


def test_training_leaves_the_base_as_it_was(session, before, delta):
    assert np.array_equal(session.draw(delta, with_delta=False), before)


def test_the_delta_changes_the_picture_and_strength_0_does_not(session, before, delta):
    def switch_off(prompt):
        for node in prompt.values():
            if node["class_type"] == "SaRALoader":
                node["inputs"]["strength"] = 0.0

    assert not np.array_equal(session.draw(delta), before)
    assert np.array_equal(session.draw(delta, change=switch_off), before)


def _give(prompt, output, value):
    """Every input that comes from an output of a node gets a value instead."""
    for node in prompt.values():
        node["inputs"].update({name: value for name, given in node["inputs"].items() if given == output})


def test_the_stock_load_lora_draws_the_same_picture(session, delta):
    def use_stock_node(prompt):
        for number, node in prompt.items():
            if node["class_type"] == "SaRALoader":
                inputs = node["inputs"]
                _give(prompt, [number, 3], "")  # the trigger word, which the stock node does not know
                stock = {"model": inputs["model"], "lora_name": inputs["sara_name"], "strength_model": 1.0}
                node.update(class_type="LoraLoaderModelOnly", inputs=stock)

    assert np.array_equal(session.draw(delta, change=use_stock_node), session.draw(delta))


def test_a_baked_checkpoint_draws_without_the_pack_what_the_delta_draws(session, before, delta):
    """Up to the rounding of the checkpoint's fp16 weights, which the loader, computing in fp32, does not have."""
    prompt = workflows.bake_delta(session.info, session.checkpoint, delta, "checkpoints/few")
    baked = session.run(prompt, "SaRABake")["text"][0].removeprefix("checkpoints/")
    picture = session.draw(delta, with_delta=False, checkpoint=baked).astype(int)
    with_delta = session.draw(delta).astype(int)
    effect = np.abs(with_delta - before).mean()
    assert np.abs(picture - with_delta).mean() < 0.05 * effect


def test_learning_a_subject_beside_others_that_the_model_draws(session, trained, delta):
    """The subject's pictures are those of `trained`: what the class images add shows in the delta."""
    prompt = workflows.learn_subject(session.info, session.checkpoint, "few", 3, TRAINING, "sara/subject")
    saved = session.run(prompt, "SaRASave")["text"][0]
    learnt = SparseDelta.load(session.server.output / saved)
    alone = SparseDelta.load(session.server.output / "sara" / delta)
    assert learnt.entries.keys() == alone.entries.keys()
    assert any(not np.array_equal(e.values, alone.entries[name].values) for name, e in learnt.entries.items())


def test_a_delta_merged_with_its_negative_draws_the_base(session, before, delta):
    """And with itself by halves, the delta."""
    prompt = workflows.merge_styles(session.info, session.checkpoint, (delta, delta), "1, -1", CAPTION, seed=3)
    assert np.array_equal(session.pixels(prompt, "SaveImage"), before)
    prompt = workflows.merge_styles(session.info, session.checkpoint, (delta, delta), "0.5, 0.5", CAPTION, seed=3)
    assert np.array_equal(session.pixels(prompt, "SaveImage"), session.draw(delta))


def test_what_is_extracted_of_a_baked_checkpoint_is_what_was_baked(session, delta):
    """Every element that differs after the rounding of the checkpoint's fp16 weights, and no other."""
    prompt = workflows.bake_delta(session.info, session.checkpoint, delta, "checkpoints/extract")
    baked = session.run(prompt, "SaRABake")["text"][0].removeprefix("checkpoints/")
    selection = {"select_by": "everything"}
    prompt = workflows.extract_delta(session.info, session.checkpoint, baked, selection, "sara/extracted")
    saved = session.run(prompt, "SaRASave")["text"][0]
    extracted = SparseDelta.load(session.server.output / saved)
    trained = SparseDelta.load(session.server.output / "sara" / delta)
    assert 0.9 * trained.nnz < extracted.nnz <= trained.nnz
    for name, entry in extracted.entries.items():
        assert np.isin(entry.indices, trained.entries[name].indices).all()
