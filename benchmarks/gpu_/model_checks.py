"""Training a small UNet on a GPU against the CPU, and against the obvious way: gradients, steps, applying and undoing,
streaming, continuing, selection.

What is compared with a reference in fp64 is allowed a quarter more than the error of torch's own dense gradient in the
same dtype on the same device. What is to be the same bits is counted in elements that differ.
"""

import copy
import io
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from benchmarks.gpu_.route_checks import DTYPES, KERNELS, check, full_precision, relative_error
from benchmarks.gpu_.unet import TINY, UNet, random_unet_inputs
from sara_core import SaRA, SparseDelta
from sara_core.backward import write_back
from sara_core.backward.element_kernels import kernels_for
from sara_core.delta import SparseEntry
from sara_core.selection.select import select
from sara_core.tensors.elements import add_sparse_
from sara_core.training.low_rank import LowRankLoss

DENSITY, BATCH = 0.06, 2
BEYOND_DENSE, FLOOR = 1.25, 1e-5
# About the size of the gradients here. With the usual 1e-8 AdamW's first steps are lr · sign(gradient), also where only
# rounding decides on the sign: on the first GPU 0.2 % of the elements went the other way.
ADAM_EPS = 10.0


class Setting(NamedTuple):
    """size: of the latents"""

    device: str
    size: int

    @property
    def on_cpu(self) -> "Setting":
        return self._replace(device="cpu")

    def inputs(self, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
        return random_unet_inputs(TINY, self.size, BATCH, dtype, self.device)


def small_unet(dtype: torch.dtype = torch.float32) -> UNet:
    """On the CPU, with weights that keep activations near 1."""
    torch.manual_seed(0)
    model = UNet(TINY)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
    return model.to(dtype)


def loss_of(model, parts) -> torch.Tensor:
    """A sum, not a mean: in fp16 the gradients of a mean vanish."""
    return model(*parts).double().square().sum()


def masked_gradients(model, parts, support, autocast: torch.dtype | None = None) -> torch.Tensor:
    """The obvious way: dense gradients of every weight, and of these the chosen elements; fp64 on the CPU."""
    model = copy.deepcopy(model).requires_grad_(True)
    _autocast_loss(model, parts, autocast).backward()
    weights = dict(model.named_parameters())
    return torch.cat([weights[s.name].grad.flatten()[s.flat().to(weights[s.name].device)].double().cpu()
                      for s in support])  # fmt: skip


def _autocast_loss(model, parts, autocast):
    with torch.autocast(parts[0].device.type, autocast, enabled=autocast is not None):
        return loss_of(model, parts)


def trained(model, device, **options) -> SaRA:
    return SaRA(model.to(device), density=DENSITY, **options)


def differing(first: dict, second: dict) -> int:
    """How many elements of tensors, by name, are not the same bits."""
    assert first.keys() == second.keys()
    return sum(int((first[name].cpu() != second[name].cpu()).sum()) for name in first)


def state_of(model) -> dict:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}


def gradient_items(device: str, small: bool) -> dict[str, Callable[[], Iterator[dict]]]:
    """Checks of gradients by name; each yields results."""
    setting = Setting(device, 8 if small else 32)
    tasks = {f"model gradients, {name}": _with(gradient_results, setting, dtype) for name, dtype in DTYPES.items()}
    autocast = torch.float32, torch.bfloat16
    tasks["model gradients, fp32 under bf16 autocast"] = _with(gradient_results, setting, *autocast)
    tasks["model gradients by each route"] = _with(route_results, setting)
    tasks["GradScaler, fp16"] = _with(scaler_results, setting)
    return tasks


def items(device: str, small: bool) -> dict[str, Callable[[], Iterator[dict]]]:
    """All other checks."""
    setting = Setting(device, 8 if small else 32)
    tasks = {}
    for name, dtype in DTYPES.items():
        tasks[f"writing and restoring, {name}"] = _with(writing_results, setting, dtype)
        tasks[f"applying and undoing, {name}"] = _with(applying_results, setting, dtype)
        tasks[f"selection, {name}"] = _with(selection_results, setting, dtype)
        tasks[f"kernels for elements, {name}"] = _with(element_kernel_results, setting, dtype)
    tasks["steps"] = _with(step_results, setting)
    tasks["streaming, fp32"] = _with(streaming_results, setting, torch.float32)
    tasks["streaming, bf16"] = _with(streaming_results, setting, torch.bfloat16)
    tasks["saving and continuing"] = _with(continuing_results, setting)
    tasks["low-rank loss"] = _with(low_rank_results, setting)
    tasks["adjustment"] = _with(adjustment_results, setting)
    tasks["selection by gradient"] = _with(gradient_selection_results, setting)
    return tasks


