"""SaRA Dataset in ComfyUI: what it gives is what core's nodes make of the same pictures and captions."""

import pytest
import torch
from PIL import Image

from sara_core.data.dataset import Share
from tests.support.picture_files import BLUE, RED, saved


@pytest.fixture(scope="module")
def toy(comfy, checkpoint):
    """MODEL, CLIP and VAE of the demo's checkpoint."""
    comfy.folder_paths.add_model_folder_path("checkpoints", str(checkpoint.parent))
    return comfy.execute("CheckpointLoaderSimple", ckpt_name=checkpoint.name).outputs


@pytest.fixture
def inputs(comfy, tmp_path, monkeypatch):
    """An input folder of the test's own, with two pictures in the folder "cats", one of them with a caption."""
    monkeypatch.setattr(comfy.folder_paths, "input_directory", str(tmp_path))
    (tmp_path / "cats").mkdir()
    picture = Image.new("RGB", (128, 64), RED)
    picture.paste(BLUE, (80, 0, 128, 64))
    saved(tmp_path / "cats" / "a.png", picture)
    saved(tmp_path / "cats" / "b.png", Image.new("RGB", (64, 64), BLUE))
    (tmp_path / "cats" / "a.txt").write_text("a cat")
    return tmp_path


def dataset(comfy, **given):
    return comfy.execute("SaRADataset", **{"folders": "cats", "resolution": 64, **given}).outputs


def test_latents_and_conditionings_are_those_of_cores_nodes(comfy, inputs, toy):
    _, clip, vae = toy
    outputs = dataset(comfy, trigger="ohwx", flip=True, vae=vae, clip=clip)
    images, captions, trigger, summary, latents, conditioning, plain = outputs
    assert captions == ["ohwx, a cat", "ohwx"] * 2 and trigger == "ohwx" and plain == ["a cat", ""] * 2
    assert [tuple(image.shape) for image in images] == [(1, 64, 64, 3)] * 4
    assert torch.equal(images[2], images[0].flip(2)) and not torch.equal(images[2], images[0])
    for image, latent in zip(images, latents, strict=True):
        assert torch.equal(latent["samples"], comfy.execute("VAEEncode", pixels=image, vae=vae).outputs[0]["samples"])
    names = [latent["sara_picture"] for latent in latents]
    assert names[:2] == names[2:] == [str(inputs / "cats" / name) for name in ("a.png", "b.png")]
    for caption, mine in zip(captions, conditioning, strict=True):
        core = comfy.execute("CLIPTextEncode", text=caption, clip=clip).outputs[0]
        assert torch.equal(mine[0][0], core[0][0]) and mine[0][1].keys() == core[0][1].keys()
        assert torch.equal(mine[0][1]["pooled_output"], core[0][1]["pooled_output"])
    assert summary.startswith("2 pictures, shown as 4\n2 of 64 × 64")


def test_what_it_gives_is_trained(comfy, inputs, toy):
    model, clip, vae = toy
    *_, latents, conditioning, _ = dataset(comfy, caption="a picture", vae=vae, clip=clip)
    trained = comfy.execute(
        "SaRATrain", model=model, latents=latents, positive=conditioning, steps=1, density=1.0, learning_rate=1e-3,
    )  # fmt: skip
    assert trained.outputs[0].nnz > 0


def test_without_vae_and_clip_what_they_are_for_says_so(comfy, inputs):
    *_, latents, conditioning, _ = dataset(comfy)
    assert latents[0].message == "SaRA Dataset has no vae: connect one to its vae input."
    assert conditioning[0].message == "SaRA Dataset has no clip: connect one to its clip input."


def test_repeats_share_what_is_encoded(comfy, inputs, toy):
    *_, latents, conditioning, _ = dataset(comfy, folders="cats | 3", vae=toy[2], clip=toy[1])
    assert len(latents) == len(conditioning) == 6
    assert latents[0] is latents[2] is latents[4] and conditioning[1] is conditioning[3]


