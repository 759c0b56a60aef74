"""A pipeline, captioned images and Ctrl-C, for the commands that train."""

import signal
import sys

import pytest

from tests.support import tiny_diffusers


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A Stable Diffusion pipeline in a diffusers folder."""
    folder = tmp_path_factory.mktemp("base")
    tiny_diffusers.pipeline(folder / "tokenizer files").save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny_diffusers.image_folder(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture
def stop_after(monkeypatch):
    """stop_after(3) presses Ctrl-C when the line on step 3 is written."""

    def arrange(step):
        class Terminal:
            text = ""

            def write(self, text):
                self.text += text
                if text.startswith(f"step {step} of"):
                    signal.raise_signal(signal.SIGINT)

            def flush(self):
                pass

        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        return terminal

    return arrange
