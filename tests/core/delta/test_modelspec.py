"""What LoRA managers read of a saved delta: title, author, trigger phrase, thumbnail, date and hash."""

import base64
import datetime
import hashlib
import io
import struct

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from sara_core.delta import SparseDelta, SparseEntry, modelspec
from sara_core.delta.describe import describe
from sara_core.delta.rounding import differing_weights, rounded_values
from tests.support.toy_models import delta_entries, sd15_model, unload

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone(datetime.timedelta(hours=1)))
MUST = {"sai_model_spec", "architecture", "implementation", "title"}


def described(metadata=(), family="SD1.5", **fields):
    return modelspec.described(dict(metadata), family, "ink_00001", fields, NOW)


def test_everything_the_specification_demands_is_there():
    assert described({"sara.family": "SD1.5"}) == {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1/sara",
        "modelspec.implementation": "https://github.com/comfyui-sara/comfyui-sara",
        "modelspec.title": "ink_00001",
        "modelspec.date": "2026-01-02T02:04:05Z",
        "sara.family": "SD1.5",
    }


@pytest.mark.parametrize(
    "family, identifier",
    [("SDXL", "stable-diffusion-xl-v1-base/sara"), ("Flux", "flux-1-dev/sara"), ("Z-Image", "z-image/sara"),
     ("Wan 2.1", "wan-2.1/sara"), ("", "unknown/sara")],
)  # fmt: skip
def test_the_architecture_is_the_familys(family, identifier):
    assert described(family=family)["modelspec.architecture"] == identifier


def test_what_a_person_says_goes_before_what_the_delta_says_and_that_before_defaults():
    earlier = {"modelspec.author": "Ada", "modelspec.title": "Old", "modelspec.date": "2025-01-01"}
    now = described(earlier, title=" New ", author="  ", trigger_phrase="ink style")
    assert (now["modelspec.title"], now["modelspec.author"]) == ("New", "Ada")
    assert (now["modelspec.date"], now["modelspec.trigger_phrase"]) == ("2025-01-01", "ink style")


def test_a_delta_that_is_written_as_a_lora_says_so():
    metadata = {**described(title="Ink"), "modelspec.hash_sha256": "0x00"}
    changed = modelspec.as_lora(metadata)
    assert changed["modelspec.architecture"] == "stable-diffusion-v1/lora" and "modelspec.hash_sha256" not in changed
    assert changed["modelspec.title"] == "Ink" and modelspec.as_lora({"a": "b"}) == {"a": "b"}


def test_texts_for_programs_are_not_shown_to_people():
    metadata = {"modelspec.thumbnail": "data:", "sara.base_identity": "1:", "sara.base_name": "a.safetensors"}
    assert describe(small_delta(metadata)).settings == {"base": "a.safetensors"}


def small_delta(metadata=None):
    entries = {"diffusion_model.a.weight": SparseEntry(torch.tensor([1, 5], dtype=torch.int32), torch.ones(2), (3, 3))}
    return SparseDelta(entries, metadata)


def hash_of_content(path):
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return "0x" + hashlib.sha256(content[8 + length :]).hexdigest()


