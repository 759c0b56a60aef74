"""What training and applying do with one case, in the host that runs in this process.

A case ends with the first thing that does not hold: `exact`, `not exact` (and what is not), `refused`, `crash`, or
`cannot be built`.
"""

import copy
import traceback
from collections.abc import Callable
from contextlib import contextmanager

import torch

from tests.support.toy_models import assert_same_bits, expected_weights, loaded_weights, unload

from .build import make_model
from .case import Case

EXACT, NOT_EXACT, REFUSED, CRASH, NOT_BUILT = "exact", "not exact", "refused", "crash", "cannot be built"
BATCH, DENSITY, STEPS = 2, 0.05, 12
# For random models that small; the loss of each must fall with one of them.
RATES = (1e-2, 3e-3, 1e-3, 3e-4)
# Relative to the largest of them; dense ones are added up in another order.
GRADIENT_TOLERANCE = 1e-5
# A difference of two fp32 losses tells a slope no better; one of these steps has to agree.
SLOPE_TOLERANCE = 5e-3
SLOPE_STEPS = (3e-2, 1e-2, 3e-3, 1e-3)
# What makes a line in a table of a message of many.
LONGEST = 300


def measure(host, case: Case, config: type) -> dict:
    """outcome, and beside it `why` in words, or the figures.

    host: a devtools.comfyui.in_process.InProcessHost
    """
    result = {"case": case.name, "class": config.__name__}
    try:
        with torch.inference_mode():
            model = make_model(case, config)
    except Exception as error:
        return {**result, "outcome": NOT_BUILT, "why": _place(error)}
    result["parameters"] = sum(parameter.numel() for parameter in model.model.diffusion_model.parameters())
    result["family"] = host.pack_module("nodes.host.family").model_family(model)
    try:
        result.update(_used(host, case, model))
        result.update(_gradients(host, case, config, model))
        return {**result, "outcome": EXACT}
    except _NotExact as error:
        return {**result, "outcome": NOT_EXACT, "why": str(error)}
    except Exception as error:
        own = host.pack_module("sara_core.errors").SaRAError
        if isinstance(error, own):
            return {**result, "outcome": REFUSED, "why": _short(str(error))}
        return {**result, "outcome": CRASH, "why": _place(error)}
    finally:
        unload()


class _NotExact(Exception):
    """A promise that does not hold; says which."""


def _used(host, case: Case, model) -> dict:
    """Train with the node, save, load with SaRA Loader and with the stock loader; every bit compared."""
    with torch.inference_mode():
        base = loaded_weights(model)
    captions = case.captions(BATCH)
    mask = {} if case.noise_mask is None else {"noise_mask": torch.ones(case.noise_mask)}
    delta, _ = host.execute(
        "SaRATrain", model=model, latents=[{"samples": latent, **mask} for latent in case.latents(BATCH)],
        positive=[[copy.copy(caption)] for caption in captions], steps=3, batch_size=BATCH, density=100 * DENSITY,
        learning_rate=1e-3,
    ).outputs  # fmt: skip
    with torch.inference_mode():
        _same(loaded_weights(model), base, "the MODEL is changed after training")
    prefix = f"sara/{case.name.replace(' ', '-')}"
    file = host.execute("SaRASave", delta=delta, filename_prefix=prefix).ui["text"][0].split("/")[-1]
    with torch.inference_mode():
        expected = expected_weights(base, delta, 1.0)
        for node, name, strength in (
            ("SaRALoader", "sara_name", "strength"),
            ("LoraLoaderModelOnly", "lora_name", "strength_model"),
        ):
            loaded = host.execute(node, **{"model": model, name: file, strength: 1.0}).outputs[0]
            _same(loaded_weights(loaded), expected, f"{node} does not give base + Δ")
            _same(loaded_weights(model), base, f"the MODEL is changed after {node}")
    return {"trained elements": delta.nnz}


def _same(weights: dict, expected: dict, message: str) -> None:
    try:
        assert_same_bits(weights, expected)
    except AssertionError:
        raise _NotExact(message) from None