def _with(results, *arguments):
    def run():
        with full_precision():
            yield from results(*arguments)

    return run


def gradient_results(setting, dtype, autocast=None):
    """Δ's gradient, with and without checkpointing."""
    base, parts = small_unet(dtype), setting.inputs(dtype)
    for checkpointing in (False, True):
        model = copy.deepcopy(base)
        optimizer = trained(model, setting.device)
        model.checkpointing = checkpointing
        _autocast_loss(model, parts, autocast).backward()
        support = optimizer.store.support
        exact = masked_gradients(base.double(), [part.cpu().double() for part in parts], support)
        dense = relative_error(masked_gradients(base.to(dtype).to(setting.device), parts, support, autocast), exact)
        base.to("cpu")
        error = relative_error(optimizer.values.grad, exact)
        name = "with checkpointing" if checkpointing else "without checkpointing"
        yield check(name, error, BEYOND_DENSE * dense + FLOOR, f"dense in this dtype: {dense:.1e}")


def route_results(setting):
    base, parts = small_unet(), setting.inputs()
    exact = None
    for route in ("dense", "csr", *(KERNELS if setting.device == "cuda" else ())):
        optimizer = trained(copy.deepcopy(base), setting.device, weight_gradient=route)
        loss_of(optimizer.model, parts).backward()
        if exact is None:
            support = optimizer.store.support
            exact = masked_gradients(copy.deepcopy(base).double(), [part.cpu().double() for part in parts], support)
        yield check(route, relative_error(optimizer.values.grad, exact), 1e-4)


def scaler_results(setting):
    """Unscaled, a scaled gradient is the gradient; a loss that overflows moves nothing and halves the scale."""
    base, parts = small_unet(torch.float16), setting.inputs(torch.float16)
    optimizer = trained(copy.deepcopy(base), setting.device)
    scaler = torch.amp.GradScaler(setting.device, init_scale=2.0**6)
    scaler.scale(loss_of(optimizer.model, parts).float()).backward()
    scaler.unscale_(optimizer)
    support = optimizer.store.support
    exact = masked_gradients(copy.deepcopy(base).double(), [part.cpu().double() for part in parts], support)
    dense = relative_error(masked_gradients(base.to(setting.device), parts, support), exact)
    yield check("unscaled gradient", relative_error(optimizer.values.grad, exact), BEYOND_DENSE * dense + FLOOR)
    scaler.step(optimizer)
    scaler.update()
    before = optimizer.values.detach().clone()
    yield check("a step that counts moves nothing", int(not before.any()), 0)
    optimizer.zero_grad()
    scaler.scale(loss_of(optimizer.model, parts).float() * 1e30).backward()
    scaler.step(optimizer)
    scaler.update()
    yield check("elements moved by a step that overflows", int((optimizer.values != before).sum()), 0)
    yield check("scale after it, from 32", abs(scaler.get_scale() - 2.0**5), 0)


def _steps(optimizer, parts, count) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        loss_of(optimizer.model, parts).backward()
        optimizer.step()


def step_results(setting):
    """Δ after three steps beside the CPU's."""
    for name, optimizer_class, options in (
        ("SGD", torch.optim.SGD, {"lr": 1e-6}), ("AdamW", torch.optim.AdamW, {"lr": 1e-4, "eps": ADAM_EPS})
    ):  # fmt: skip
        values = []
        for place in (setting.on_cpu, setting):
            optimizer = trained(small_unet(), place.device, optimizer=optimizer_class, **options)
            _steps(optimizer, place.inputs(), 3)
            values.append(optimizer.values)
        yield check(f"three steps of {name}", relative_error(values[1], values[0]), 1e-3)


def element_kernel_results(setting, dtype):
    """That they are believed on this GPU: they give torch's bits for a small example."""
    refused = setting.device == "cuda" and kernels_for(torch.device("cuda"), dtype) is None
    yield check("kernels that are not used", refused, 0, "" if setting.device == "cuda" else "none on a CPU")


def writing_results(setting, dtype):
    """By kernels where they run, and by torch in their place, as where there is no Triton."""
    yield from _writing_results(setting, dtype)
    kernels_there = write_back.kernels_for
    write_back.kernels_for = lambda device, dtype: None
    try:
        for result in _writing_results(setting, dtype):
            yield {**result, "name": f"{result['name']}, by torch"}
    finally:
        write_back.kernels_for = kernels_there


