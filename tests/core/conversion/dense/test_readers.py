"""LoRAs as the programs take them that they are written for: read by ComfyUI and diffusers themselves, every layer
compared with the delta; and what of a delta each program's file leaves out."""

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.readers_ import in_comfyui, in_diffusers, in_peft
from benchmarks.readers_.cases import FAMILIES_TRIED, exported, judged, make_case
from sara_core.__main__ import main
from sara_core.conversion.dense.programs import PROGRAMS
from sara_core.conversion.read import read_delta
from sara_core.conversion.registry import WRITERS
from sara_core.conversion.write import write_delta
from sara_core.delta import SparseDelta, SparseEntry
from sara_core.delta.entry import dense
from sara_core.errors import DeltaError
from sara_core.names.families import FAMILIES

LORA_READERS = ("diffusers", "invokeai", "kohya")


@pytest.fixture(scope="module", params=FAMILIES_TRIED)
def case(request, tmp_path_factory):
    return make_case(request.param, tmp_path_factory.mktemp("case"))


def test_diffusers_loads_every_layer_and_no_other(case, tmp_path):
    report = exported(case, "diffusers", tmp_path / "x.safetensors")
    result = judged(case.changes, in_diffusers.changes_in(case, tmp_path / "x.safetensors"), report)
    assert not result["wrong"] and result["layers"]
    layers = {name for name, change in case.changes.items() if name.endswith(".weight") and change.dim() > 1}
    assert result["layers"] == len(layers) and result["missing"] == len(case.changes) - len(layers)


@pytest.mark.parametrize("to", ["lora", "diff"])
def test_comfyui_loads_everything(comfy, case, tmp_path, to):
    report = write_delta(case.delta, tmp_path / "x.safetensors", to, rank=4096)
    result = judged(case.comfyui_changes, in_comfyui.changes_in(case, tmp_path / "x.safetensors"), report)
    assert not result["wrong"] and result["layers"] == len(case.delta.entries) and not result["missing"]


def test_peft_loads_every_linear_layer_of_a_shira(case, tmp_path):
    report = write_delta(case.delta, tmp_path / "shira", "shira")
    result = judged(case.changes, in_peft.changes_in(case, tmp_path / "shira"), report)
    linear = {name for name, change in case.changes.items() if name.endswith(".weight") and change.dim() == 2}
    assert not result["wrong"] and result["layers"] == len(linear) and result["error"] < 1e-6


@pytest.mark.parametrize("reader", LORA_READERS)
def test_what_is_not_in_a_file_is_in_the_report(case, tmp_path, reader):
    """Every change is in the file or counted as left out; a family that is not taken is refused by name."""
    path = tmp_path / "x.safetensors"
    if case.family not in PROGRAMS[reader].layouts:
        with pytest.raises(DeltaError, match=f"LoRAs for {case.family} are not taken by {PROGRAMS[reader].title}"):
            exported(case, reader, path)
        assert not path.exists()
        return
    report = exported(case, reader, path)
    layout = PROGRAMS[reader].layout(FAMILIES[case.family])
    written = {name.rsplit(".", 2)[0] for name in load_file(path) if name.endswith(f"{layout.factors[0]}.weight")}
    changes = case.changes if layout.in_diffusers_names else case.comfyui_changes
    named = {layout.key(name.removesuffix(".weight")) for name in changes}
    assert written and written <= named
    missing = len(changes) - len(written)
    said = [int(line.split(": ")[1].split()[0]) for line in report.splitlines() if line.startswith("Left out")]
    assert sum(said) == missing > 0
    for line in report.splitlines():
        assert not line.startswith("Left out") or PROGRAMS[reader].title in line


def entry(shape, places=(3,), values=(1.0,)):
    return SparseEntry(torch.tensor(places, dtype=torch.int32), torch.tensor(values), shape)


def delta_of(shapes, **metadata):
    return SparseDelta({f"diffusion_model.{name}": entry(shape) for name, shape in shapes.items()}, metadata)


def keys_of(path):
    return {name.split(".lora_")[0].removesuffix(".alpha") for name in load_file(path)}


