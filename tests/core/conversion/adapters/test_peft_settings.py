"""LoRA, DoRA, LoHa, LoKr and Super-Tuning's hybrid as PEFT and diffusers save them, with PEFT's merging as the measure.

What scales them stands beside the tensors, in PEFT's settings.
"""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from sara_core.conversion.read import read_delta
from sara_core.errors import DeltaError
from tests.support.foreign_files import pipeline_folder, small_sd3, small_unet, weights_of

# PEFT tells of patterns that fit nothing in one of the models.
pytestmark = pytest.mark.filterwarnings("ignore")

LORA_LAYERS = {small_unet: ["to_q", "ff.net.0.proj", "conv1"], small_sd3: ["to_k", "add_v_proj", "norm_out.linear"]}
ALL = LORA_LAYERS[small_unet]


def lora(layers, **options):
    return peft.LoraConfig(r=4, lora_alpha=6, target_modules=layers, init_lora_weights=False, **options)


CONFIGS = {
    "alpha": lora,
    "rsLoRA": lambda layers: lora(layers, use_rslora=True),
    "alpha_pattern": lambda layers: lora(layers, alpha_pattern={"to_q": 3, "^conv_in": 9, "norm_out.linear": 11}),
    "alpha_pattern of whole names and expressions": lambda layers: lora(
        layers,
        alpha_pattern={"mid_block.resnets.1.conv1": 5, r"down_blocks\.\d+.*attn1.to_q": 2, ".*to_k": 13, "conv1": 7},
    ),
    "rank_pattern": lambda layers: lora(layers, rank_pattern={"to_q": 2, "add_v_proj": 8}),
    "all of them": lambda layers: lora(layers, use_rslora=True, rank_pattern={"to_q": 2, "to_k": 8},
                                       alpha_pattern={"to_q": 2, "add_v_proj": 1.5}),
    "bias": lambda layers: lora([layer for layer in layers if layer != "to_q"], lora_bias=True),
    "biases as a whole": lambda layers: lora(layers, bias="all"),
    "layers as a whole": lambda layers: lora(layers, modules_to_save=["proj_out"]),
    "DoRA": lambda layers: lora(layers, use_dora=True),
    "DoRA and rsLoRA": lambda layers: lora(layers, use_dora=True, use_rslora=True, rank_pattern={"to_q": 2}),
    "LoHa": lambda layers: peft.LoHaConfig(r=4, alpha=6, target_modules=layers, init_weights=False,
                                           alpha_pattern={"to_q": 3}),
    "LoHa with a core": lambda layers: peft.LoHaConfig(r=4, alpha=6, target_modules=layers, init_weights=False,
                                                       use_effective_conv2d=True),
    "LoKr": lambda layers: peft.LoKrConfig(r=4, alpha=6, target_modules=layers, init_weights=False,
                                           rank_pattern={"to_q": 32, "to_k": 64}),
    "LoKr of two ranks": lambda layers: peft.LoKrConfig(r=2, alpha=6, target_modules=layers, init_weights=False,
                                                        decompose_both=True, alpha_pattern={"to_q": 3}),
}  # fmt: skip