SUMMARIES = {
    "one caption is missing": ({}, "1 of 2 pictures without a caption: .*: b.png"),
    "none is missing": ({"caption": "x"}, None),
    "the trigger is one": ({"trigger": "x"}, None),
}


@pytest.mark.parametrize("what", SUMMARIES)
def test_missing_captions_are_counted_and_said_in_the_log(comfy, inputs, caplog, what):
    given, words = SUMMARIES[what]
    summary = dataset(comfy, **given)[3]
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert bool(warned) == (words is not None) == ("without a caption" in summary)
    if words:
        assert "1 of 2 pictures without a caption" in warned[0] and "b.png" in warned[0]


def test_no_caption_at_all_says_what_comes_of_it(comfy, inputs):
    (inputs / "cats" / "a.txt").unlink()
    (inputs / "cats" / "c.png").write_bytes((inputs / "cats" / "b.png").read_bytes())
    summary = dataset(comfy)[3].splitlines()
    assert summary[0] == "3 pictures"
    assert summary[1].startswith("3 pictures, and no caption: what is learned will show in every prompt")
    assert summary[2] == "1 picture shown more often than the others, as a copy of another: c.png is b.png"


@pytest.fixture
def shares(comfy, inputs):
    return comfy.pack_module("nodes.host.datasets").shares


def test_folders_are_named_or_whole_paths_each_with_its_repeats(inputs, shares, tmp_path_factory):
    other, odd = tmp_path_factory.mktemp("other"), inputs / "a | b"
    odd.mkdir()
    found = shares(f"\n cats |  3 \n{other}\na | b\n")
    assert [tuple(share) for share in found] == [(inputs / "cats", 3), (other, 1), (odd, 1)]
    assert Share(*found[0]) == (inputs / "cats", 3)


NO_FOLDERS = {
    "": "There is no folder of pictures: drop pictures",
    " \n": "There is no folder of pictures",
    "dogs": "There is no folder 'dogs' in ComfyUI's input folder",
    "/no/such/folder": "There is no folder '/no/such/folder': choose",
    "../": "leads out of ComfyUI's input folder",
    "cats/../..": "leads out of ComfyUI's input folder",
    "cats | 0": "The repeats of 'cats' must be from 1 to 1000",
    "cats | 1001": "The repeats of 'cats'",
    "cats\ncats/ | 2": "stands twice",
    "a\0b": "There is no folder",
}


@pytest.mark.parametrize("text", NO_FOLDERS)
def test_folders_that_are_none_are_refused_before_anything_runs(comfy, inputs, text):
    refused = comfy.node_class("SaRADataset").validate_inputs(folders=text)
    assert NO_FOLDERS[text] in refused
    assert comfy.node_class("SaRADataset").validate_inputs(folders="cats", resolution=64) is True


def test_pictures_that_cannot_be_read_are_all_named(comfy, inputs):
    for name in "ab":
        (inputs / "cats" / f"{name}.png").write_bytes(b"no picture")
    with pytest.raises(Exception, match="2 images cannot be trained on.*'a.png'.*'b.png'"):
        dataset(comfy)


def test_an_empty_folder_says_so(comfy, inputs):
    (inputs / "empty").mkdir()
    with pytest.raises(Exception, match="No image in .*empty.* can be read here: put the training images there"):
        dataset(comfy, folders="empty")


def test_the_run_is_another_when_a_picture_or_caption_changes(comfy, inputs):
    fingerprint = comfy.node_class("SaRADataset").fingerprint_inputs
    seen = [fingerprint(folders="cats"), fingerprint(folders="cats")]
    (inputs / "cats" / "a.txt").write_text("another cat")
    seen.append(fingerprint(folders="cats"))
    saved(inputs / "cats" / "c.png", Image.new("RGB", (8, 8)))
    seen.append(fingerprint(folders="cats"))
    assert seen[0] == seen[1] and len(set(seen)) == 3
    assert fingerprint(folders="nowhere") == fingerprint(folders=None) == ""
