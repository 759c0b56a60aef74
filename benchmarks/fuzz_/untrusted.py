"""Everything of ours that reads untrusted bytes, as targets to fuzz: the delta file, its positions, what it says of its
base, and every importer."""

import base64
import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy
import torch
from safetensors.torch import save

from benchmarks.fuzz_ import mutations
from benchmarks.fuzz_.exploration import Target
from sara_core.conversion.read import read_delta
from sara_core.delta import SparseDelta, SparseEntry
from sara_core.delta import file_v1
from sara_core.delta import metadata as keys
from sara_core.errors import SaRAError
from sara_core.models import identity as base_identity
from sara_core.names.parameter_order import parameter_order

# Names that a UNet has, because the authors' files count its parameters by them.
SHAPES = {
    "conv_in.weight": (4, 3, 3, 3),
    "conv_in.bias": (4,),
    "time_embedding.linear_1.weight": (8, 6),
    "time_embedding.linear_2.weight": (6, 8),
}
LINEAR, CONVOLUTION = "time_embedding.linear_1", "conv_in"
THRESHOLD = 0.5


def targets(folder: Path) -> Iterator[Target]:
    """All of them; their base model lies in `folder`."""
    base_path = folder / "base.safetensors"
    base = {name: _random(shape, number) for number, (name, shape) in enumerate(SHAPES.items())}
    base_path.write_bytes(save(base))

    def imported(path: Path, density: float | None = None) -> None:
        _check_sound(read_delta(path, base_path, density).delta)

    def thinned(path: Path) -> None:
        imported(path, 0.5)

    def importer(name, seeds, read):
        return Target(name, seeds, read, mutations.of_safetensors, (SaRAError,))

    def of_torch(name, content, read):
        return Target(name, [_torch_file(content)], read, mutations.of_zip, (SaRAError,), ".pt")

    yield Target("positions", _packed_positions(), _read_positions, mutations.of_packed_positions, (ValueError,))
    yield importer("delta file", _delta_files(folder), lambda path: _check_sound(SparseDelta.load(path)))
    yield Target("base identity", [_identity(base)], _reader_of_identity(base), mutations.of_bytes, ())
    yield importer("LoRA, LyCORIS, .diff", _adapters(), thinned)
    yield importer("DoRA, OFT, GLoRA", _relative_adapters(), thinned)
    yield importer("SHiRA", [_shira()], imported)
    yield importer("Super-Tuning", [_super_tuning()], imported)
    yield importer("Super-Tuning with a LoRA", [_hybrid()], thinned)
    yield importer("whole model", [save({name: weight + 0.1 for name, weight in base.items()})], thinned)
    yield of_torch("LT-SFT", _lt_sft(), imported)
    yield of_torch("LT-SFT with whole weights", _lt_sft_whole(), thinned)
    yield of_torch("authors' file", _original(base), imported)
    yield of_torch("LoRA in the state of a run", _state_of_a_run(), thinned)


def _check_sound(delta: SparseDelta) -> None:
    for name, (indices, values, shape) in delta.entries.items():
        positions = indices.numpy()
        assert len(positions) == len(values) and (numpy.diff(positions.astype(numpy.int64)) > 0).all(), name
        assert not len(positions) or 0 <= positions[0] <= positions[-1] < int(numpy.prod(shape, dtype=object)), name
        assert bool(torch.isfinite(values.float()).all()), name


def _read_positions(path: Path) -> None:
    content = path.read_bytes()
    count, numel = struct.unpack_from("<qq", content)
    numel = min(numel, 2**31 - 1)
    positions = file_v1.stream_positions(file_v1.unpacked_stream(content[16:], count, numel), count, numel)
    assert len(positions) == count and (numpy.diff(positions) > 0).all()
    assert not count or 0 <= positions[0] <= positions[-1] < numel