def test_a_layer_that_is_changed_without_its_like_is_loaded_too(tmp_path):
    """Wan's query without its key, one of Flux's three rows, one layer of Flux.2's end."""
    for family, name in (
        ("Wan 2.1", "blocks.1.cross_attn.q.weight"), ("Flux", "double_blocks.0.txt_attn.qkv.weight"),
        ("Flux.2", "final_layer.adaLN_modulation.1.weight"), ("Z-Image", "context_refiner.0.attention.qkv.weight"),
    ):  # fmt: skip
        case = make_case(family, tmp_path / family)
        case.delta.entries = {f"diffusion_model.{name}": entry(tuple(case.comfyui[name].shape), (5, 70), (1.0, -2.0))}
        report = exported(case, "diffusers", tmp_path / "x.safetensors")
        result = judged(case.changes, in_diffusers.changes_in(case, tmp_path / "x.safetensors"), report)
        assert not result["wrong"] and result["layers"] == 1 and not result["missing"]


def test_diffusers_gets_one_rank_for_all_and_no_alpha(tmp_path):
    delta = SparseDelta(
        {
            "diffusion_model.middle_block.1.proj_in.weight": entry((8, 8), (0, 9, 18, 27), (1.0, 2.0, 3.0, 4.0)),
            "diffusion_model.middle_block.0.in_layers.2.weight": entry((8, 4, 3, 3)),
        },
        {"sara.family": "SD1.5"},
    )
    report = write_delta(delta, tmp_path / "x.safetensors", "lora", rank=16, reader="diffusers")
    tensors = load_file(tmp_path / "x.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "unet.mid_block.attentions.0.proj_in.lora_A.weight": (4, 8),
        "unet.mid_block.attentions.0.proj_in.lora_B.weight": (8, 4),
        "unet.mid_block.resnets.0.conv1.lora_A.weight": (4, 4, 3, 3),
        "unet.mid_block.resnets.0.conv1.lora_B.weight": (8, 4, 1, 1),
    }
    assert "All layers have the rank 4" in report
    write_delta(delta, tmp_path / "kohya.safetensors", "lora", rank=16, reader="kohya")
    alphas = {name: float(t) for name, t in load_file(tmp_path / "kohya.safetensors").items() if name.endswith("alpha")}
    assert alphas == {
        "lora_unet_mid_block_attentions_0_proj_in.alpha": 4,
        "lora_unet_mid_block_resnets_0_conv1.alpha": 1,
    }


@pytest.mark.parametrize(
    ("family", "reader", "name", "shape", "key"),
    [
        ("SD1.5", "kohya", "input_blocks.1.1.proj_in", (4, 4, 1, 1), "lora_unet_down_blocks_0_attentions_0_proj_in"),
        ("SDXL", "kohya", "input_blocks.4.0.emb_layers.1", (4, 4), "lora_unet_input_blocks_4_0_emb_layers_1"),
        ("SD3", "kohya", "joint_blocks.0.x_block.attn.qkv", (12, 4), "lora_unet_joint_blocks_0_x_block_attn_qkv"),
        ("Flux", "kohya", "vector_in.in_layer", (4, 4), "lora_unet_vector_in_in_layer"),
        ("Wan 2.2", "kohya", "blocks.3.ffn.0", (8, 4), "lora_unet_blocks_3_ffn_0"),
        ("Qwen-Image", "kohya", "transformer_blocks.2.img_mod.1", (24, 4), "lora_unet_transformer_blocks_2_img_mod_1"),
        (
            "SDXL",
            "invokeai",
            "input_blocks.4.0.emb_layers.1",
            (4, 4),
            "lora_unet_down_blocks_1_resnets_0_time_emb_proj",
        ),
        ("Flux", "invokeai", "double_blocks.0.img_attn.qkv", (12, 4), "diffusion_model.double_blocks.0.img_attn.qkv"),
        ("Wan 2.1", "invokeai", "blocks.0.self_attn.o", (4, 4), "transformer.blocks.0.attn1.to_out.0"),
        ("Z-Image", "invokeai", "layers.0.attention.out", (4, 4), "diffusion_model.layers.0.attention.to_out.0"),
        (
            "Qwen-Image",
            "invokeai",
            "transformer_blocks.0.attn.to_q",
            (4, 4),
            "transformer.transformer_blocks.0.attn.to_q",
        ),
        ("SDXL", "diffusers", "label_emb.0.0", (4, 4), "unet.add_embedding.linear_1"),
        ("Z-Image", "diffusers", "x_embedder", (4, 4), "transformer.all_x_embedder.2-1"),
    ],
)
def test_each_program_finds_its_own_names(tmp_path, family, reader, name, shape, key):
    delta = delta_of({f"{name}.weight": shape}, **{"sara.family": family})
    write_delta(delta, tmp_path / "x.safetensors", "lora", reader=reader)
    assert keys_of(tmp_path / "x.safetensors") == {key}