def _writing_results(setting, dtype):
    model = small_unet(dtype)
    base = state_of(model)
    optimizer = trained(model, setting.device, lr=1e-3)
    _steps(optimizer, setting.inputs(dtype), 2)
    moved = int((optimizer.values != 0).sum())
    yield check("elements that never moved", optimizer.values.numel() - moved, optimizer.values.numel() // 2)
    expected = dict(base)
    for name, (index, values, shape) in optimizer.delta().entries.items():
        expected[name] = _changed(base[name], index, values, 1.0)
    yield check("elements that are not round(base + Δ)", differing(state_of(model), expected), 0)
    optimizer.detach(restore=True)
    yield check("elements not restored", differing(state_of(model), base), 0)


def _changed(weight, index, values, strength):
    flat = weight.flatten().clone()
    flat[index.long()] = (flat[index.long()].float() + values.float() * strength).to(weight.dtype)
    return flat.view(weight.shape)


def applying_results(setting, dtype):
    """SparseDelta.apply_ and add_sparse_ on a model with a weight in channels_last."""
    model = small_unet(dtype)
    base = state_of(model)
    names = [name for name, weight in base.items() if weight.dim() > 1]
    entries = {}
    for name in names:
        index = torch.randperm(base[name].numel())[:max(1, base[name].numel() // 20)].sort().values.int()
        entries[name] = SparseEntry(index, torch.randn(len(index)) * 0.05, tuple(base[name].shape))
    delta = SparseDelta(entries)
    model.to(setting.device)
    model.conv_out.to(memory_format=torch.channels_last)
    for strength in (1.0, -0.5, 0.3, 2.7):
        expected = {n: _changed(w, *entries[n][:2], strength) if n in entries else w for n, w in base.items()}
        handle = delta.apply_(model, strength)
        yield check(f"elements other than the CPU's, strength {strength}", differing(state_of(model), expected), 0)
        second = delta.apply_(model, 0.7)
        second.remove()
        yield check(f"the second of two taken off, {strength}", differing(state_of(model), expected), 0)
        handle.remove()
        yield check(f"elements not restored, strength {strength}", differing(state_of(model), base), 0)
        for name, weight in model.state_dict().items():
            if name in entries:
                index, values, _ = entries[name]
                add_sparse_(weight, index.to(setting.device), values.to(setting.device), strength)
        yield check(f"add_sparse_, strength {strength}", differing(state_of(model), expected), 0)
        model.load_state_dict(base)


def selection_results(setting, dtype):
    weights = {name: weight for name, weight in small_unet(dtype).state_dict().items() if weight.dim() > 1}
    there = {name: weight.to(setting.device) for name, weight in weights.items()}
    for name, options in {
        "count": {"count": 12_345}, "density": {"density": DENSITY}, "threshold": {"threshold": 2e-3},
        "per layer": {"density": DENSITY, "per_layer": True}, "largest": {"count": 12_345, "rule": "largest"},
        "random": {"density": DENSITY, "rule": "random", "seed": 5},
    }.items():  # fmt: skip
        here, chosen = select(weights, **options), select(there, **options)
        apart = _apart(here.indices, chosen.indices) + (here.theta != chosen.theta)
        yield check(f"{name}: elements chosen otherwise than on the CPU", apart, 0)


def _apart(first: dict, second: dict) -> int:
    """How many positions are in one of two choices only."""
    nothing = torch.zeros(0, dtype=torch.int32)
    return sum(
        int(torch.isin(first.get(name, nothing).cpu(), second.get(name, nothing).cpu(), invert=True).sum())
        + int(torch.isin(second.get(name, nothing).cpu(), first.get(name, nothing).cpu(), invert=True).sum())
        for name in first.keys() | second.keys()
    )


def gradient_selection_results(setting):
    """Rounding may decide on the last few; the base's fingerprint is the same wherever the model is."""
    chosen, prints = [], []
    for place in (setting.on_cpu, setting):
        model, parts = small_unet().to(place.device), place.inputs()
        optimizer = SaRA(model, density=DENSITY, rule="gradient", loss=lambda: loss_of(model, parts))
        chosen.append({segment.name: segment.flat().int().cpu() for segment in optimizer.store.support})
        optimizer.detach(restore=True)
        prints.append(trained(model, place.device).store.base_fingerprint)
    share = _apart(*chosen) / sum(map(len, chosen[0].values()))
    yield check("share of elements chosen otherwise than on the CPU", share, 1e-2)
    yield check("fingerprint of the base is another", int(prints[0] != prints[1]), 0)


def streaming_results(setting, dtype):
    """Δ and the weights after two steps beside those of the same model that is on the device as a whole."""
    values, states = [], []
    for stream in (False, True):
        model = small_unet(dtype)
        options = {"optimizer": torch.optim.SGD, "lr": 1e-6, "weight_gradient": "csr"}
        if stream:
            optimizer = trained(model, "cpu", stream_to=setting.device, **options)
        else:
            optimizer = trained(model, setting.device, **options)
        _steps(optimizer, setting.inputs(dtype), 2)
        values.append(optimizer.values.detach().cpu())
        optimizer.detach()
        states.append(state_of(model))
    same = f"{int((values[0] != values[1]).sum())} of {len(values[0])} elements of Δ differ"
    yield check("Δ", relative_error(values[1], values[0]), 1e-5 if dtype == torch.float32 else 1e-2, same)
    largest = max(float((states[0][name].double() - states[1][name].double()).abs().max()) for name in states[0])
    yield check("largest difference of a weight", largest, 1e-6 if dtype == torch.float32 else 1e-2)


def continuing_results(setting):
    """Through a file and back, then on, beside four steps in one go; to the bit where two runs in one go are."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield from _continuing_results(setting)
    finally:
        torch.use_deterministic_algorithms(before)


def _continuing_results(setting):
    parts = setting.inputs()
    through = []
    for _ in range(2):
        optimizer = trained(small_unet(), setting.device, weight_gradient="csr")
        _steps(optimizer, parts, 4)
        through.append(optimizer.values.detach().clone())
    noise = relative_error(through[1], through[0])
    optimizer = trained(small_unet(), setting.device, weight_gradient="csr")
    _steps(optimizer, parts, 2)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again = trained(small_unet(), setting.device, weight_gradient="csr")
    again.load_state_dict(torch.load(file, weights_only=True, map_location=setting.device))
    yield check("weights that are others after loading", differing(state_of(again.model), state_of(optimizer.model)), 0)
    yield check("Δ and moments that are others", differing(_vectors(optimizer), _vectors(again)), 0)
    _steps(again, parts, 2)
    error = relative_error(again.values, through[0])
    yield check("Δ two steps on", error, 10 * noise, f"two runs in one go are {noise:.1e} apart")


def _vectors(optimizer) -> dict:
    state = optimizer.state[optimizer.values]
    return {"values": optimizer.values.detach(), **{name: state[name] for name in ("exp_avg", "exp_avg_sq")}}


def low_rank_results(setting):
    gradients, losses = [], []
    for place in (setting.on_cpu, setting):
        optimizer = trained(small_unet(), place.device)
        torch.manual_seed(1)
        with torch.no_grad():
            optimizer.values.copy_(torch.randn(optimizer.values.shape) * 1e-2)
        loss = LowRankLoss(optimizer.store, 0.1, seed=0, samples_per_step=1_000_000)  # all matrices, every time
        losses.append(loss.add_gradient())
        gradients.append(optimizer.values.grad)
    yield check("loss", abs(losses[1] / losses[0] - 1), 1e-6)
    yield check("gradient", relative_error(gradients[1], gradients[0]), 1e-4)


def adjustment_results(setting):
    found, vectors = [], []
    start = trained(small_unet(), "cpu", lr=1e-3)
    _steps(start, setting.on_cpu.inputs(), 2)
    theta = float(start.selection.theta) / 2
    for place in (setting.on_cpu, setting):
        optimizer = trained(small_unet(), place.device, lr=1e-3)
        optimizer.load_state_dict(copy.deepcopy(start.state_dict()))
        found.append(optimizer.adjust(theta))
        vectors.append({name: vector.cpu() for name, vector in _vectors(optimizer).items()})
        vectors[-1] |= {segment.name: segment.flat().cpu() for segment in optimizer.store.support}
    yield check("counts that are others than the CPU's", int(found[0] != found[1]), 0, str(found[1]))
    lengths = [{name: len(vector) for name, vector in each.items()} for each in vectors]
    apart = differing(*vectors) if lengths[0] == lengths[1] else math.inf
    yield check("elements that go on otherwise than on the CPU", apart, 0)