def _gradients(host, case: Case, config: type, model) -> dict:
    """On one batch with fixed noise: the sparse gradient beside a dense one and beside differences of the loss, and
    whether the loss falls."""
    dense = _dense_gradients(host, case, config)
    isolation = host.pack_module("nodes.host.training.isolation")
    with torch.inference_mode(False), torch.enable_grad():
        with isolation.training_model(model, {"density": DENSITY}, (BATCH, *case.latent)) as training:
            loss, store = _fixed_loss(host, training.patcher, case), training.store
            for _ in range(2):  # the second forward shows what the first has left behind in a model
                store.values.grad = None
                loss().backward()
            gradient = store.values.grad.clone()
            expected = torch.cat([_masked(dense.get(segment.name), segment) for segment in store.support])
            error = ((gradient - expected).abs().max() / expected.abs().max()).item()
            if not error <= GRADIENT_TOLERANCE:
                raise _NotExact(f"gradients differ from dense ones by {error:.2g} of the largest")
            slope = _slope_error(store, loss, gradient)
            if not slope <= SLOPE_TOLERANCE:
                raise _NotExact(f"the gradient differs from a difference of losses by {slope:.2g} of its length")
            first, last = _falling(store, loss)
            if not last < first:
                raise _NotExact(f"the loss does not fall: {first:.4g} → {last:.4g}")
    return {"gradient error": error, "slope error": slope, "first loss": first, "last loss": last}


def _masked(gradient: torch.Tensor | None, segment) -> torch.Tensor:
    """The support's elements; zeros for a weight that dense autograd does not reach either."""
    return torch.zeros(len(segment)) if gradient is None else gradient.flatten()[segment.flat()]


def _dense_gradients(host, case: Case, config: type) -> dict[str, torch.Tensor | None]:
    """Weight key → gradient by plain autograd through the host's own layers."""
    kernels = host.pack_module("nodes.host.training.kernels")
    with torch.inference_mode(False), torch.enable_grad(), _marked_as_training():
        patcher = make_model(case, config)
        network = patcher.model.diffusion_model.requires_grad_(True)
        undo = kernels.use_differentiable_kernels()
        try:
            with torch.autograd.graph.allow_mutation_on_saved_tensors():
                _fixed_loss(host, patcher, case)().backward()
        finally:
            undo()
        return {f"diffusion_model.{name}": parameter.grad for name, parameter in network.named_parameters()}


@contextmanager
def _marked_as_training():
    """Without it the host takes attention kernels that have no gradient."""
    from comfy import model_management

    before = getattr(model_management, "in_training", False)
    model_management.in_training = True
    try:
        yield
    finally:
        model_management.in_training = before


def _fixed_loss(host, patcher, case: Case) -> Callable[[], torch.Tensor]:
    """The mean loss of one batch, with the same noise and noise levels each time."""
    pairs = host.pack_module("nodes.host.training.pairing").Pairs(case.latents(BATCH), case.captions(BATCH))
    samples = host.pack_module("nodes.host.training.dataset").prepare_samples(patcher, pairs, seed=0)
    denoiser = host.pack_module("nodes.host.training.denoiser").Denoiser(patcher)
    count, generator = len(denoiser.sigmas), torch.Generator().manual_seed(3)
    levels = [count // 3, count * 2 // 3]
    noises = [torch.randn(sample.latent.shape, generator=generator) for sample in samples]
    return lambda: denoiser.losses(samples, [denoiser.sigmas[level].clone() for level in levels], noises).mean()


@torch.no_grad()
def _slope_error(store, loss, gradient: torch.Tensor) -> float:
    """How far the gradient's length is from the loss's slope along it, as a share of that length."""
    length = gradient.norm().item()
    if not length:
        return float("nan")
    middle, errors = loss().item(), []
    for part in SLOPE_STEPS:
        step, values = part * middle / length, []
        for sign in (1, -1):
            store.values.copy_(sign * step / length * gradient)
            store.write()
            values.append(loss().item())
        errors.append(abs((values[0] - values[1]) / (2 * step) - length) / length)
    store.values.zero_()
    store.write()
    return min(errors)


def _falling(store, loss) -> tuple[float, float]:
    """The loss before and after some steps of Adam, with the first rate that makes it fall."""
    for rate in RATES:
        with torch.no_grad():
            store.values.zero_()
            store.write()
            first = loss().item()
        optimizer = torch.optim.Adam([store.values], rate)
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
            store.write()
        with torch.no_grad():
            last = loss().item()
        if last < first:
            break
    return first, last


def _short(message: str) -> str:
    message = " ".join(message.split())
    return message if len(message) <= LONGEST else message[: LONGEST - 1] + "…"


def _place(error: Exception) -> str:
    """What was raised and by what, without the folders of this machine."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    module = "/".join(last.filename.replace("\\", "/").split("/")[-3:])
    return _short(f"{type(error).__name__}: {error}") + f" ({module}:{last.lineno})"
