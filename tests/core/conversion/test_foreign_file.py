"""Where in a file the named tensors are: by themselves, in the state of a run, or under the name of an adapter."""

import pytest
import torch

from sara_core.commands.remedies import load_delta
from sara_core.conversion.peft import plain_name
from sara_core.conversion.read import read_delta
from sara_core.errors import DeltaError
from tests.support.toy_adapters import COLUMNS, LAYER, ROWS, base_file, changes, factors, numbers, of_module, saved

LORA = of_module(f"lora_unet_{LAYER.replace('.', '_')}", factors())
OPTIMIZER = {"state": {0: {"exp_avg": numbers(3), "step": torch.tensor(4.0)}}, "param_groups": [{"lr": 1e-4}]}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_file(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def expected(base, tmp_path_factory):
    return changes(saved(tmp_path_factory.mktemp("plain") / "x.safetensors", LORA), base)[0]


NESTED = {
    "by themselves": LORA,
    "beside numbers": LORA | {"epoch": 3, "global_step": 100, "note": "mine", "args": {"lr": 1e-4}},
    "state_dict": {"state_dict": LORA},
    "state_dict of a run": {"epoch": 3, "global_step": torch.tensor(4), "state_dict": LORA, "optimizer": OPTIMIZER,
                            "hyper_parameters": {"rank": 2}},
    "model": {"model": LORA},
    "lora, and an optimizer": {"lora": LORA, "optimizer_states": [OPTIMIZER], "step": 7},
    "state_dict beside its mean": {"state_dict": LORA, "ema": {name: tensor * 2 for name, tensor in LORA.items()}},
    "parameters with a gradient": {
        name: torch.nn.Parameter(tensor) if tensor.dim() else tensor for name, tensor in LORA.items()
    },
    "deep": {"module": {"network": {"weights": LORA}}},
}  # fmt: skip


@pytest.mark.parametrize("where", NESTED)
@pytest.mark.parametrize("ending", [".pt", ".ckpt"])
def test_a_lora_in_the_state_of_a_run_is_found(tmp_path, base, expected, where, ending):
    torch.save(NESTED[where], tmp_path / f"x{ending}")
    found, conversion = changes(tmp_path / f"x{ending}", base)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], change) for name, change in expected.items())
    assert ("epoch" in conversion.left_out) == (where == "beside numbers")


def test_an_alpha_may_be_a_plain_number_there(tmp_path, base, expected):
    torch.save({"state_dict": LORA | {"lora_unet_blocks_0_q.alpha": 6.0}}, tmp_path / "x.ckpt")
    torch.testing.assert_close(changes(tmp_path / "x.ckpt", base)[0], {k: 3 * v for k, v in expected.items()})


def test_weights_in_several_places_are_refused_by_them(tmp_path, base):
    torch.save({"unet": LORA, "ema": dict(LORA), "epoch": 4}, tmp_path / "x.pt")
    with pytest.raises(DeltaError, match=r"weights in several places \(ema, unet\).*a file of their own"):
        read_delta(tmp_path / "x.pt", base, density=1.0)


def test_numbers_of_any_size_beside_the_tensors_do_no_harm(tmp_path, base, expected):
    torch.save({"epoch": 10**400, "seed": -(10**400), **LORA}, tmp_path / "x.pt")
    assert changes(tmp_path / "x.pt", base)[0].keys() == expected.keys()


def test_tables_within_themselves_and_numbers_alone_do_no_harm(tmp_path, base):
    table = {f"key {number}": None for number in range(300)}
    table |= dict.fromkeys(table, table)
    for content in (table, {"a": 10**400, "lora": {"x": 10**400}}):
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(DeltaError, match="nothing that can be converted"):
            read_delta(tmp_path / "x.pt", base, density=1.0)


