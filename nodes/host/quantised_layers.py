"""Putting changes on quantised layers without rounding anything anew: the stored weights stay as they are.

Where the host dequantises a weight before it computes with it, the change is added to that copy, by a weight function
(`Added`). Where it multiplies in the quantised form, a weight function would switch that off and change the output by
some per cent, so the layer computes as always and the change is applied to its input beside it (`Beside`).
"""

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, contextmanager

import comfy.model_management
import comfy.ops
import torch
import torch.nn.functional as F
from comfy import patcher_extension

from ...sara_core.delta import SparseEntry
from ...sara_core.names.resolve import BIAS, WEIGHT
from ...sara_core.tensors.elements import add_sparse_, scatter_
from .own_forwards import has_any, method_of, put_beside, taken_off
from .precision import SMOOTHING, is_host_quantised, multiplies_quantised

_KEY = "sara"
_FOLDED = "linear_input_act"
_CALLS = patcher_extension.WrappersMP.APPLY_MODEL
_COMPUTED_WITH = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# With dynamic VRAM the host gives no weight functions to modules of up to 16 KiB.
_SMALL = 64 * 1024
# A dense product takes less time from a density of about 15 % on (bench precision --part speed).
_SPARSE_UP_TO = 0.1


def takes_changes(patcher, key: str, called: bool = True) -> bool:
    """Whether a quantised parameter can be changed here: a layer's weight or bias. The rest as for `put_on`."""
    module = patcher.model.get_submodule(key.rpartition(".")[0])
    if not key.endswith((WEIGHT, BIAS)) or not hasattr(module, "weight_function"):
        return False
    return called or _is_computed_beside(module) or not _gets_no_functions(patcher, module)


def put_on(patcher, entries: Mapping[str, SparseEntry], strength: float, called: bool = True) -> None:
    """Make a MODEL, or a CLIP's patcher, compute with strength · Δ added to quantised weights; it is changed, its
    weights are not.

    entries: by the host's keys, of layers that `takes_changes`; shapes as dequantised
    called: whether the host computes with it by `apply_model`, around which it puts wrappers; text encoders are called
        in ways of their own (own_forwards.py)
    """
    during_calls: dict[str, Added | Beside] = {}
    for key, entry in entries.items():
        module = patcher.model.get_submodule(key.rpartition(".")[0])
        if _is_computed_beside(module):
            if called:
                during_calls[key] = Beside(entry, strength)
            else:
                put_beside(patcher, key, Beside(entry, strength))
        elif _gets_no_functions(patcher, module):
            during_calls[key] = Added(entry, strength)
        else:
            patcher.add_weight_wrapper(key, Added(entry, strength))
    if during_calls:
        wrapper = DuringCalls(during_calls)
        # Among the MODEL's options, where a training finds it too, and not only the host's sampling.
        patcher_extension.add_wrapper_with_key(_CALLS, _KEY, wrapper, patcher.model_options, is_model_options=True)
        patcher.add_callback_with_key(patcher_extension.CallbacksMP.ON_CLEANUP, _KEY, wrapper.release)


def _is_computed_beside(module) -> bool:
    # A factor between the layer's input and its stored weight is not in what a weight function is given.
    return multiplies_quantised(module) or getattr(module, SMOOTHING, None) is not None


def _gets_no_functions(patcher, module) -> bool:
    if not hasattr(patcher, "add_weight_wrapper"):
        return True
    is_dynamic = getattr(patcher, "is_dynamic", lambda: False)
    return is_dynamic() and comfy.model_management.module_size(module) <= _SMALL


def with_added_weights(patcher):
    """A clone of a MODEL, or of a CLIP's patcher, that computes with every delta on it by weight functions, for who
    calls layers in other ways than the host, as gradient checkpointing and training do; itself if that is so already.
    """
    wrappers = patcher_extension.get_wrappers_with_key(_CALLS, _KEY, patcher.model_options, is_model_options=True)
    if not wrappers and not has_any(patcher):
        return patcher
    clone = patcher.clone()
    changes = taken_off(clone)
    if wrappers:
        clone.model_options["transformer_options"]["wrappers"][_CALLS].pop(_KEY)
        changes += [item for during_calls in wrappers for item in during_calls.changes.items()]
    for key, change in changes:
        clone.add_weight_wrapper(key, Added(_of_stored(patcher, key, change.entry), change.strength))
    return clone


