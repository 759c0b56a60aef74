"""The development server as a client sees it: it serves the pack, tells errors, stops, and stays in its own folders."""

import threading

import pytest

from devtools.comfyui.client import PromptError, PromptInterrupted

EMPTY_IMAGE = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 255}}


def _save(prefix):
    return {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}}


def test_a_saved_picture_comes_back_and_lies_in_the_servers_own_folder(server, host):
    theirs = sorted((host.folder / "output").iterdir())
    outputs = server.client.run({"1": EMPTY_IMAGE, "2": _save("probe")})
    (image,) = outputs["2"]["images"]
    assert server.client.view(image) == (server.output / image["filename"]).read_bytes()
    assert sorted((host.folder / "output").iterdir()) == theirs


def test_an_uploaded_picture_can_be_loaded(server, tmp_path):
    made = server.client.run({"1": EMPTY_IMAGE, "2": _save("upload")})["2"]["images"][0]
    picture = tmp_path / "blau ü.png"
    picture.write_bytes(server.client.view(made))
    name = server.client.upload_image(picture)
    load = {"class_type": "LoadImage", "inputs": {"image": name}}
    assert (server.input / name).read_bytes() == picture.read_bytes()
    assert server.client.run({"1": load, "2": _save("loaded")})["2"]["images"]


def test_a_refused_prompt_names_the_node_and_the_input(server):
    with pytest.raises(PromptError, match="SaveImage: Required input is missing: filename_prefix"):
        server.client.run({"1": EMPTY_IMAGE, "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}}})


def test_a_failing_node_is_named_with_its_message(server):
    with pytest.raises(PromptError, match="SaveImage: .*outside"):
        server.client.run({"1": EMPTY_IMAGE, "2": _save("../../outside")})


def test_progress_is_reported_and_cancel_stops(server, checkpoint):
    """A sampler with far too many steps, cancelled at its first sign of life."""
    prompt = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint.name}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a handwritten digit three"}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "4": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0], "seed": 0,
                "steps": 1000, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
            },
        },
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
        "6": {"class_type": "PreviewImage", "inputs": {"images": ["5", 0]}},
    }  # fmt: skip
    seen, cancelled = [], threading.Event()

    def cancel_once_sampling(progress):
        seen.append(progress)
        if progress.maximum == 1000 and progress.value > 0 and not cancelled.is_set():
            cancelled.set()
            server.client.interrupt()

    with pytest.raises(PromptInterrupted):
        server.client.run(prompt, cancel_once_sampling)
    assert 0 < max(progress.value for progress in seen) < 1000
