"""PEFT's settings beside a file count if they are that file's own; another adapter's in the same folder are left aside,
and the report says so."""

import json

import pytest
import torch

from sara_core.conversion.read import read_delta
from sara_core.errors import DeltaError
from tests.support.toy_adapters import COLUMNS, LAYER, ROWS, base_file, changes, numbers, of_module, saved

LORA = {f"base_model.model.{LAYER}.lora_A.weight": numbers(2, COLUMNS),
        f"base_model.model.{LAYER}.lora_B.weight": numbers(ROWS, 2)}  # fmt: skip
CHANGE = LORA[f"base_model.model.{LAYER}.lora_B.weight"] @ LORA[f"base_model.model.{LAYER}.lora_A.weight"]
OWN = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q", "blocks.0.conv"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_file(tmp_path_factory.mktemp("toy"))


def beside(folder, settings, name="adapter_model.safetensors", tensors=LORA):
    text = settings if isinstance(settings, str) else json.dumps(settings)
    (folder / "adapter_config.json").write_text(text)
    return saved(folder / name, tensors)


OWNS = {
    "ends of names": {},
    "a whole name": {"target_modules": [LAYER]},
    "an expression": {"target_modules": r".*\.(q|k)"},
    "all of a kind": {"target_modules": "all-linear"},
    "nothing": {"target_modules": None},
    "a rank by pattern": {"r": 64, "rank_pattern": {"q": 2}},
    "parameters": {"target_modules": ["other"], "target_parameters": [f"{LAYER}.weight"]},
}  # fmt: skip


@pytest.mark.parametrize("what", OWNS)
def test_its_own_settings_scale_a_file(tmp_path, base, what):
    found, conversion = changes(beside(tmp_path, OWN | OWNS[what]), base)
    torch.testing.assert_close(found[f"{LAYER}.weight"], 4 * CHANGE)
    assert "adapter_config.json" not in conversion.text()


ANOTHERS = {
    "a file of another name": ({}, "my style.safetensors", "PEFT calls the file that it belongs to adapter_model"),
    "diffusers' name": ({}, "pytorch_lora_weights.safetensors", "PEFT calls the file"),
    "another rank": ({"r": 4}, None, "it has rank 4 for 'blocks.0.q', and the file 2"),
    "another rank by pattern": ({"rank_pattern": {"q": 16}}, None, "it has rank 16"),
    "other layers": ({"target_modules": ["to_q", "to_k"]}, None, "for other layers than 'blocks.0.q'"),
    "a layer that only ends alike": ({"target_modules": ["sq", "0q"]}, None, "for other layers"),
    "another kind": ({"peft_type": "LOHA", "alpha": 8}, None, "it is of a LOHA"),
    "a kind that is not read": ({"peft_type": "VERA"}, None, "it is of a VERA"),
    "damage, beside a file of another name": ("{", "my style.safetensors", "PEFT calls the file"),
}


@pytest.mark.parametrize("what", ANOTHERS)
def test_the_settings_of_another_adapter_are_left_aside_and_named(tmp_path, base, what):
    settings, name, why = ANOTHERS[what]
    settings = settings if isinstance(settings, str) else OWN | settings
    found, conversion = changes(beside(tmp_path, settings, name or "adapter_model.safetensors"), base)
    torch.testing.assert_close(found[f"{LAYER}.weight"], CHANGE)
    assert "The adapter_config.json beside the file is not its own" in conversion.text() and why in conversion.text()


def test_where_every_module_has_its_alpha_nothing_is_said_of_settings(tmp_path, base):
    tensors = LORA | {f"base_model.model.{LAYER}.alpha": torch.tensor(6.0)}
    found, conversion = changes(beside(tmp_path, OWN, "my style.safetensors", tensors), base)
    torch.testing.assert_close(found[f"{LAYER}.weight"], 3 * CHANGE)
    assert "adapter_config.json" not in conversion.text()


def test_the_files_own_metadata_goes_before_what_is_beside_it(tmp_path, base):
    path = beside(tmp_path, OWN, "pytorch_lora_weights.safetensors")
    saved(path, LORA, {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 2, "transformer.r": 2})})
    found, conversion = changes(path, base)
    torch.testing.assert_close(found[f"{LAYER}.weight"], CHANGE)
    assert "not its own" not in conversion.text()


@pytest.mark.parametrize("kind, tensors, rank", [
    ("LOHA", {".hada_w1_a": numbers(ROWS, 2), ".hada_w1_b": numbers(2, COLUMNS), ".hada_w2_a": numbers(ROWS, 2),
              ".hada_w2_b": numbers(2, COLUMNS)}, 2),
    ("LOKR", {".lokr_w1": numbers(2, 2), ".lokr_w2_a": numbers(4, 1), ".lokr_w2_b": numbers(1, 3)}, 1),
    ("LOKR", {".lokr_w1": numbers(2, 2), ".lokr_w2": numbers(4, 3)}, 64),
])  # fmt: skip
def test_other_kinds_have_their_own_settings(tmp_path, base, kind, tensors, rank):
    tensors = of_module(f"base_model.model.{LAYER}", tensors)
    settings = {"peft_type": kind, "r": rank, "alpha": 3 * rank, "target_modules": ["q"]}
    alone = changes(saved(tmp_path / "alone.safetensors", tensors), base)[0][f"{LAYER}.weight"]
    scaled = changes(beside(tmp_path, settings, tensors=tensors), base)[0][f"{LAYER}.weight"]
    torch.testing.assert_close(scaled, 3 * alone)


def test_a_hybrid_is_not_scaled_by_anothers_settings(tmp_path, base):
    parts = {"values": torch.ones(1), "indices": torch.tensor([3], dtype=torch.int32),
             "lora_A.weight": numbers(2, COLUMNS), "lora_B.weight": numbers(ROWS, 2)}  # fmt: skip
    tensors = {f"base_model.model.{LAYER}.supertuning_{part}": tensor for part, tensor in parts.items()}
    settings = OWN | {"peft_type": "SUPERTUNING"}
    assert changes(beside(tmp_path, settings, tensors=tensors), base)[0]
    for folder, path in (("name", beside(tmp_path, settings, "my style.safetensors", tensors)),
                         ("rank", beside(tmp_path, settings | {"r": 4}, tensors=tensors))):  # fmt: skip
        with pytest.raises(DeltaError, match="hybrid with a LoRA inside"):
            read_delta(path, base, density=1.0)
