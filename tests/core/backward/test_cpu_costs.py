"""On the CPU the route of a weight gradient comes from costs that were measured beforehand, and from nothing else."""

import pytest
import torch

from sara_core.backward import cpu_costs
from sara_core.backward.cpu_costs import BF16, FP32, HALF_VECTOR, MATRIX, VECTOR, Costs, sampled_product_pays
from sara_core.backward.ops import ConvOp, LinearOp

LINEAR, CONVOLUTION = LinearOp(), ConvOp((3, 3), (1, 1), (1, 1), (1, 1), 1)
GROUPED = ConvOp((3, 3), (1, 1), (1, 1), (1, 1), 2)


@pytest.fixture
def processor(monkeypatch):
    """Sets which kind of processor this is, and how many threads compute."""

    def is_(kind, threads=1):
        monkeypatch.setattr(cpu_costs, "processor", lambda: kind)
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)

    return is_


@pytest.mark.parametrize("kind, op, dtype, shape, density, sampled", [
    (VECTOR, LINEAR, FP32, (640, 640), 0.006, True),
    (VECTOR, LINEAR, FP32, (640, 640), 0.058, True),
    (VECTOR, LINEAR, BF16, (1280, 1280), 0.006, True),
    (VECTOR, LINEAR, BF16, (5120, 640), 0.058, False),
    (VECTOR, CONVOLUTION, FP32, (640, 5760), 0.058, True),
    (VECTOR, CONVOLUTION, BF16, (640, 5760), 0.058, False),
    (HALF_VECTOR, LINEAR, BF16, (5120, 640), 0.058, True),
    (HALF_VECTOR, CONVOLUTION, BF16, (640, 5760), 0.058, True),
    (HALF_VECTOR, LINEAR, BF16, (640, 640), 0.11, False),
    (MATRIX, LINEAR, BF16, (1280, 1280), 0.006, False),
    (MATRIX, LINEAR, FP32, (1280, 1280), 0.006, True),
    (MATRIX, LINEAR, BF16, (640, 640), 0.006, False),
    (MATRIX, LINEAR, FP32, (320, 320), 0.058, False),
    (None, LINEAR, BF16, (5120, 640), 0.058, True),  # nobody has measured: the density decides
    (VECTOR, LINEAR, torch.float16, (5120, 640), 0.058, True),
    (VECTOR, GROUPED, BF16, (640, 2880), 0.058, True),
    (VECTOR, LINEAR, BF16, (319, 320), 0.058, True),  # so small that nobody has measured it
    (VECTOR, LINEAR, BF16, (320, 320), 0.058, False),
    (MATRIX, CONVOLUTION, BF16, (640, 5760), 0.13, False),
])  # fmt: skip
def test_shape_density_dtype_and_instructions_decide(processor, kind, op, dtype, shape, density, sampled):
    processor(kind)
    assert sampled_product_pays(op, *shape, int(density * shape[0] * shape[1]), 1024, dtype) is sampled


def test_the_same_way_is_taken_on_any_number_of_threads(processor):
    taken = set()
    for threads in (1, 2, 64):
        processor(VECTOR, threads)
        taken.add(tuple(sampled_product_pays(LINEAR, 640, 640, chosen, 64, BF16) for chosen in range(0, 50_000, 500)))
    assert len(taken) == 1 and set(*taken) == {True, False}


def test_of_a_few_tokens_the_dense_gradient_of_a_convolution_is_dear(processor):
    processor(VECTOR)
    chosen = int(0.058 * 1280 * 11520)
    pays = {tokens: sampled_product_pays(CONVOLUTION, 1280, 11520, chosen, tokens, BF16) for tokens in (0, 64, 4096)}
    assert pays == {0: True, 64: True, 4096: False}


def test_at_the_same_cost_the_sampled_product_is_taken_and_a_picosecond_dearer_the_dense_gradient():
    assert Costs(layout=0, product=100, dense=50).sampled_pays(rows=1, columns=2, chosen=1, tokens=1)
    assert not Costs(layout=0, product=101, dense=50).sampled_pays(rows=1, columns=2, chosen=1, tokens=1)


@pytest.mark.parametrize("capability, matrix, vector, more, kind", [
    ("AVX512", True, True, {"avx_vnni": True}, MATRIX), ("AVX512", False, False, {}, None),
    ("AVX512", False, True, {"sse4a": True, "avx_vnni": True}, VECTOR),
    ("AVX512", False, True, {"sse4a": True, "avx_vnni": False}, HALF_VECTOR),
    ("AVX512", False, True, {"sse4a": False, "avx_vnni": False}, VECTOR),  # Intel's Cooper Lake
    ("AVX512", False, True, None, VECTOR),  # an older torch
    ("AVX2", True, True, {}, None), ("DEFAULT", False, True, {"sse4a": True}, None),
])  # fmt: skip
def test_an_older_processors_instructions_give_its_bits(monkeypatch, capability, matrix, vector, more, kind):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: matrix, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: vector, raising=False)
    if more is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: more, raising=False)
    assert cpu_costs.processor.__wrapped__() == kind