def metadata_of(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_hash_is_of_everything_after_the_header(tmp_path, dtype):
    path = tmp_path / "x.safetensors"
    small_delta(described()).save(path, dtype)
    assert metadata_of(path)["modelspec.hash_sha256"] == hash_of_content(path)


def test_the_hash_of_another_file_is_never_kept(tmp_path):
    stale = {"modelspec.hash_sha256": "0x00"}
    small_delta(stale).save(tmp_path / "x.safetensors")
    assert "modelspec.hash_sha256" not in metadata_of(tmp_path / "x.safetensors")
    small_delta({**described(), **stale}).save(tmp_path / "y.safetensors")
    assert metadata_of(tmp_path / "y.safetensors")["modelspec.hash_sha256"] == hash_of_content(
        tmp_path / "y.safetensors"
    )


def test_the_weights_that_rounding_changes_are_counted_exactly():
    values = torch.tensor([0.5, 0.1, 1 / 3, 2.0**-30, 0.25])
    delta = SparseDelta({"a.weight": SparseEntry(torch.arange(5, dtype=torch.int32), values, (2, 4))})
    assert rounded_values(delta, torch.bfloat16) == 2
    base = torch.tensor([[1.0, 64.0, 0.0, 1.0], [0.0] * 4])
    for dtype in (torch.float32, torch.bfloat16):
        weights = {name: base.to(dtype) for name in ("a.weight",)}
        exact, rounded = ({"a.weight": weights["a.weight"].clone()} for _ in range(2))
        delta.apply_(exact)
        SparseDelta({"a.weight": SparseEntry(delta.entries["a.weight"].indices, values.bfloat16(), (2, 4))}).apply_(
            rounded
        )
        expected = int((exact["a.weight"] != rounded["a.weight"]).sum())
        assert differing_weights(delta, torch.bfloat16, weights) == expected
    assert expected == 0  # 1/3 onto 0 in bf16 is what bf16 makes of it anyway


# In the host


@pytest.fixture
def model(comfy):
    yield sd15_model(dtype=torch.float16)
    unload()


@pytest.fixture
def delta(comfy, model):
    name = "diffusion_model.out.2.weight"
    entries = delta_entries({name: model.model_state_dict()[name]}, density=0.5)
    return comfy.pack_module("sara_core.delta").SparseDelta(entries, {"sara.family": "SD1.5"})


@pytest.fixture
def shown(comfy, monkeypatch):
    lines = []
    monkeypatch.setattr(comfy.pack_module("nodes.save"), "show_text", lambda node_class, text: lines.append(text))
    return lines


def save(comfy, delta, **inputs):
    result = comfy.execute("SaRASave", delta=delta, filename_prefix="sara/described", **inputs)
    path = comfy.base / "output" / result.ui["text"][0]
    return path, metadata_of(path)


def test_the_node_writes_what_it_is_told(comfy, delta):
    picture = torch.zeros(1, 30, 50, 3)
    picture[..., 0] = 1.0
    path, metadata = save(
        comfy, delta, title="Ink", author="Ada", trigger_phrase="ink style", tags="style, ink",
        description="Lines.\nInk.", thumbnail=picture,
    )  # fmt: skip
    said = {key.removeprefix("modelspec."): text for key, text in metadata.items() if key.startswith("modelspec.")}
    assert MUST <= said.keys() and said["hash_sha256"] == hash_of_content(path)
    assert [said[name] for name in ("title", "author", "trigger_phrase", "tags", "description")] == [
        "Ink", "Ada", "ink style", "style, ink", "Lines.\nInk.",
    ]  # fmt: skip
    assert datetime.datetime.fromisoformat(said["date"].replace("Z", "+00:00")).tzinfo is not None
    head, _, content = said["thumbnail"].partition(",")
    jpeg = Image.open(io.BytesIO(base64.b64decode(content)))
    assert head == "data:image/jpeg;base64" and jpeg.size == (256, 256)
    red, green, blue = jpeg.getpixel((128, 128))
    assert red > 240 and green < 15 and blue < 15


def test_without_a_title_the_file_is_called_by_its_name(comfy, delta):
    path, metadata = save(comfy, delta)
    assert metadata["modelspec.title"] == path.stem.strip("_") and "modelspec.author" not in metadata


def test_the_delta_itself_keeps_its_metadata(comfy, delta):
    save(comfy, delta, title="Ink")
    assert delta.metadata == {"sara.family": "SD1.5"}


def test_bf16_says_how_many_weights_of_the_base_change_by_it(comfy, delta, model, shown):
    save(comfy, delta, values="bf16", model=model)
    exact = differing_weights(SparseDelta(delta.entries), torch.bfloat16, model.model_state_dict())
    assert 0 < exact < delta.nnz
    assert f"{exact:,} of the model's weights (float16) come out different" in shown[-1]


def test_bf16_without_a_model_says_how_many_changes_are_rounded(comfy, delta, shown):
    save(comfy, delta, values="bf16")
    rounded = rounded_values(SparseDelta(delta.entries), torch.bfloat16)
    assert shown[-1].endswith(f"bf16 rounds {rounded:,} of {delta.nnz:,} changes.")
    save(comfy, delta)
    assert "rounds" not in shown[-1]


def test_a_model_that_does_not_fit_does_not_keep_the_delta_from_being_saved(comfy, model, shown):
    pack = comfy.pack_module("sara_core.delta")
    entry = pack.SparseEntry(torch.tensor([1], dtype=torch.int32), torch.ones(1) / 3, (4, 4))
    other = pack.SparseDelta({"diffusion_model.nowhere.weight": entry})
    path, _ = save(comfy, other, values="bf16", model=model)
    assert path.is_file() and "diffusion_model.nowhere.weight" in shown[-1]