FACTORS = {part: tensor for part, tensor in zip(("up", "down"), factors().values())}
A, B = FACTORS["down"], FACTORS["up"]
NAMED = {
    "default": {f"{LAYER}.lora_A.default.weight": A, f"{LAYER}.lora_B.default.weight": B},
    "a name of its own": {f"{LAYER}.lora_A.my_style.weight": A, f"{LAYER}.lora_B.my_style.weight": B},
    "a name like a word of the format": {f"{LAYER}.lora_A.lora_A.weight": A, f"{LAYER}.lora_B.lora_A.weight": B},
    "behind PEFT's prefix": {f"base_model.model.{LAYER}.lora_A.my style 2.weight": A,
                             f"base_model.model.{LAYER}.lora_B.my style 2.weight": B},
    "behind a prefix of diffusers": {f"transformer.{LAYER}.lora_A.default_0.weight": A,
                                     f"transformer.{LAYER}.lora_B.default_0.weight": B},
    "without an ending": {f"{LAYER}.lora_A.style": A, f"{LAYER}.lora_B.style": B},
}  # fmt: skip


@pytest.mark.parametrize("what", NAMED)
def test_peft_files_with_the_name_of_their_adapter_are_read(tmp_path, base, expected, what):
    path = saved(tmp_path / "x.safetensors", NAMED[what])
    found, conversion = changes(path, base)
    assert found.keys() == expected.keys() and not conversion.left_out
    assert all(torch.equal(found[name], change) for name, change in expected.items())
    with pytest.raises(DeltaError, match="It looks like a LoRA"):
        load_delta(path)


@pytest.mark.parametrize("name, plain", [
    ("x.lora_magnitude_vector.style.weight", "x.lora_magnitude_vector.weight"),
    ("x.lora_magnitude_vector.style", "x.lora_magnitude_vector"),
    ("x.hada_w1_a.style", "x.hada_w1_a"),
    ("x.lokr_w2.style", "x.lokr_w2"),
    ("x.ia3_l.style", "x.ia3_l"),
    ("x.ln_tuning_layers.style.bias", "x.ln_tuning_layers.bias"),
    ("x.lora_B.style.bias", "x.lora_B.bias"),
    ("x.shira_weight.style", "x.shira_weight"),
    ("x.modules_to_save.style.weight", "x.weight"),
])  # fmt: skip
def test_every_tensor_of_pefts_is_told_from_the_name_of_its_adapter(name, plain):
    assert plain_name(name) == (plain, "style")


@pytest.mark.parametrize("name", ["x.lora_A.weight", "x.lora_B.bias", "x.lora_A", "x.hada_w1_a", "x.alpha",
                                  "x.lora_magnitude_vector.weight", "x.lora_A_proj.weight"])  # fmt: skip
def test_names_without_an_adapters_stay(name):
    assert plain_name(name) == (name, None)


def test_several_adapters_in_one_file_are_refused_by_name(tmp_path, base):
    path = saved(tmp_path / "x.safetensors", NAMED["default"] | NAMED["a name of its own"])
    with pytest.raises(DeltaError, match=r"several adapters \(default, my_style\).*a file of its own"):
        read_delta(path, base, density=1.0)


def test_an_adapter_with_and_without_its_name_is_refused(tmp_path, base):
    tensors = {f"{LAYER}.lora_A.weight": A, f"{LAYER}.lora_B.weight": B, **NAMED["a name of its own"]}
    with pytest.raises(DeltaError, match="two tensors for one thing"):
        read_delta(saved(tmp_path / "x.safetensors", tensors), base, density=1.0)


def test_layers_that_are_saved_whole_under_an_adapters_name_are_read(tmp_path, base):
    tensors = NAMED["behind PEFT's prefix"] | {
        "base_model.model.blocks.1.q.modules_to_save.my style 2.weight": numbers(ROWS, COLUMNS)}  # fmt: skip
    assert "blocks.1.q.weight" in changes(saved(tmp_path / "x.safetensors", tensors), base)[0]


@pytest.mark.parametrize("kind", ["shira_weight", "supertuning_values"])
def test_a_sparse_layer_under_two_names_is_refused(tmp_path, base, kind):
    indices = torch.tensor([[0], [1]]) if kind == "shira_weight" else torch.tensor([1])
    tensors = {}
    for prefix in ("", "base_model.model."):
        tensors |= {f"{prefix}{LAYER}.{kind}": numbers(1)}
        tensors |= {f"{prefix}{LAYER}.{kind.partition('_')[0]}_indices": indices.int()}
    with pytest.raises(DeltaError, match="one weight under two names"):
        read_delta(saved(tmp_path / "x.safetensors", tensors), base)