def _packed_positions() -> list[bytes]:
    lists = ([], [0], [0, 2, 3, 300, 1000], [254, 255, 510, 4000], list(range(50)))
    arrays = (numpy.array(positions, dtype=numpy.int32) for positions in lists)
    return [struct.pack("<qq", len(array), 5000) + file_v1.encode_indices(array) for array in arrays]


def _delta_files(folder: Path) -> list[bytes]:
    entries = {
        "diffusion_model.a.weight": SparseEntry(torch.tensor([0, 2, 300], dtype=torch.int32), torch.ones(3), (40, 40)),
        "diffusion_model.a.bias": SparseEntry(torch.tensor([3], dtype=torch.int32), torch.ones(1), (4,)),
    }
    path, files = folder / "seed.safetensors", []
    for dtype in file_v1.STORED_DTYPES:
        SparseDelta(entries, {"sara.family": "SD1.5"}).save(path, dtype)
        files.append(path.read_bytes())
    return files


def _identity(base: dict[str, torch.Tensor]) -> bytes:
    return base64.b64decode(base_identity.identity_of(base)[keys.BASE_IDENTITY][2:])


def _reader_of_identity(base: dict[str, torch.Tensor]):
    def read(path: Path) -> None:
        text = "1:" + base64.b64encode(path.read_bytes()).decode()
        with numpy.errstate(over="raise", invalid="raise", divide="raise"):
            verdict = base_identity.compare({keys.BASE_IDENTITY: text}, base)
        assert 0 <= verdict.agreeing <= 1 and abs(verdict.likeness) < 1.001

    return read


