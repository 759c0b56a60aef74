"""Which pictures `python -m sara_core train` trains on, under which captions, and how they are cut."""

import pytest
import torch
from PIL import Image

from sara_core.__main__ import main
from sara_core.data.captioning import Captioning
from sara_core.data.dataset import Share, read_folders
from sara_core.data.image_folder import CaptionedImage
from sara_core.errors import TrainingError
from sara_core.pipelines.older_snapshots import as_written_now
from sara_core.pipelines.prepare import prepare_training
from tests.support.picture_files import BLUE, RED, saved


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Folders and options → the images that are to be encoded, the resolution and whether in buckets."""

    def ask(*words):
        taken = []

        def stop(base, images, resolution, *rest):
            taken.extend((images, resolution, rest[-1]))
            raise TrainingError("far enough")

        monkeypatch.setattr("sara_core.commands.train.prepare_training", stop)
        assert main(["train", "base", *map(str, words[:-1]), str(tmp_path / "out.safetensors"), *words[-1]]) == 1
        return taken

    return ask


@pytest.fixture
def two_folders(tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        for name in "ab":
            saved(folder / f"{name}.png", Image.new("RGB", (96, 64), RED))
        (folder / "a.txt").write_text("a cat")
    return folders


OPTIONS = {
    "": ({}, Captioning(), (1, 1)),
    "--trigger ohwx": ({}, Captioning("ohwx"), (1, 1)),
    "--caption picture": ({}, Captioning("", "picture"), (1, 1)),
    "--flip": ({"mirrored_too": True}, Captioning(), (1, 1)),
    "--repeats 2,3": ({}, Captioning(), (2, 3)),
}


@pytest.mark.parametrize("options", OPTIONS)
def test_the_options_are_those_of_the_library(asked, two_folders, options):
    more, captioning, repeats = OPTIONS[options]
    expected = read_folders(map(Share, two_folders, repeats), captioning, **more).images
    images, resolution, buckets = asked(*two_folders, options.split())
    assert images == expected and (resolution, buckets) == (512, False)
    assert len(images) == {"": 2, "--flip": 4, "--repeats 2,3": 5}.get(options, 4)


def test_buckets_are_asked_for(asked, two_folders):
    assert asked(two_folders[0], ["--buckets", "--resolution", "128"])[1:] == [128, True]


@pytest.mark.parametrize("repeats, words", [
    ("1,2,3", "--repeats has 3 numbers for 2 folders"), ("0,1", "argument --repeats"), ("1,x", "argument --repeats"),
])  # fmt: skip
def test_repeats_that_do_not_fit_are_refused(two_folders, tmp_path, capsys, repeats, words):
    arguments = ["train", "base", *map(str, two_folders), str(tmp_path / "out.safetensors"), "--repeats", repeats]
    try:
        assert main(arguments) == 1
    except SystemExit as end:
        assert end.code == 2
    assert words in capsys.readouterr().err


def test_pictures_are_encoded_in_their_bucket_and_mirrored(base, tmp_path):
    picture = Image.new("RGB", (256, 64), RED)
    picture.paste(BLUE, (128, 0, 256, 64))
    exchanged = saved(tmp_path / "b.png", picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    path = saved(tmp_path / "a.png", picture)
    images = [CaptionedImage(path, "x"), CaptionedImage(path, "x", True), CaptionedImage(exchanged, "x")]
    prepared = prepare_training(base, images, 128, torch.device("cpu"), buckets=True)
    latents = [sample.latent for sample in prepared.samples]
    height, width = latents[0].shape[1:]
    assert width == 4 * height and torch.equal(latents[1], latents[2]) and not torch.equal(latents[0], latents[1])


def test_a_resolution_without_buckets_is_refused(base, tmp_path):
    images = [CaptionedImage(saved(tmp_path / "a.png", Image.new("RGB", (64, 64))), "x")]
    with pytest.raises(TrainingError, match="multiple of 64, not 32"):
        prepare_training(base, images, 32, torch.device("cpu"), buckets=True)


def test_a_snapshot_from_before_buckets_is_of_a_run_without():
    assert as_written_now({}, {"resolution": 512})[1]["buckets"] is False
