"""Adapters of kinds that cannot be read are called by their names, whichever of PEFT's or LyCORIS' they are; those that
can be read give what their own library computes."""

import json

import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from safetensors.torch import load_file, save_file

from sara_core.commands.remedies import load_delta
from sara_core.conversion.adapters.kinds import KINDS
from sara_core.conversion.read import read_delta
from sara_core.errors import DeltaError
from tests.support.toy_adapters import COLUMNS, LAYER, ROWS, SHAPES, base_file, changes, numbers, of_module, saved

pytestmark = pytest.mark.filterwarnings("ignore")


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.o = torch.nn.Linear(32, 64), torch.nn.Linear(64, 32, bias=False)
        self.conv, self.norm = torch.nn.Conv2d(4, 6, 3), torch.nn.LayerNorm(32)

    def forward(self, x):
        return self.norm(self.o(self.q(x)))


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.blocks = torch.nn.ModuleList([Block(), Block()])

    def forward(self, x):
        return self.blocks[1](self.blocks[0](x))


LAYERS = {"target_modules": ["q", "o"]}
# What a kind needs beside its layers; for those that are scaled, by other than 1.
OPTIONS = {
    "LORA": {"lora_alpha": 20}, "LOHA": {"alpha": 20}, "LOKR": {"alpha": 20},
    "ADALORA": {"total_step": 10}, "BOFT": {"boft_block_size": 4}, "C3A": {"block_size": 8},
    "FOURIERFT": {"n_frequency": 50}, "IA3": {"feedforward_modules": ["o"]}, "LN_TUNING": {"target_modules": ["norm"]},
    "MISS": {"r": 8}, "OFT": {"r": 0, "oft_block_size": 8}, "ROAD": {"group_size": 16}, "SHIRA": {"r": 2},
    "VBLORA": {"num_vectors": 16, "vector_length": 8}, "WAVEFT": {"n_frequency": 64},
}  # fmt: skip
READ = {"LORA", "LOHA", "LOKR", "IA3", "LN_TUNING", "SHIRA", "SUPERTUNING"}
# They are for language models: prompts and routers, which take a whole transformer to begin with.
OF_TEXT = {"ADAPTION_PROMPT", "CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING",
           "PROMPT_TUNING", "SHADOW", "XLORA"}  # fmt: skip
TYPES = {kind.value: PEFT_TYPE_TO_CONFIG_MAPPING[kind] for kind in PEFT_TYPE_TO_TUNER_MAPPING}


def saved_by_peft(folder, name):
    """The adapter as PEFT begins it, with other numbers where it would change nothing."""
    model = peft.get_peft_model(Model(), TYPES[name](**LAYERS | OPTIONS.get(name, {})))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "base.safetensors"
    save_file(Model().state_dict(), path)
    return path