def _adapters() -> list[bytes]:
    linear, convolution = SHAPES[f"{LINEAR}.weight"], SHAPES[f"{CONVOLUTION}.weight"]
    rows, columns = linear
    lora = {"lora_up.weight": (rows, 2), "lora_down.weight": (2, columns), "alpha": ()}
    loha = {"hada_w1_a": (rows, 2), "hada_w1_b": (2, columns), "hada_w2_a": (rows, 2), "hada_w2_b": (2, columns)}
    lokr = {"lokr_w1": (2, 2), "lokr_w2": (rows // 2, columns // 2)}
    locon = {"lora_up.weight": (4, 2, 1, 1), "lora_down.weight": (2, 3, 3, 3)}
    parts = [(LINEAR, lora), (LINEAR, loha), (LINEAR, lokr), (CONVOLUTION, locon), (CONVOLUTION, {"diff": convolution})]
    beside = {f"{LINEAR}.lora_up.weight": _random((rows, 2), 1), f"{LINEAR}.lora_down.weight": _random((2, columns), 2),
              f"{LINEAR}.bias_indices": torch.tensor([[0, 7], [5, 2]], dtype=torch.int16),
              f"{LINEAR}.bias_values": torch.ones(2), f"{LINEAR}.bias_size": torch.tensor([8, 6], dtype=torch.int16),
              "iteration": torch.tensor(4), "lora_te_a.lora_up.weight": torch.ones(2, 2)}  # fmt: skip
    return [*(_adapter(module, tensors) for module, tensors in parts), save(beside)]


def _relative_adapters() -> list[bytes]:
    """Those whose change depends on the base's weights, and a LoRA with settings beside it."""
    linear, convolution = SHAPES[f"{LINEAR}.weight"], SHAPES[f"{CONVOLUTION}.weight"]
    rows, columns = linear
    lora = {"lora_B.weight": (rows, 2), "lora_A.weight": (2, columns)}
    glora = {"a1.weight": (columns, 2), "a2.weight": (2, columns), "b1.weight": (rows, 2), "b2.weight": (2, columns)}
    boft = {"oft_blocks": (2, 2, 4, 4), "alpha": (), "rescale": (rows, 1)}
    patterns = {"alpha_pattern": {LINEAR: 3, "time.*linear_2": 4}, "rank_pattern": {"conv_in": 1}}
    return [
        _adapter(LINEAR, {**lora, "dora_scale": (rows, 1)}),
        _adapter(CONVOLUTION, {"lora_up.weight": (4, 2, 1, 1), "lora_down.weight": (2, 3, 3, 3),
                               "dora_scale": (1, 3, 1, 1)}),
        _adapter(LINEAR, {"oft_blocks": (2, 4, 4), "alpha": ()}),
        _adapter(LINEAR, boft),
        _adapter(LINEAR, glora),
        _adapter(CONVOLUTION, {"set_weight": convolution}),
        _adapter(CONVOLUTION, {"weight": (1, 3, 1, 1), "on_input": ()}),
        _adapter(LINEAR, {**lora, "lora_magnitude_vector": (rows,)}),
        _adapter(LINEAR, {"lora_B.style.weight": (rows, 2), "lora_A.style.weight": (2, columns)}),
        _adapter(LINEAR, {"ia3_l": (rows, 1)}),
        _adapter(CONVOLUTION, {"ia3_l": (1, 3, 1, 1), "ln_tuning_layers.bias": (4,)}),
        _adapter(CONVOLUTION, {"lora_B.weight": (4, 2, 1, 1), "lora_A.weight": (2, 3, 3, 3), "lora_B.bias": (4,)}),
        _adapter(CONVOLUTION, {"lora_B.weight": (4, 2, 1, 1), "lora_A.weight": (2, 3, 3, 3), "base_layer.bias": (4,)}),
        _adapter(LINEAR, lora, {"lora_alpha": 2, "r": 2, "use_rslora": True, **patterns}),
    ]  # fmt: skip


def _adapter(module: str, tensors: dict[str, tuple[int, ...]], settings: dict | None = None) -> bytes:
    metadata = {"lora_adapter_metadata": json.dumps(settings)} if settings else None
    return save({f"base_model.model.{module}.{part}": _random(shape, 1) for part, shape in tensors.items()}, metadata)


def _shira() -> bytes:
    indices = torch.tensor([[0, 3, 7], [1, 0, 5]], dtype=torch.int32)
    return save({f"{LINEAR}.shira_weight": torch.ones(3), f"{LINEAR}.shira_indices": indices})


def _super_tuning() -> bytes:
    positions = torch.tensor([40, 3, 7], dtype=torch.int32)
    return save({f"{LINEAR}.supertuning_values": torch.ones(3), f"{LINEAR}.supertuning_indices": positions})


def _hybrid() -> bytes:
    rows, columns = SHAPES[f"{LINEAR}.weight"]
    tensors = {"values": torch.ones(3), "indices": torch.tensor([40, 3, 7], dtype=torch.int32),
               "lora_A.weight": _random((2, columns), 1), "lora_B.weight": _random((rows, 2), 2)}  # fmt: skip
    return save({f"{LINEAR}.supertuning_{part}": tensor for part, tensor in tensors.items()},
                {"lora_adapter_metadata": json.dumps({"lora_alpha": 2, "r": 2})})  # fmt: skip


def _lt_sft() -> dict:
    diff = {"size": (8, 6), "index_steps": [1, 4, 9], "values": torch.ones(3)}
    return {"diffs": {f"{LINEAR}.weight": diff}, "abs": {}}


def _lt_sft_whole() -> dict:
    return {**_lt_sft(), "abs": {f"{CONVOLUTION}.bias": torch.ones(4)}}


def _state_of_a_run() -> dict:
    rows, columns = SHAPES[f"{LINEAR}.weight"]
    lora = {f"{LINEAR}.lora_up.weight": _random((rows, 2), 1), f"{LINEAR}.lora_down.weight": _random((2, columns), 2)}
    return {"epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, "state_dict": {**lora, "step": 4}}


def _original(base: dict[str, torch.Tensor]) -> dict:
    """Those below the threshold, changed."""
    chosen = (base[name][base[name].abs() < THRESHOLD] + 0.1 for name in parameter_order(base))
    return {"threshold": THRESHOLD, **dict(enumerate(chosen))}


def _torch_file(content) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _random(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
