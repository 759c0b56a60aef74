"""Whatever is done in whatever order, a loaded MODEL has the bits of the host's own way, and unloaded it has its own.

Random sequences of what graphs, the host and other packs do with two models of one layout. Everything expected is
computed from copies of the weights as they were made.
"""

import random
import threading

import pytest
import torch

from tests.support.patched_models import SHAPES, Deltas, as_the_host_patches, copies, load, small_patcher
from tests.support.toy_models import assert_same_bits, unload

SEQUENCES, STEPS = 20, 30
LAYERS = tuple(SHAPES)
CPU = torch.device("cpu")


class Checkpoint:
    """A model in memory: the MODEL of its loader, and its weights as they were."""

    def __init__(self, dtype: torch.dtype, seed: int, inference: bool):
        with torch.inference_mode(inference):
            self.patcher = small_patcher(dtype, seed, channels_last=bool(seed % 2))
        self.base = copies(self.patcher)


class Model:
    """A MODEL, and its patches with copies in place of the weights of others."""

    def __init__(self, checkpoint: Checkpoint, patcher, reference: dict[str, list]):
        self.checkpoint, self.patcher, self.reference = checkpoint, patcher, reference

    def with_patches(self, patches: dict, strength: float, of_model: float = 1.0, reference: dict | None = None):
        clone = self.patcher.clone()
        clone.add_patches(patches, strength, of_model)
        grown = {key: list(of_key) for key, of_key in self.reference.items()}
        for key, patch in (reference or patches).items():
            grown.setdefault(key, []).append((strength, patch, of_model, None, None))
        return Model(self.checkpoint, clone, grown)

    def expected(self) -> dict[str, torch.Tensor]:
        return as_the_host_patches(self.checkpoint.base, self.reference)


class Sequence:
    """One random sequence. Each method but `run` and `check` is something that may happen."""

    def __init__(self, seed: int, deltas: Deltas, kept: type):
        self.random, self.deltas, self.kept = random.Random(seed), deltas, kept
        dtype = self.random.choice([torch.float32, torch.bfloat16, torch.float16])
        self.inference = self.random.random() < 0.5
        self.checkpoints = [Checkpoint(dtype, 2 * seed + number, self.inference) for number in range(2)]
        self.models = [Model(one, one.patcher, {}) for one in self.checkpoints]
        self.held: list[tuple[dict, dict]] = []
        self.in_place = 0

    def run(self) -> None:
        actions = [
            self.delta, self.delta, self.delta, self.lora, self.merge, self.load, self.load, self.load, self.load,
            self.load_several, self.save, self.unload, self.unload_elsewhere, self.low_vram, self.unload_in_part,
            self.forget, self.hold, self.let_go, self.detach, self.wrapper,
        ]  # fmt: skip
        for _ in range(STEPS):
            with torch.inference_mode(self.random.random() < 0.7 if self.inference else False):
                self.random.choice(actions)()
                self.check()
        self.models.clear()
        unload()
        for one in self.checkpoints:
            one.patcher.detach()  # what was loaded past the host's own list of what is loaded
        for one in self.checkpoints:
            assert_same_bits(copies(one.patcher), one.base)
            assert not one.patcher.backup

    def check(self) -> None:
        """Of what lies whole in memory, every bit; whoever kept weights has what was in them."""
        for one in self.checkpoints:
            self._check_model(one)
        for weights, values in self.held:
            assert_same_bits(weights, values)

    def _check_model(self, one: Checkpoint) -> None:
        model = one.patcher.model
        self.in_place += sum(isinstance(entry, self.kept) for entry in one.patcher.backup.values())
        loaded = model.current_weight_patches_uuid
        if loaded is None:
            assert_same_bits(copies(one.patcher), one.base)
        elif not model.model_lowvram:
            of_it = [made for made in self.models if made.patcher.patches_uuid == loaded]
            if of_it:
                assert_same_bits(copies(one.patcher), of_it[0].expected())

    def delta(self) -> None:
        names = tuple(self.random.sample(LAYERS, self.random.randint(1, 3)))
        patches = self.deltas.patches(names, self.random.randint(0, 5))
        self._add(self._any().with_patches(patches, self.random.choice([1.0, 0.5, -0.7, 0.0])))

    def lora(self) -> None:
        name = self.random.choice(LAYERS)
        change = torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(self.random.randint(0, 9)))
        self._add(self._any().with_patches({f"{name}.weight": ("diff", (change * 0.1,))}, 0.6))

    def merge(self) -> None:
        taken, into = self._any(), self._any()
        keys = [f"{name}.weight" for name in self.random.sample(LAYERS, 2)]
        given = {key: taken.patcher.get_key_patches()[key] for key in keys}
        base = taken.checkpoint.base
        reference = {key: [(base[key], lambda weight, **_: weight), *taken.reference.get(key, [])] for key in keys}
        self._add(into.with_patches(given, 0.3, 0.7, reference))

    def wrapper(self) -> None:
        one = self._any()
        clone = one.patcher.clone()
        clone.add_weight_wrapper("first.weight", lambda weight: weight)
        self._add(Model(one.checkpoint, clone, one.reference))

    def load(self) -> None:
        load(self._any().patcher)

    def load_several(self) -> None:
        load(self._any().patcher, self._any().patcher)

    def save(self) -> None:
        load(self._any().patcher, force_patch_weights=True)

    def unload(self) -> None:
        unload()

    def unload_elsewhere(self) -> None:
        thread = threading.Thread(target=unload)
        thread.start()
        thread.join()

    def low_vram(self) -> None:
        one = self._any().patcher
        unload()
        one.detach()  # it may have been loaded past the host's own list
        one.load(CPU, lowvram_model_memory=self.random.choice([1, 1500, 2500]))

    def unload_in_part(self) -> None:
        self._any().patcher.partially_unload(CPU, self.random.choice([1, 300, 700]))

    def detach(self) -> None:
        self._any().patcher.detach()

    def forget(self) -> None:
        if len(self.models) > 3:
            self.models.pop(self.random.randrange(2, len(self.models)))

    def hold(self) -> None:
        patcher = self._any().patcher
        self.held.append((dict(patcher.model.state_dict()), copies(patcher)))

    def let_go(self) -> None:
        self.held.clear()

    def _any(self) -> Model:
        return self.random.choice(self.models)

    def _add(self, model: Model) -> None:
        self.models.append(model)
        if self.random.random() < 0.7:
            load(model.patcher)


@pytest.mark.parametrize("seed", range(SEQUENCES))
def test_any_sequence_has_the_bits_of_the_hosts_own_way(comfy, pack, seed):
    kept = comfy.pack_module("nodes.host.loading.kept").KeptElements
    sequence = Sequence(seed, Deltas(pack.patching.SaRAAdapter, pack.SparseEntry), kept)
    try:
        sequence.run()
        assert sequence.in_place > 0  # or nothing was tried
    finally:
        unload()