def _of_stored(patcher, key: str, entry: SparseEntry) -> SparseEntry:
    """What a weight function has to add to a stored weight, whose input the host multiplies with a factor first."""
    smoothing = getattr(patcher.model.get_submodule(key.rpartition(".")[0]), SMOOTHING, None)
    if smoothing is None or not key.endswith(WEIGHT):
        return entry
    columns = smoothing.flatten().float().expand(entry.shape[-1])
    of_each = columns[entry.indices.long().to(columns.device) % entry.shape[-1]].to(entry.values.device)
    return entry._replace(values=entry.values.float() / of_each)


class _Change:
    """strength · Δ of one parameter, on whatever device it was needed last."""

    def __init__(self, entry: SparseEntry, strength: float):
        self.entry, self.strength = entry, strength
        self._indices, self._values = entry.indices, entry.values

    def on(self, device) -> tuple[torch.Tensor, torch.Tensor]:
        if self._indices.device != device:
            self._indices, self._values = self.entry.indices.to(device), self.entry.values.to(device)
        return self._indices, self._values

    def release(self, *_) -> None:
        self._indices, self._values = self.entry.indices, self.entry.values

    def move_to(self, device=None) -> int:
        """The host asks this when it loads and unloads a model, and counts the bytes."""
        return sum(tensor.nbytes for tensor in self.on(torch.device(device)))


class Added(_Change):
    """A weight function: adds strength · Δ to the dequantised copy that the host has made of a weight."""

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        if weight.dtype not in _COMPUTED_WITH:
            weight = weight.float()
        return add_sparse_(weight, *self.on(weight.device), self.strength)

    @contextmanager
    def during_call(self, module, parameter: str):
        name = f"{parameter}_function"
        before = getattr(module, name)
        setattr(module, name, [*before, self])
        try:
            yield
        finally:
            setattr(module, name, before)