@pytest.mark.parametrize("name", sorted(TYPES.keys() - READ - OF_TEXT))
def test_every_kind_of_pefts_that_cannot_be_read_is_called_by_its_name(tmp_path, model_file, name):
    folder = saved_by_peft(tmp_path / "adapter", name)
    with pytest.raises(DeltaError, match="The file is .* of PEFT .*Merge it into the model.*with PEFT"):
        read_delta(folder, model_file, density=1.0)
    with pytest.raises(DeltaError, match="It looks like .* of PEFT. Make a delta of it first"):
        load_delta(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("name", sorted(READ - {"SHIRA", "SUPERTUNING"}))
def test_what_can_be_read_does_what_it_does_in_peft(tmp_path, model_file, name):
    folder = saved_by_peft(tmp_path / "adapter", name)
    before = Model().state_dict()
    after = peft.PeftModel.from_pretrained(Model(), folder).merge_and_unload().state_dict()
    found, _ = changes(folder, model_file)
    assert found.keys() == {name for name in before if not torch.equal(before[name], after[name])}
    for weight, change in found.items():
        torch.testing.assert_close(before[weight] + change, after[weight], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("feedforward", [True, False])
def test_a_convolution_of_pefts_ia3_is_read_by_its_shape(tmp_path, model_file, feedforward):
    config = peft.IA3Config(target_modules=["conv"], feedforward_modules=["conv"] if feedforward else [],
                            init_ia3_weights=False)  # fmt: skip
    peft.get_peft_model(Model(), config).save_pretrained(tmp_path / "ia3")
    after = peft.PeftModel.from_pretrained(Model(), tmp_path / "ia3").merge_and_unload().state_dict()
    found, _ = changes(tmp_path / "ia3", model_file)
    assert any(name.endswith("bias") for name in found) is not feedforward
    for name, weight in Model().state_dict().items():
        torch.testing.assert_close(weight + found.get(name, 0), after[name])


def test_pefts_ia3_of_as_many_inputs_as_outputs_is_refused(tmp_path):
    assert SHAPES["blocks.0.square.weight"][:2] == (4, 4)
    path = saved(tmp_path / "x.safetensors", {"blocks.0.square.ia3_l": numbers(1, 4, 1, 1)})
    with pytest.raises(DeltaError, match="whether its 'blocks.0.square' is of the layer's inputs or outputs"):
        read_delta(path, base_file(tmp_path), density=1.0)


@pytest.mark.parametrize("begun", ["pissa", "pissa_niter_4", "olora"])
def test_a_lora_whose_beginning_was_taken_from_the_model_is_refused_by_it(tmp_path, model_file, begun):
    config = peft.LoraConfig(r=2, target_modules=["q"], init_lora_weights=begun)
    peft.get_peft_model(Model(), config).save_pretrained(tmp_path / "lora")
    with pytest.raises(DeltaError, match=f"begun by '{begun}', for which PEFT changes the model's weights"):
        read_delta(tmp_path / "lora", model_file, density=1.0)
    metadata = {"lora_adapter_metadata": json.dumps({"lora_alpha": 4, "init_lora_weights": begun})}
    path = saved(tmp_path / "x.safetensors", load_file(tmp_path / "lora" / "adapter_model.safetensors"), metadata)
    with pytest.raises(DeltaError, match=f"begun by '{begun}'"):
        read_delta(path, model_file, density=1.0)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.called)
def test_each_kind_of_the_table_is_called_by_its_name_wherever_its_mark_stands(tmp_path, kind):
    base = base_file(tmp_path)
    for mark in kind.marks:
        name = f"{LAYER}{mark}" if mark.endswith(("scale_weight", "weight_scale")) else f"{LAYER}{mark}x.weight"
        path = saved(tmp_path / "x.safetensors", {name: numbers(3), **GOOD})
        with pytest.raises(DeltaError, match="which cannot be converted: .*Merge it into the model") as error:
            read_delta(path, base, density=1.0)
        assert f"The file is {kind.called} (by its '{name}')" in str(error.value)


GOOD = of_module("blocks.1.q", {".lora_up.weight": numbers(ROWS, 2), ".lora_down.weight": numbers(2, COLUMNS)})


def test_of_a_text_encoder_any_kind_is_left_out(tmp_path):
    beside = {"lora_te1_layers_0_q.oft_diag": numbers(3), "text_encoder.layers.0.q.vera_lambda_b": numbers(3)}
    _, conversion = changes(saved(tmp_path / "x.safetensors", GOOD | beside), base_file(tmp_path))
    assert conversion.left_out == sorted(beside)


def test_an_adapter_of_pefts_that_nobody_knows_is_no_whole_model(tmp_path):
    path = saved(tmp_path / "x.safetensors", {f"base_model.model.{LAYER}.wonder.weight": numbers(3)})
    with pytest.raises(DeltaError, match="modules do not exist|unknown kind"):
        read_delta(path, base_file(tmp_path), density=1.0)
    with pytest.raises(DeltaError, match="It looks like an adapter of PEFT"):
        load_delta(path)