def test_names_that_only_the_base_tells_are_told_by_the_base(case, tmp_path):
    """And a delta by diffusers' own names is written as well as one by ComfyUI's."""
    case.save(tmp_path)
    reader, base = "diffusers", tmp_path / "diffusers"
    expected = exported(case, reader, tmp_path / "said.safetensors")
    delta = SparseDelta(dict(case.delta.entries))
    assert write_delta(delta, tmp_path / "based.safetensors", "lora", base, 4096, reader=reader) == expected
    assert keys_of(tmp_path / "based.safetensors") == keys_of(tmp_path / "said.safetensors")
    own = SparseDelta({name: sparse(change) for name, change in case.changes.items()}, case.delta.metadata)
    write_delta(own, tmp_path / "own.safetensors", "lora", rank=4096, reader=reader)
    assert keys_of(tmp_path / "own.safetensors") == keys_of(tmp_path / "said.safetensors")


def sparse(change):
    places = change.reshape(-1).nonzero().view(-1)
    return SparseEntry(places.to(torch.int32), change.reshape(-1)[places], tuple(change.shape))


TIME, KEYS = "input_blocks.1.0.emb_layers.1.weight", "middle_block.1.transformer_blocks.0.attn2.to_k.weight"


def test_invokeai_is_not_told_the_wrong_family(tmp_path):
    """By the first of these layers in a file it tells the family, and any of the time's tells SDXL."""
    path = tmp_path / "x.safetensors"
    shapes = {TIME: (4, 1280), KEYS: (4, 768)}
    report = write_delta(delta_of(shapes), path, "lora", reader="invokeai")
    assert keys_of(path) == {"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"}
    assert "would be taken for SDXL's by InvokeAI: 1 with 50.00% of the squared change" in report
    early = {TIME: (4, 1280), KEYS.replace("middle_block", "input_blocks.1"): (4, 768)}
    assert "Left out" not in write_delta(delta_of(early), path, "lora", reader="invokeai")
    assert len(keys_of(path)) == 2


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("SD1.5", "input_blocks.1.1.proj_in.weight"),
        ("SD2.1", "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"),
        ("SDXL", "input_blocks.4.1.proj_in.weight"), ("Flux", "img_in.weight"),
        ("Flux.2", "double_blocks.3.img_attn.proj.weight"), ("Flux.2", "single_blocks.7.linear1.weight"),
        ("Z-Image", "x_embedder.weight"), ("Qwen-Image", "proj_out.weight"),
    ],
)  # fmt: skip
def test_what_invokeai_would_not_recognise_is_not_written(tmp_path, family, name):
    delta = delta_of({name: (36, 4)}, **{"sara.family": family})
    with pytest.raises(DeltaError, match="InvokeAI would not see what this LoRA is for"):
        write_delta(delta, tmp_path / "x.safetensors", "lora", reader="invokeai")
    assert not list(tmp_path.iterdir())


def test_a_file_of_nothing_is_not_written(tmp_path):
    delta = delta_of({"time_embed.0.bias": (4,), "time_embed.0.weight": (4, 4)}, **{"sara.family": "SDXL"})
    with pytest.raises(DeltaError, match="for kohya's .* would be empty. .*biases, norms .*LoRAs of these layers"):
        write_delta(delta, tmp_path / "x.safetensors", "lora", reader="kohya")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("reader", LORA_READERS)
def test_a_model_of_no_known_family_is_refused(tmp_path, reader):
    with pytest.raises(DeltaError, match="Which family of models the delta is for is not known.*give the base"):
        write_delta(delta_of({"blocks.0.weird.weight": (4, 4)}), tmp_path / "x.safetensors", "lora", reader=reader)
    write_delta(delta_of({"blocks.0.weird.weight": (4, 4)}), tmp_path / "x.safetensors", "lora")
    assert keys_of(tmp_path / "x.safetensors") == {"lora_unet_blocks_0_weird"}


@pytest.mark.parametrize("reader", ["invokeai", "kohya"])
def test_a_unet_that_nothing_tells_needs_its_base(tmp_path, reader):
    """The width of the text tells SD1.5 from SDXL, and a delta of other layers does not have it."""
    delta = delta_of({KEYS.replace("attn2", "attn1"): (4, 4), "input_blocks.1.0.in_layers.2.weight": (4, 4, 3, 3)})
    with pytest.raises(DeltaError, match="is not known.*give the base model, if it is one of SD1.5, SD2.1"):
        write_delta(delta, tmp_path / "x.safetensors", "lora", reader=reader)
    write_delta(delta, tmp_path / "x.safetensors", "lora", reader="diffusers")
    assert len(keys_of(tmp_path / "x.safetensors")) == 2


