"""SaRA Merge and SaRA Extract in the host."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tests.support.pictures import assert_is_picture
from tests.support.toy_models import (
    assert_same_bits, changed, delta_entries, expected_weights, loaded_weights, sd15_checkpoint, sd15_model, unload,
)  # fmt: skip

PREFIX = "model.diffusion_model."


@pytest.fixture(scope="module")
def model(comfy):
    made = sd15_model()
    yield made
    unload()


@pytest.fixture(scope="module")
def deltas(comfy, model):
    """Two deltas of the toy model, with supports of their own, as the pack's own class."""
    classes = comfy.pack_module("sara_core.delta")
    weights = {n: w for n, w in model.model.state_dict().items() if n.startswith("diffusion_model.") and w.dim() > 1}
    return [
        classes.SparseDelta(
            {name: classes.SparseEntry(*entry) for name, entry in delta_entries(weights, seed=seed).items()},
            {"sara.family": "SD1.5", **({"modelspec.title": "Ink"} if seed else {})},
        )
        for seed in (0, 1)
    ]


def merge(comfy, deltas, **inputs):
    connected = {f"deltas.delta_{number}": delta for number, delta in enumerate(deltas, start=1)}
    return comfy.execute("SaRAMerge", **connected, **inputs)


def assert_same_delta(first, second):
    assert first.entries.keys() == second.entries.keys()
    for name, (indices, values, _) in first.entries.items():
        assert torch.equal(indices, second.entries[name].indices) and torch.equal(values, second.entries[name].values)


def test_merge_adds_deltas_by_their_weights_and_reports(comfy, deltas):
    merged, report, picture = merge(comfy, deltas, weights="0.6, -0.4").outputs
    assert_same_delta(merged, deltas[0] * 0.6 + deltas[1] * -0.4)
    assert "delta_1 at weight 0.6" in report and "Ink (delta_2) at weight -0.4" in report
    assert "input_blocks.1" in report
    assert_is_picture(picture)
    record = json.loads(merged.metadata["sara.merge"])
    assert [one["name"] for one in record["deltas"]] == ["delta_1", "Ink (delta_2)"]
    assert merged.metadata["sara.family"] == "SD1.5"


@pytest.mark.parametrize("number", [1, 5])
def test_any_number_of_deltas_is_merged(comfy, deltas, number):
    many = [deltas[place % 2] for place in range(number)]
    merged = merge(comfy, many, method="mean").outputs[0]
    library = comfy.pack_module("sara_core.merging.merge")
    assert_same_delta(merged, library.merge(many, 1.0, "mean"))


def test_a_merge_of_twenty_deltas_can_be_drawn(comfy, deltas):
    assert_is_picture(merge(comfy, [deltas[0]] * 20, weights="0.05").outputs[2])


def test_the_settings_reach_the_merge(comfy, deltas):
    library = comfy.pack_module("sara_core.merging.merge")
    blocks = comfy.pack_module("sara_core.merging.block_factors")
    lines = "output_blocks = 0.5, 2"
    merged = merge(comfy, deltas, method="ties", keep=20.0, sign="count", preset="attention only", blocks=lines)
    chosen = (*blocks.block_presets()["attention only"], *blocks.parse_blocks(lines))
    assert_same_delta(merged.outputs[0], library.merge(deltas, 1.0, "ties", keep=0.2, sign="count", blocks=chosen))
    dared = merge(comfy, deltas, method="dare", keep=30.0, seed=7).outputs[0]
    assert_same_delta(dared, library.merge(deltas, 1.0, "dare", keep=0.3, seed=7))


def test_a_merged_delta_is_applied_like_any_other(comfy, model, deltas):
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    merged = merge(comfy, deltas, weights="0.5").outputs[0]
    applied = comfy.execute("SaRAApply", model=model, delta=merged, strength=1.0).outputs[0]
    assert_same_bits(loaded_weights(applied), expected_weights(before, merged, 1.0))
    unload()
    assert_same_bits(dict(model.model.state_dict()), before)


def test_mistakes_are_named(comfy, deltas):
    errors = comfy.pack_module("sara_core.errors")
    for inputs, words in (
        ({"weights": "0.6; 0.4"}, "not numbers with commas"),
        ({"weights": "1, 2, 3"}, "2 deltas but 3 weights"),
        ({"blocks": "attn9 = 0"}, "'attn9 = 0' fits none"),
        ({"preset": "SDXL style"}, "fits none"),
    ):
        with pytest.raises(errors.DeltaError, match=words):
            merge(comfy, deltas, **inputs)


