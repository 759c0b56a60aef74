"""Files of the SaRA authors' optimizers: by the order of parameters and the base's mask, exactly or not at all."""

import math
import zipfile

import diffusers
import pytest
import torch

from sara_core.conversion.read import read_delta
from sara_core.errors import DeltaError
from sara_core.models.base import opened_base
from sara_core.names.parameter_order import parameter_order
from tests.core.names.test_resolve import MODELS
from tests.support.foreign_files import assert_equal_weights, checkpoint_file, pipeline_folder, small_unet, weights_of

THETA = 0.02


def masks_of(model, theta=THETA):
    return [(parameter.detach().abs() < theta) for parameter in model.parameters()]


def trained(model, masks, seed=1):
    """What training leaves in the elements of the masks: other values, some of them as they were."""
    generator = torch.Generator().manual_seed(seed)
    for parameter, mask in zip(model.parameters(), masks, strict=True):
        change = torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * THETA
        change[torch.rand(parameter.shape, generator=generator) < 0.1] = 0
        parameter.data[mask] += change[mask]


def first_optimizers_file(model, masks, theta=THETA):
    """It holds tensors in the model's place that are part of autograd's graph."""
    values = (parameter.detach().requires_grad_() * 1 for parameter in model.parameters())
    return {"threshold": theta, **{i: value[mask] for i, (value, mask) in enumerate(zip(values, masks))}}