def test_what_was_written_for_a_program_is_read_again(case, tmp_path):
    """To the same changes, but for what was left out."""
    case.save(tmp_path)
    for reader in PROGRAMS:
        path = tmp_path / f"for {reader}.safetensors"
        if reader != "comfyui" and case.family not in PROGRAMS[reader].layouts:
            continue
        report = exported(case, reader, path)
        back = read_delta(path, tmp_path / "comfyui.safetensors", density=1.0).delta
        found = {name.removeprefix("diffusion_model."): dense(entry) for name, entry in back.entries.items()}
        left_out = [line for line in report.splitlines() if line.startswith("Left out")]
        assert found.keys() <= case.comfyui_changes.keys() and bool(left_out) == (reader != "comfyui")
        for name, change in found.items():
            assert (change - case.comfyui_changes[name]).norm() < 2e-3 * case.comfyui_changes[name].norm(), name


def test_a_weight_whose_name_in_diffusers_is_not_known_is_refused(tmp_path):
    shapes = {"double_blocks.0.img_attn.proj.weight": (4, 4), "extra.weight": (4, 4)}
    delta = delta_of(shapes, **{"sara.family": "Flux"})
    with pytest.raises(DeltaError, match="What extra.weight is called in diffusers is not known. Give the base"):
        write_delta(delta, tmp_path / "x.safetensors", "lora", reader="diffusers")


@pytest.mark.parametrize("to", [name for name in WRITERS if name != "lora"])
@pytest.mark.parametrize("reader", LORA_READERS)
def test_other_formats_are_not_written_for_a_program(tmp_path, to, reader):
    with pytest.raises(DeltaError, match=f"The format '{to}' is not written for .*Choose 'lora'"):
        write_delta(delta_of({KEYS: (4, 768)}), tmp_path / ("x" + WRITERS[to].ending), to, reader=reader)
    assert not list(tmp_path.iterdir())


def test_a_program_that_is_not_known_is_refused(tmp_path):
    with pytest.raises(DeltaError, match="LoRAs for 'forge' are not known. Choose one of comfyui, diffusers, invokeai"):
        write_delta(delta_of({KEYS: (4, 768)}), tmp_path / "x.safetensors", "lora", reader="forge")


def test_the_command_line_writes_for_a_program(tmp_path, capsys):
    delta_of({KEYS: (4, 768), "out.2.bias": (4,)}).save(tmp_path / "delta.safetensors")
    arguments = ["convert", str(tmp_path / "delta.safetensors"), str(tmp_path / "x.safetensors"), "--to", "lora"]
    assert main([*arguments, "--for", "diffusers"]) == 0
    assert keys_of(tmp_path / "x.safetensors") == {"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"}
    assert "Left out, because biases, norms and the like are not taken by diffusers: 1 with" in capsys.readouterr().out
    assert main([*arguments[:-1], "sara", "--for", "kohya"]) == 1
    assert "The format 'sara' is not written for kohya's" in capsys.readouterr().err


def test_the_node_writes_for_a_program(comfy):
    classes = comfy.pack_module("sara_core.delta")
    own = classes.SparseDelta({f"diffusion_model.{KEYS}": classes.SparseEntry(*entry((4, 768)))})
    inputs = {"file_name": "none", "base_name": "none", "to": "lora", "delta": own}
    for more, key in (
        ({}, "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k"),
        ({"reader": "diffusers"}, "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"),
    ):
        report = comfy.execute("SaRAConvert", **inputs, **more).outputs[1]
        assert keys_of(comfy.base / report.splitlines()[-1].removeprefix("Saved as ")) == {key}


def test_a_lora_without_a_program_is_what_it_was(tmp_path):
    """Biases go along as differences, and every layer has its own rank."""
    delta = delta_of({KEYS: (4, 768), "out.2.bias": (4,)})
    write_delta(delta, tmp_path / "x.safetensors", "lora")
    key = "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k"
    assert load_file(tmp_path / "x.safetensors").keys() == {
        f"{key}.lora_up.weight", f"{key}.lora_down.weight", f"{key}.alpha", "diffusion_model.out.2.diff_b",
    }  # fmt: skip