def test_the_server_takes_a_prompt_with_several_deltas(server, checkpoint, comfy, deltas):
    """Over HTTP, where the host itself puts the growing inputs together."""
    folder = server.base / "models" / "sara"
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"merge_{place}.safetensors" for place in range(3)]
    for name, delta in zip(names, (deltas[0], deltas[1], deltas[0])):
        delta.save(folder / name)
    loaders = {
        str(place): {"class_type": "SaRALoader", "inputs": {"sara_name": name, "strength": 1.0}}
        for place, name in enumerate(names)
    }
    merging = {f"deltas.delta_{place + 1}": [str(place), 1] for place in range(3)}
    settings = {
        "weights": "1, 0.5, -1", "method": "sum", "keep": 50.0, "sign": "total", "seed": 0, "preset": "all blocks",
        "blocks": "",
    }  # fmt: skip
    prompt = {
        **loaders,
        "merge": {"class_type": "SaRAMerge", "inputs": {**merging, **settings}},
        "save": {
            "class_type": "SaRASave",
            "inputs": {"delta": ["merge", 0], "filename_prefix": "sara/merged", "values": "fp32"},
        },
    }
    outputs = server.client.run(prompt)
    assert outputs["merge"]["images"]
    (saved,) = outputs["save"]["text"]
    classes = comfy.pack_module("sara_core.delta")
    merged = classes.SparseDelta.load(server.base / "output" / saved)
    assert_same_delta(merged, deltas[0] * 1.0 + deltas[1] * 0.5 + deltas[0] * -1.0)


# --- SaRA Extract


@pytest.fixture(scope="module")
def pair(comfy, deltas):
    """Names of a base and of a tuned checkpoint in fp16, and the tuned weights."""
    folder = comfy.base / "models" / "checkpoints"
    folder.mkdir(exist_ok=True)
    base = sd15_checkpoint(dtype=torch.float16)
    tuned = {
        name: changed(weight, deltas[0].entries[key], 1.0) if (key := name[6:]) in deltas[0].entries else weight
        for name, weight in base.items()
    }
    save_file(base, folder / "extract_base.safetensors")
    save_file(tuned, folder / "extract_tuned.safetensors")
    return "extract_base.safetensors", "extract_tuned.safetensors", base, tuned


def extract(comfy, pair, **inputs):
    return comfy.execute("SaRAExtract", base_name=pair[0], tuned_name=pair[1], **inputs).outputs


def test_everything_extracted_gives_the_tuned_model(comfy, pair):
    delta, report, picture = extract(comfy, pair, select_by="everything")
    weights = {name: weight.clone() for name, weight in pair[2].items()}
    delta.apply_(weights)
    assert_same_bits(weights, pair[3])
    assert "exactly the tuned weight" in report
    assert_is_picture(picture)
    assert delta.metadata["sara.family"] == "SD1.5"


def test_a_share_a_number_and_a_support_can_be_extracted(comfy, pair, deltas):
    elements = sum(weight.numel() for name, weight in pair[2].items())
    assert extract(comfy, pair, select_by="density", density=0.1)[0].nnz == round(0.001 * elements)
    assert extract(comfy, pair, select_by="count", count=123)[0].nnz == 123
    delta, report, _ = extract(comfy, pair, support=deltas[0])
    assert {name: entry.indices.tolist() for name, entry in delta.entries.items()} == {
        name: entry.indices.tolist() for name, entry in deltas[0].entries.items()
    }
    assert "100.00% of the squared change" in report


def test_equal_models_are_refused(comfy, pair):
    with pytest.raises(comfy.pack_module("sara_core.errors").DeltaError, match="nothing to extract"):
        comfy.execute("SaRAExtract", base_name=pair[0], tuned_name=pair[0])


def test_a_diffusers_folder_and_a_checkpoint_go_together(comfy, pair, tmp_path):
    names, translate = comfy.pack_module("sara_core.names.diffusers"), comfy.pack_module("sara_core.delta.translate")
    extraction = comfy.pack_module("sara_core.extraction.extract")
    weights = {name.removeprefix(PREFIX): weight for name, weight in pair[2].items()}
    parts = names.diffusers_parts({name: tuple(weight.shape) for name, weight in weights.items()})
    folder = tmp_path / "pipeline" / "unet"
    folder.mkdir(parents=True)
    own = {name: translate.dense_to_diffusers(weights[part.name], part).contiguous() for name, part in parts.items()}
    save_file(own, folder / "diffusion_pytorch_model.safetensors")
    assert "down_blocks.0.attentions.0.proj_in.weight" in own
    checkpoints = comfy.base / "models" / "checkpoints"
    one, other = (extraction.extract(base, checkpoints / pair[1]) for base in (checkpoints / pair[0], folder.parent))
    assert_same_delta(one, other)