def second_optimizers_file(model, masks, theta=THETA):
    with torch.no_grad():
        return {"threshold": theta, **{i: p[mask] for i, (p, mask) in enumerate(zip(model.parameters(), masks))}}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Folders of a base and of what was trained on it, and the content of the file for it."""
    folder = tmp_path_factory.mktemp("original")
    model = small_unet()
    base, masks = pipeline_folder(folder / "base", model), masks_of(model)
    trained(model, masks)
    return base, pipeline_folder(folder / "tuned", model), second_optimizers_file(model, masks)


@pytest.mark.parametrize(
    "name", ["SD1.5", "SD2.x", "SD2.x unCLIP", "SDXL", "one block a level", "three blocks a level"]
)
def test_the_order_of_parameters_is_diffusers_own(name):
    kind, config = MODELS[name]
    with torch.device("meta"):
        names = [parameter for parameter, _ in kind(**config).named_parameters()]
    assert parameter_order(sorted(names)) == names


@pytest.mark.parametrize("save", [first_optimizers_file, second_optimizers_file])
def test_both_optimizers_files_give_the_trained_model_bit_for_bit(tmp_path, save):
    model = small_unet()
    base, masks = pipeline_folder(tmp_path / "base", model), masks_of(model)
    trained(model, masks)
    torch.save(save(model, masks), tmp_path / "unet.pt")
    conversion = read_delta(tmp_path / "unet.pt", base)
    weights = weights_of(base)
    conversion.delta.apply_(weights)
    assert_equal_weights(weights, weights_of(pipeline_folder(tmp_path / "tuned", model)))
    assert conversion.lost == 0 and "SaRA authors" in conversion.text()
    values = [entry.values for entry in conversion.delta.entries.values()]
    assert all(one.dtype == torch.float32 and not one.requires_grad for one in values)


def test_values_that_did_not_change_are_no_changes(tmp_path, case):
    base, tuned, content = case
    torch.save(content, tmp_path / "unet.pt")
    before, after = weights_of(base), weights_of(tuned)
    differing = sum(int((before[name] != after[name]).sum()) for name in before)
    assert 0 < read_delta(tmp_path / "unet.pt", base).delta.nnz == differing


@pytest.mark.parametrize("form", ["checkpoint", "diffusion model", "one diffusers file", "sharded"])
def test_the_base_may_come_in_any_form(tmp_path, case, form):
    folder, tuned, content = case
    torch.save(content, tmp_path / "unet.pt")
    if form == "checkpoint":
        base = checkpoint_file(tmp_path / "base.safetensors", weights_of(folder))
    elif form == "diffusion model":
        from safetensors.torch import save_file

        base = tmp_path / "base.safetensors"
        save_file({name.removeprefix("diffusion_model."): t for name, t in weights_of(folder).items()}, base)
    elif form == "one diffusers file":
        base = folder / "unet" / "diffusion_pytorch_model.safetensors"
    else:
        base = pipeline_folder(tmp_path / "base", small_unet(), max_shard_size="300KB")
        assert len(list((base / "unet").glob("*.safetensors"))) > 1
    assert_equal_weights(
        {name: entry.values for name, entry in read_delta(tmp_path / "unet.pt", base).delta.entries.items()},
        {name: entry.values for name, entry in read_delta(tmp_path / "unet.pt", folder).delta.entries.items()},
    )


def test_a_file_that_was_trained_in_fp16_fits_its_fp16_base(tmp_path):
    model = small_unet().half()
    base, masks = pipeline_folder(tmp_path / "base", model, variant="fp16"), masks_of(model)
    trained(model, masks)
    torch.save(second_optimizers_file(model, masks), tmp_path / "unet.pt")
    weights = weights_of(base)
    read_delta(tmp_path / "unet.pt", base).delta.apply_(weights)
    assert_equal_weights(weights, weights_of(pipeline_folder(tmp_path / "tuned", model, variant="fp16")))


def test_an_fp16_base_of_a_file_trained_in_fp32_names_the_layer_and_asks_for_fp32(tmp_path, case):
    folder, _, content = case
    torch.save(content, tmp_path / "unet.pt")
    base = checkpoint_file(tmp_path / "half.safetensors", weights_of(folder), torch.float16)
    words = r"values for '[a-z_0-9.]+\.weight'.*half.*fp16.*Give the fp32 version"
    with pytest.raises(DeltaError, match=words) as error:
        read_delta(tmp_path / "unet.pt", base)
    named = str(error.value).split("'")[1]
    assert named in dict(small_unet().named_parameters())


def test_another_model_of_the_same_layout_names_the_layer_and_asks_for_the_one_trained_on(tmp_path, case):
    _, _, content = case
    torch.save(content, tmp_path / "unet.pt")
    with pytest.raises(DeltaError, match="values for 'conv_in.weight'.*exactly the model"):
        read_delta(tmp_path / "unet.pt", pipeline_folder(tmp_path / "other", small_unet(seed=5)))


def test_a_precision_without_a_short_name_is_called_what_torch_calls_it(tmp_path, case):
    torch.save(case[2], tmp_path / "unet.pt")
    double = checkpoint_file(
        tmp_path / "x.safetensors", weights_of(pipeline_folder(tmp_path / "other", small_unet(seed=5))), torch.float64
    )
    with pytest.raises(DeltaError, match=r"in 'x' \(float64\)|in 'x.safetensors' \(float64\)"):
        read_delta(tmp_path / "unet.pt", double)


def test_a_model_of_another_size_says_what_the_file_is_for(tmp_path):
    content = {"threshold": THETA, **{number: torch.zeros(1) for number in range(686)}}
    torch.save(content, tmp_path / "unet.pt")
    with pytest.raises(DeltaError, match=r"686 parameters \(SD 1.x or SD 2.x\).*base.*has \d+"):
        read_delta(tmp_path / "unet.pt", pipeline_folder(tmp_path / "base", small_unet()))


def test_the_numbers_of_parameters_of_published_models_are_right():
    from sara_core.conversion.sparse.sara_authors import _MODELS

    for name, count in (("SD1.5", 686), ("SD2.x", 686), ("SDXL", 1680)):
        kind, config = MODELS[name]
        with torch.device("meta"):
            assert len(list(kind(**config).parameters())) == count and count in _MODELS


def test_without_a_base_it_asks_for_one(tmp_path, case):
    torch.save(case[2], tmp_path / "unet.pt")
    with pytest.raises(DeltaError, match="beside the base model"):
        read_delta(tmp_path / "unet.pt")


class Harmful:
    def __reduce__(self):
        return print, ("this ran",)


HOSTILE = {
    "no threshold": lambda c: {key: value for key, value in c.items() if key != "threshold"},
    "threshold NaN": lambda c: {**c, "threshold": math.nan},
    "threshold negative": lambda c: {**c, "threshold": -1.0},
    "threshold a tensor": lambda c: {**c, "threshold": torch.tensor(0.02)},
    "threshold a text": lambda c: {**c, "threshold": "0.02"},
    "a parameter missing": lambda c: {key: value for key, value in c.items() if key != 3},
    "a parameter under a negative number": lambda c: {(-3 if key == 3 else key): value for key, value in c.items()},
    "a key that is a text": lambda c: {**c, "3": torch.zeros(3)},
    "values of whole numbers": lambda c: {**c, 3: c[3].long()},
    "values in two dimensions": lambda c: {**c, 3: c[3][None]},
    "no tensor": lambda c: {**c, 3: [1.0, 2.0]},
    "too many values": lambda c: {**c, 3: torch.cat([c[3], c[3]])},
    "a small storage that claims to be huge": lambda c: {**c, 3: torch.zeros(1).expand(2**40)},
    "sparse": lambda c: {**c, 3: c[3].to_sparse()},
    "on no device": lambda c: {**c, 3: c[3].to("meta")},
    "NaN": lambda c: {**c, 3: torch.full_like(c[3], math.nan)},
    "infinite": lambda c: {**c, 3: torch.full_like(c[3], math.inf)},
    "a program object": lambda c: {**c, 3: Harmful()},
    "nothing": lambda c: {},
    "only a threshold": lambda c: {"threshold": 0.02},
    "a list": lambda c: [1, 2, 3],
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_are_refused(tmp_path, case, capsys, what):
    torch.save(HOSTILE[what](case[2]), tmp_path / "unet.pt")
    with pytest.raises(DeltaError):
        read_delta(tmp_path / "unet.pt", case[0])
    assert "this ran" not in capsys.readouterr().out


def test_members_that_are_compressed_or_lie_are_refused(tmp_path, case):
    torch.save(case[2], tmp_path / "unet.pt")
    with zipfile.ZipFile(tmp_path / "unet.pt") as plain, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as bomb:
        for member in plain.namelist():
            bomb.writestr(member, plain.read(member), zipfile.ZIP_DEFLATED)
    with pytest.raises(DeltaError, match="not written by torch.save"):
        read_delta(tmp_path / "bomb.pt", case[0])


def test_a_file_cut_anywhere_is_refused(tmp_path, case):
    torch.save({key: value for key, value in case[2].items() if key in ("threshold", 0)}, tmp_path / "unet.pt")
    whole = (tmp_path / "unet.pt").read_bytes()
    for length in range(0, len(whole), 97):
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        with pytest.raises(DeltaError):
            read_delta(tmp_path / "cut.pt", case[0])


def test_a_density_makes_no_sense_for_it(tmp_path, case):
    torch.save(case[2], tmp_path / "unet.pt")
    with pytest.raises(DeltaError, match="sparse already"):
        read_delta(tmp_path / "unet.pt", case[0], density=0.1)


def test_the_metadata_tells_where_the_delta_is_from(tmp_path):
    model = small_unet(cross_attention_dim=768)
    base, masks = pipeline_folder(tmp_path / "base", model), masks_of(model)
    trained(model, masks)
    torch.save(second_optimizers_file(model, masks), tmp_path / "unet.pt")
    metadata = read_delta(tmp_path / "unet.pt", base).delta.metadata
    assert metadata["sara.family"] == "SD1.5" and "SaRA authors" in metadata["sara.converted"]


@pytest.mark.parametrize("missing", ["folder", "file", "folder without a model", "checkpoint of another kind"])
def test_a_base_that_is_not_there_is_named(tmp_path, case, missing):
    torch.save(case[2], tmp_path / "unet.pt")
    base = tmp_path / {"file": "base.safetensors", "checkpoint of another kind": "base.ckpt"}.get(missing, "base")
    if missing == "folder without a model":
        base.mkdir()
    if missing == "checkpoint of another kind":
        base.write_bytes(b"PK")
    with pytest.raises(DeltaError, match="base"):
        read_delta(tmp_path / "unet.pt", base)


def test_a_sharded_model_with_a_missing_part_is_named(tmp_path, case):
    torch.save(case[2], tmp_path / "unet.pt")
    base = pipeline_folder(tmp_path / "base", small_unet(), max_shard_size="300KB")
    sorted((base / "unet").glob("*.safetensors"))[1].unlink()
    with pytest.raises(DeltaError, match="incomplete"):
        with opened_base(base):
            pass


def test_a_whole_pipeline_as_diffusers_saves_it_is_a_base(tmp_path):
    model = small_unet()
    vae = diffusers.AutoencoderKL(block_out_channels=(32,), down_block_types=("DownEncoderBlock2D",),
                                  up_block_types=("UpDecoderBlock2D",))  # fmt: skip
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae, text_encoder=None, tokenizer=None, unet=model, scheduler=diffusers.DDIMScheduler(clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(tmp_path / "pipeline")
    masks = masks_of(model)
    trained(model, masks)
    torch.save(first_optimizers_file(model, masks), tmp_path / "unet.pt")
    weights = weights_of(tmp_path / "pipeline")
    read_delta(tmp_path / "unet.pt", tmp_path / "pipeline").delta.apply_(weights)
    assert_equal_weights(weights, weights_of(pipeline_folder(tmp_path / "tuned", model)))


def test_the_unet_of_the_pipeline_is_loaded_again_by_diffusers(case):
    """The folders of these tests are what diffusers itself writes and reads."""
    model = diffusers.UNet2DConditionModel.from_pretrained(case[0] / "unet")
    assert_equal_weights(dict(model.named_parameters()), dict(small_unet().named_parameters()))