def saved(make, config, folder):
    """An adapter with random values, saved by PEFT, and the model with it, loaded again and merged.

    PEFT sorts the settings when it saves them, and the first pattern that fits counts.
    """
    torch.manual_seed(1)
    adapted = peft.get_peft_model(make(), config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "magnitude" in name or parameter.requires_grad and "lora_" not in name:
                parameter *= 1 + 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(folder)
    return peft.PeftModel.from_pretrained(make(), folder).merge_and_unload()


def assert_does_the_same(file, base, tuned, folder, tolerance=1e-5):
    """Applied to the base, the delta of the file gives the weights of the tuned model."""
    before, weights = weights_of(base), weights_of(base)
    expected = weights_of(pipeline_folder(folder, tuned))
    delta = read_delta(file, base, density=1.0).delta
    delta.apply_(weights)
    assert delta.entries.keys() == {name for name in before if not torch.equal(before[name], expected[name])}
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("make", LORA_LAYERS)
@pytest.mark.parametrize("kind", CONFIGS)
def test_an_adapter_of_pefts_does_what_it_does_in_peft(tmp_path, make, kind):
    base = pipeline_folder(tmp_path / "base", make())
    tuned = saved(make, CONFIGS[kind](LORA_LAYERS[make]), tmp_path / "lora")
    assert_does_the_same(tmp_path / "lora", base, tuned, tmp_path / "tuned")


@pytest.mark.parametrize("make", LORA_LAYERS)
@pytest.mark.parametrize("kind", ["alpha", "all of them", "DoRA"])
def test_a_lora_of_diffusers_does_what_it_does_in_diffusers(tmp_path, make, kind):
    """Its settings stand in the file's metadata."""
    torch.manual_seed(1)
    base, tuned = pipeline_folder(tmp_path / "base", make()), make()
    tuned.add_adapter(CONFIGS[kind](LORA_LAYERS[make]))
    tuned.save_lora_adapter(tmp_path / "lora")
    tuned.fuse_lora()
    tuned.unload_lora()
    assert_does_the_same(tmp_path / "lora", base, tuned, tmp_path / "tuned")


def test_a_pipelines_lora_has_its_settings_behind_the_name_of_its_part(tmp_path):
    base = pipeline_folder(tmp_path / "base", small_unet())
    tuned = saved(small_unet, CONFIGS["all of them"](ALL), tmp_path / "lora")
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    settings = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    metadata = {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in settings.items()})}
    save_file({name.replace("base_model.model.", "unet."): tensor for name, tensor in tensors.items()},
              tmp_path / "pytorch_lora_weights.safetensors", metadata)  # fmt: skip
    assert_does_the_same(tmp_path / "pytorch_lora_weights.safetensors", base, tuned, tmp_path / "tuned")


def hybrid(**options):
    return peft.SupertuningConfig(sparsity=0.95, target_modules=["to_q", "ff.net.2"], init_weights=False, **options)


@pytest.mark.parametrize("make", LORA_LAYERS)
@pytest.mark.parametrize("options", [{"r": 2}, {"r": 2, "lora_alpha": 3}])
def test_a_super_tuning_hybrid_is_the_sum_of_its_parts(tmp_path, make, options):
    base = pipeline_folder(tmp_path / "base", make())
    tuned = saved(make, hybrid(**options), tmp_path / "hybrid")
    assert_does_the_same(tmp_path / "hybrid", base, tuned, tmp_path / "tuned")
    with pytest.raises(DeltaError, match="Choose a density"):
        read_delta(tmp_path / "hybrid", base)


def test_a_hybrid_without_its_settings_or_positions_says_what_to_do(tmp_path):
    base = pipeline_folder(tmp_path / "base", small_unet())
    saved(small_unet, hybrid(r=2), tmp_path / "hybrid")
    saved(small_unet, hybrid(r=2, save_precomputed_indices=False), tmp_path / "without")
    (tmp_path / "hybrid" / "adapter_config.json").unlink()
    with pytest.raises(DeltaError, match="adapter_config.json"):
        read_delta(tmp_path / "hybrid", base, density=0.1)
    with pytest.raises(DeltaError, match="save_precomputed_indices=True"):
        read_delta(tmp_path / "without", base, density=0.1)


def test_a_hybrid_whose_positions_occur_twice_is_refused(tmp_path):
    base = pipeline_folder(tmp_path / "base", small_unet())
    saved(small_unet, hybrid(r=2), tmp_path / "hybrid")
    path = tmp_path / "hybrid" / "adapter_model.safetensors"
    tensors = load_file(path)
    positions = next(tensor for name, tensor in tensors.items() if name.endswith("supertuning_indices"))
    positions[1] = positions[0]
    save_file(tensors, path)
    with pytest.raises(DeltaError, match="duplicated"):
        read_delta(tmp_path / "hybrid", base, density=0.1)


LAYER = "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
SETTINGS = {"peft_type": "LORA", "r": 4, "lora_alpha": 6}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return pipeline_folder(tmp_path_factory.mktemp("peft") / "base", small_unet())


def written(folder, settings, tensors=None):
    folder.mkdir(exist_ok=True)
    tensors = tensors or {f"{LAYER}.lora_A.weight": torch.ones(4, 64), f"{LAYER}.lora_B.weight": torch.ones(64, 4)}
    save_file(tensors, folder / "adapter_model.safetensors")
    text = settings if isinstance(settings, str) else json.dumps(settings)
    (folder / "adapter_config.json").write_text(text)
    return folder


