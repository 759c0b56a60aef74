"""Diffusers folders with weights in a variant (fp16): trained as the same folder without it."""

import shutil

import pytest
import torch

from sara_core import TrainingError
from sara_core.data.image_folder import read_image_folder
from sara_core.files.source import model_files
from sara_core.pipelines.prepare import prepare_training
from sara_core.pipelines.variants import needed_variants, only_variant
from tests.support import tiny_diffusers
from tests.support.small_models import every_bit, same_bits

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny_diffusers.image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """In values that fp16 holds exactly, so that the variant is the same model."""
    made = tiny_diffusers.pipeline(tmp_path_factory.mktemp("tokenizer"))
    for part in (made.unet, made.vae, made.text_encoder):
        part.to(torch.float16).to(torch.float32)
    return made


@pytest.fixture(scope="module")
def plain(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    pipeline.save_pretrained(folder)
    return folder


def prepared(folder, images, dtype=torch.float32):
    return prepare_training(folder, read_image_folder(images).images, 32, CPU, dtype)


def in_halves(pipeline, folder, **options):
    """The folder in fp16, which leaves the pipeline in fp32."""
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    for part in parts:
        part.half()
    pipeline.save_pretrained(folder, variant="fp16", **options)
    for part in parts:
        part.float()
    return folder


def only_fp16(pipeline, plain, folder):
    return in_halves(pipeline, folder)


def sharded(pipeline, plain, folder):
    in_halves(pipeline, folder, max_shard_size="400KB")
    assert len(list((folder / "unet").glob("*.fp16-0000*.safetensors"))) > 1
    return folder


def shards_named_as_once(pipeline, plain, folder):
    sharded(pipeline, plain, folder)
    unet = folder / "unet"
    index, = unet.glob("*.index.fp16.json")
    for shard in unet.glob("*.safetensors"):
        stem, number = shard.name.removesuffix(".safetensors").split(".fp16")
        name = f"{stem}{number}.fp16.safetensors"
        index.write_text(index.read_text().replace(shard.name, name))
        shard.rename(unet / name)
    return folder


def fp16_text_encoder(pipeline, plain, folder):
    in_halves(pipeline, folder)
    for part in ("unet", "vae"):
        shutil.rmtree(folder / part)
        shutil.copytree(plain / part, folder / part)
    return folder


def bf16_unet(pipeline, plain, folder):
    only_fp16(pipeline, plain, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.bf16.safetensors"))
    return folder


@pytest.mark.parametrize("make", [only_fp16, sharded, shards_named_as_once, fp16_text_encoder, bf16_unet])
def test_a_folder_with_variants_only_is_prepared_as_the_plain_one(make, pipeline, plain, images, tmp_path):
    there, expected = prepared(make(pipeline, plain, tmp_path / "it"), images), prepared(plain, images)
    assert there.model.dtype == torch.float32
    assert same_bits(every_bit(there.model), every_bit(expected.model))
    for sample, other in zip(there.samples, expected.samples):
        assert torch.equal(sample.latent, other.latent)
        assert all(torch.equal(value, other.conditions[name]) for name, value in sample.conditions.items())


def test_files_without_a_variant_go_before_it_in_every_part(pipeline, plain, images, tmp_path):
    folder = only_fp16(pipeline, plain, tmp_path / "both")
    with torch.no_grad():
        pipeline.unet.conv_in.weight += 1e-6
    pipeline.unet.save_pretrained(folder / "unet")
    model = prepared(folder, images).model
    assert torch.equal(model.conv_in.weight, pipeline.unet.conv_in.weight)
    assert model_files(folder)[0].name == "diffusion_pytorch_model.safetensors"
    with torch.no_grad():
        pipeline.unet.load_state_dict(prepared(plain, images).model.state_dict())


def test_the_dtype_that_is_asked_for_holds_in_variants_too(pipeline, plain, images, tmp_path):
    there = prepared(only_fp16(pipeline, plain, tmp_path / "it"), images, torch.bfloat16)
    assert there.model.dtype == torch.bfloat16 and there.samples[0].latent.dtype == torch.float32


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_pickles_only_are_refused_with_the_reason(variant, pipeline, images, tmp_path):
    pipeline.save_pretrained(tmp_path / "bin", safe_serialization=False, variant=variant)
    if not list((tmp_path / "bin" / "unet").glob("*.bin")):
        pytest.skip("this diffusers saves none")
    with pytest.raises(TrainingError, match="cannot be opened .*must be .safetensors files"):
        prepared(tmp_path / "bin", images)


def test_an_incomplete_variant_is_refused(pipeline, plain, images, tmp_path):
    folder = sharded(pipeline, plain, tmp_path / "it")
    next((folder / "unet").glob("*00002-of*.safetensors")).unlink()
    with pytest.raises(TrainingError, match="cannot be opened"):
        prepared(folder, images)


@pytest.mark.parametrize("names, variant", [
    (["model.safetensors", "model.fp16.safetensors"], None),
    (["model.bf16.safetensors", "model.fp16.safetensors"], "fp16"),
    (["diffusion_pytorch_model.non_ema.safetensors"], "non_ema"),
    (["diffusion_pytorch_model-00001-of-00002.safetensors", "diffusion_pytorch_model.fp16.safetensors"], None),
    (["model.fp16-00001-of-00002.safetensors"], "fp16"),
    (["some.other.safetensors"], None), ([], None),
])  # fmt: skip
def test_which_variant_a_folder_needs(names, variant, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    assert only_variant(tmp_path) == variant


def test_only_parts_of_the_pipeline_are_looked_at(tmp_path):
    for part in ("unet", "safety_checker"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "model.fp16.safetensors").touch()
    assert needed_variants(tmp_path, ["_class_name", "unet", "vae"]) == {"unet": "fp16"}


@pytest.mark.parametrize("there, opened, variant", [
    (["", ".fp16", ".non_ema"], [""], None),
    ([".non_ema", ".bf16"], [".bf16"], "bf16"),
    ([".non_ema"], [".non_ema"], "non_ema"),
    (["-00001-of-00002.fp16", "-00002-of-00002.fp16"], ["-00001-of-00002.fp16", "-00002-of-00002.fp16"], "fp16"),
    ([".fp16-00001-of-00002", ".fp16-00002-of-00002"], [".fp16-00001-of-00002", ".fp16-00002-of-00002"], "fp16"),
])  # fmt: skip
def test_training_and_the_other_commands_open_the_same_variant(tmp_path, there, opened, variant):
    unet = tmp_path / "unet"
    unet.mkdir()
    for name in there:
        (unet / f"diffusion_pytorch_model{name}.safetensors").touch()
    (unet / "model.safetensors").touch()
    assert [path.name for path in model_files(tmp_path)] == [f"diffusion_pytorch_model{n}.safetensors" for n in opened]
    (unet / "model.safetensors").unlink()
    assert only_variant(unet) == variant