class Beside(_Change):
    """What strength · Δ adds to a layer's output, computed from the layer's input."""

    @contextmanager
    def during_call(self, module, parameter: str):
        method = method_of(module)
        replaced = vars(module).get(method)
        setattr(module, method, self.beside(getattr(module, method), module, parameter))
        try:
            yield
        finally:
            if replaced is None:
                delattr(module, method)
            else:
                setattr(module, method, replaced)

    def beside(self, compute: Callable, module, parameter: str) -> Callable:
        """`compute`, a method of the module that takes its input, with the change in what it gives."""

        def computed(x, *args, **options):
            own = x.dequantize() if is_host_quantised(x) else x
            # Before the host computes: it clamps some inputs in place.
            change = self.of_output(module, parameter, own, *args)
            result = compute(x, *args, **options)
            return result + change.to(result.dtype)

        return computed

    def of_output(self, module, parameter: str, x, *args) -> torch.Tensor:
        """What is added to what the module gives for x, and for an expert's number where it is a bank of them."""
        if parameter == "bias":
            bias = self._dense(x.dtype, x.device)
            return bias if len(self.entry.shape) == 1 else bias[args[0]]
        if isinstance(module, torch.nn.Embedding):
            return F.embedding(x, self._dense(torch.float32, x.device))
        if len(self.entry.shape) == 3:
            return F.linear(x, self._expert(args[0], x.dtype, x.device))
        if self._is_sparse_enough and _multiplies_sparse(x):
            return (self._sparse(x.dtype, x.device) @ x.reshape(-1, x.shape[-1]).T).T.reshape(*x.shape[:-1], -1)
        return F.linear(x, self._dense(x.dtype, x.device))

    @property
    def _is_sparse_enough(self) -> bool:
        return len(self.entry.indices) <= _SPARSE_UP_TO * self.entry.numel

    def _sparse(self, dtype, device) -> torch.Tensor:
        """strength · Δ of a matrix in compressed rows: at a density of 1 %, a hundredth of a dense product's work."""
        indices, values = self.on(device)
        rows, columns = self.entry.shape
        starts = torch.searchsorted(indices, torch.arange(rows + 1, device=device) * columns)
        scaled = (values.float() * self.strength).to(dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            return torch.sparse_csr_tensor(
                starts.to(torch.int32), indices % columns, scaled, self.entry.shape, check_invariants=False
            )

    def _dense(self, dtype, device) -> torch.Tensor:
        return self._scattered(*self.on(device), self.entry.shape, dtype)

    def _expert(self, number: int, dtype, device) -> torch.Tensor:
        """Of a bank of experts [E, out, in], one matrix."""
        indices, values = self.on(device)
        shape = self.entry.shape[1:]
        size = shape[0] * shape[1]
        bounds = torch.tensor([number * size, (number + 1) * size], dtype=indices.dtype, device=device)
        first, last = torch.searchsorted(indices, bounds).tolist()
        return self._scattered(indices[first:last] - number * size, values[first:last], shape, dtype)

    def _scattered(self, indices, values, shape, dtype) -> torch.Tensor:
        change = torch.zeros(shape, dtype=dtype, device=indices.device)
        return scatter_(change, indices, (values.float() * self.strength).to(dtype))


def _multiplies_sparse(x: torch.Tensor) -> bool:
    """Whether torch multiplies compressed rows with such a tensor, quickly; it has no gradients through that."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and not x.requires_grad


@contextmanager
def _also_without_their_forward(beside: Mapping[torch.nn.Module, list[tuple[Beside, str]]]):
    """MiniMax has an int8 layer compute with an activation folded into it, by a function of the host that reads the
    layer's weight and does not call the layer: while this stands, the changes are added there too."""
    compute = getattr(comfy.ops, _FOLDED, None)
    if compute is None:
        yield
        return

    def computed(linear, x, input_act):
        changes, called = beside.get(linear, ()), []
        with ExitStack() as stack:
            if changes:
                stack.callback(linear.register_forward_pre_hook(lambda *_: called.append(True)).remove)
            result = compute(linear, x, input_act)
        if not changes or called:
            return result
        own = comfy.ops.INPUT_ACT_EAGER[input_act](x)
        for change, parameter in changes:
            result = result + change.of_output(linear, parameter, own).to(result.dtype)
        return result

    setattr(comfy.ops, _FOLDED, computed)
    try:
        yield
    finally:
        setattr(comfy.ops, _FOLDED, compute)


class DuringCalls:
    """A wrapper around each call of one MODEL: the changes stand while it computes, and never longer.

    Not injections: those leak between clones, which share the layers. Clones of this MODEL keep it.
    """

    def __init__(self, changes: dict[str, Added | Beside]):
        self.changes = changes

    def __call__(self, executor, *args, **options):
        beside = defaultdict(list)
        with ExitStack() as stack:
            for key, change in self.changes.items():
                layer, _, parameter = key.rpartition(".")
                module = executor.class_obj.get_submodule(layer)
                stack.enter_context(change.during_call(module, parameter))
                if isinstance(change, Beside):
                    beside[module].append((change, parameter))
            stack.enter_context(_also_without_their_forward(beside))
            return executor(*args, **options)

    def release(self, _patcher=None) -> None:
        """Give back what the changes hold on a GPU; the host calls this when it has sampled."""
        for change in self.changes.values():
            change.release()


def what_nodes_miss(kinds: Iterable[str], kind: str) -> str:
    """One line for people about a model, or a CLIP, whose quantised weights have these precisions."""
    precisions = ", ".join(sorted(set(kinds)))
    return (
        f"The delta is added as this {kind}'s weights are used, which stay as they are ({precisions}): nodes that save "
        "or merge models leave it out. SaRA Bake writes it into a file."
    )