DAMAGED = {
    "too deep": "[" * 100_000,
    "not JSON": "not JSON",
    "a list": "[1, 2]",
    "nothing": "",
    "alpha as text": {**SETTINGS, "lora_alpha": "6"},
    "alpha NaN": '{"peft_type": "LORA", "lora_alpha": NaN}',
    "alpha too large": f'{{"peft_type": "LORA", "lora_alpha": 1{"0" * 400}}}',
    "a rank of nothing": {**SETTINGS, "r": 0},
    "a rank that is no number": {**SETTINGS, "r": [4]},
    "a type that is no text": {**SETTINGS, "peft_type": ["LORA"]},
    "an adapter of another kind": {**SETTINGS, "peft_type": "VERA"},
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_settings_beside_a_lora_do_no_harm(tmp_path, base, what):
    try:
        conversion = read_delta(written(tmp_path / "lora", DAMAGED[what]), base, density=0.001)
    except DeltaError:
        return
    assert conversion.delta.nnz


PATTERNS = {
    "a list": ["to_q"],
    "text for a number": {"to_q": "6"},
    "infinite": {"to_q": float("inf")},
    "no expression": {"to_(q": 6},
    "a group repeated": {"(a+)+b": 6},
    "a group repeated after a space": {"(a+) {3}b": 6},
    "a choice in a choice": {"(a|a)" * 60: 6},
    "many stars": {".*" * 20: 6},
    "a look back": {"(?<=a)b": 6},
    "a reference back": {r"(a*)\1": 6},
    "a long one": {"a" * 300: 6},
    "very many": {f"to_{number}": 6 for number in range(5000)},
    "many with choices": {f"to_.*{number}": 6 for number in range(50)},
    "a huge repetition": {"a{99999999999}": 6},
}


@pytest.mark.parametrize("what", PATTERNS)
@pytest.mark.parametrize("setting", ["alpha_pattern", "rank_pattern"])
def test_patterns_that_are_no_patterns_or_could_take_for_ever_are_refused(tmp_path, base, what, setting):
    with pytest.raises(DeltaError, match="settings beside the LoRA"):
        read_delta(written(tmp_path / "lora", {**SETTINGS, setting: PATTERNS[what]}), base, density=0.1)


def test_the_worst_of_the_allowed_patterns_is_matched_in_a_moment(tmp_path, base):
    """The count of steps is bounded: this would not end in a lifetime if it were exponential."""
    patterns = {f"{'.*' * 3}{number}x": 6 for number in range(16)}
    assert read_delta(written(tmp_path / "lora", {**SETTINGS, "alpha_pattern": patterns}), base, density=0.1).delta.nnz


def test_the_first_pattern_that_fits_counts(tmp_path, base):
    changes = []
    for patterns in ({"to_q": 2, "attn1.to_q": 4}, {"attn1.to_q": 4, "to_q": 2}, {"o_q": 2}):
        path = written(tmp_path / "lora", {**SETTINGS, "alpha_pattern": patterns})
        (entry,) = read_delta(path, base, density=1.0).delta.entries.values()
        changes.append(float(entry.values[0]))
    assert changes == [2.0, 4.0, 6.0]


SPARSE = {"values": torch.ones(3), "indices": torch.tensor([7, 3, 5], dtype=torch.int32),
          "lora_A.weight": torch.ones(2, 64), "lora_B.weight": torch.ones(64, 2)}  # fmt: skip
HYBRIDS = {
    "one factor missing": {"lora_A.weight": None},
    "factors that do not fit": {"lora_A.weight": torch.ones(3, 64)},
    "twice the same position": {"indices": torch.tensor([7, 7, 5], dtype=torch.int32)},
    "a position too far": {"indices": torch.tensor([7, 4096, 5], dtype=torch.int32)},
    "values missing": {"values": None},
    "values NaN": {"values": torch.ones(3) * float("nan")},
    "something else": {"wonder": torch.ones(3)},
}


@pytest.mark.parametrize("what", HYBRIDS)
def test_hostile_hybrids_are_refused(tmp_path, base, what):
    tensors = {f"{LAYER}.supertuning_{part}": tensor for part, tensor in (SPARSE | HYBRIDS[what]).items()
               if tensor is not None}  # fmt: skip
    path = written(tmp_path / "hybrid", {**SETTINGS, "peft_type": "SUPERTUNING"}, tensors)
    with pytest.raises(DeltaError):
        read_delta(path, base, density=0.5)
