"""The training loop. It knows nothing of hosts, data or pictures: it is given losses and reports steps."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..backward.store import Store
from ..errors import TrainingError
from ..files.saved_state import LARGEST_COUNT, LEAST_ABOVE_0, damaged, fields, number, sequence, tensor, whole_number
from ..wording import Sentence
from .adjustment import Adjustment, adjust
from .low_rank import LowRankLoss
from .optimizer import check_all_reached
from .optimizer_state import checked_optimizer_state
from .schedule import planned_rate_factor

# After a step without a finite result the learning rate is halved; it doubles again after this many good steps.
RECOVERY_STEPS = 100
# In a run's state: Δ of before the last step, to which a step without a finite loss goes back.
LAST_GOOD = "last_good"


@dataclass(frozen=True)
class TrainingSettings:
    """How the loop goes.

    steps: optimizer steps
    accumulation: micro-batches per step, their losses averaged
    max_grad_norm: the gradient of Δ is scaled down to this 2-norm, 0 = never
    schedule, warmup: of the learning rate (schedule.py); warmup in steps, 0 = none
    adjust_at: steps after which the elements that have reached θ are frozen, and only the others go on: the paper's
        progressive parameter adjustment; ignored without a θ
    theta: that θ; None where the selection has none, which switches adjustment off
    patience: so many steps in a row without a finite loss and gradient end the run; fewer are skipped
    """

    steps: int
    accumulation: int = 1
    max_grad_norm: float = 1.0
    schedule: str = "constant"
    warmup: int = 0
    adjust_at: tuple[int, ...] = ()
    theta: float | None = None
    patience: int = 3


class Training:
    """A run, and everything that changes while it goes on: `state()` at any time continues it, bit for bit on the CPU
    of the same machine with the same torch and number of threads.

    batches: computes the loss (scalar, with graph) of the next micro-batch; with state(), check_state() and
        load_state(), as data/denoising_loss.py, if the run is to be continued later
    low_rank: its add_gradient() adds to the gradient of Δ once per step (low_rank.py)
    scaler: scales the loss for fp16 compute; a step whose scaled gradient overflows is skipped and the scale lowered
    average: replaces a tensor by its mean over the processes that train together, each with its own part of a batch
    check_reached: called after the first backward; raises if a trained weight that matters got no gradient

    step: number of steps done; losses: the mean loss of each, NaN for one that was skipped
    adjustments: (step, Adjustment) of each
    plan: the step at which the run was first to end, and that of each part that was added when it was trained on
    adjust_at: as of the settings that it began with
    """

    def __init__(
        self,
        store: Store,
        optimizer: torch.optim.Optimizer,
        batches: Callable[[], torch.Tensor],
        settings: TrainingSettings,
        low_rank: LowRankLoss | None = None,
        scaler: torch.amp.GradScaler | None = None,
        average: Callable[[torch.Tensor], None] | None = None,
        check_reached: Callable[[Store], None] = check_all_reached,
    ):
        self.store, self.optimizer, self.batches, self.settings = store, optimizer, batches, settings
        self.low_rank, self.average, self.check_reached = low_rank, average, check_reached
        self.scaler = scaler or torch.amp.GradScaler(store.values.device.type, enabled=False)
        self.step = 0
        self.losses: list[float] = []
        self.adjustments: list[tuple[int, Adjustment]] = []
        self.plan, self.adjust_at = (settings.steps,), tuple(settings.adjust_at)
        self._rates = [group["lr"] for group in optimizer.param_groups]
        self._back_off, self._good, self._bad = 1.0, 0, 0
        self._last_good = store.values.detach().clone()
        self._drawn = self._data_state()

    def run(
        self,
        on_step: Callable[[int, float], None] = lambda step, loss: None,
        on_micro_batch: Callable[[], None] = lambda: None,
    ) -> list[float]:
        """Train to the end and return the losses.

        on_step: called after each step with the number of steps done (from 1) and its loss
        on_micro_batch: called before each micro-batch; may raise to stop the run

        Whatever is raised, here or in a callback, Δ and the live weights are those of the last complete step. Too many
        non-finite steps raise TrainingError, with Δ back at the last values known to give a finite loss.
        """
        while self.step < self.settings.steps:
            self._set_rate()
            loss = self._one_step(on_micro_batch)
            self.step += 1
            self.losses.append(loss)
            if self.step in self.adjust_at:
                self._adjust()
            self._drawn = self._data_state()
            on_step(self.step, loss)
        return self.losses

    def _set_rate(self):
        settings = self.settings
        factor = planned_rate_factor(settings.schedule, self.step, self.plan, settings.warmup) * self._back_off
        for group, rate in zip(self.optimizer.param_groups, self._rates):
            group["lr"] = rate * factor

    def _one_step(self, on_micro_batch) -> float:
        """The order is a contract: each phase relies on those before it."""
        values = self.store.values
        self.optimizer.zero_grad(set_to_none=False)
        loss = self._accumulate(on_micro_batch)
        if not math.isfinite(loss):
            return self._skip("loss", loss)
        if self.step == 0:
            self.check_reached(self.store)

        # Average while the gradient is still scaled: what overflowed in one process then has in all, and all skip.
        if self.average is not None:
            self.average(values.grad)

        # Unscale, and note what overflowed, before anything is added to the gradient or measured in its own units.
        self.scaler.unscale_(self.optimizer)

        # The low-rank gradient is part of the loss's, so it comes once a step and is clipped with the rest.
        if self.low_rank is not None:
            self.low_rank.add_gradient()

        # Clip last, so that the norm is that of the gradient with which the optimizer steps.
        norm = torch.nn.utils.clip_grad_norm_([values], self.settings.max_grad_norm or math.inf)

        # Remember the values before they change: they gave a finite loss, which those after the step need not.
        self._last_good.copy_(values.detach())

        # Step. The scaler leaves the step out if the gradient overflowed, and lowers its scale; where there is nothing
        # to lower, the gradient itself is at fault.
        if not torch.isfinite(norm) and self.scaler.get_scale() <= 1.0:
            self.scaler.update()
            return self._skip("gradient", norm.item())
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if not torch.isfinite(values).all():
            self.optimizer.state.clear()  # its moments are no better than the values
            return self._skip("change of the weights", math.inf)

        # Write Δ into the model only now that it is known to be sound.
        self.store.write()
        self._bad, self._good = 0, self._good + 1
        if self._good % RECOVERY_STEPS == 0:
            self._back_off = min(1.0, 2 * self._back_off)
        return loss

    def _accumulate(self, on_micro_batch) -> float:
        mean = 0.0
        for _ in range(self.settings.accumulation):
            on_micro_batch()
            loss = self.batches() / self.settings.accumulation
            mean += loss.item()
            if not math.isfinite(mean):
                break
            self.scaler.scale(loss).backward()
        return mean if self.average is None else self._averaged(mean)

    def _averaged(self, loss: float) -> float:
        """The same in every process, so that all skip a step together."""
        everywhere = torch.tensor(loss, dtype=torch.float64, device=self.store.values.device)
        self.average(everywhere)
        return everywhere.item()

    def _skip(self, what: str, value: float) -> float:
        with torch.no_grad():
            self.store.values.copy_(self._last_good)
        self.store.write()
        self._bad, self._good, self._back_off = self._bad + 1, 0, self._back_off / 2
        if self._bad >= self.settings.patience:
            raise _diverged(self.step + 1, self._bad, what, value)
        return math.nan

    def _adjust(self):
        if self.settings.theta is not None:
            self.adjustments.append((self.step, adjust(self.store, self.optimizer, self.settings.theta)))
            self._last_good = self.store.values.detach().clone()

    def _data_state(self):
        return self.batches.state() if hasattr(self.batches, "state") else None

    def state(self) -> dict:
        """Everything that an exact continuation needs, as of the last complete step: numbers, lists and tensors."""
        return {
            "step": self.step,
            "losses": list(self.losses),
            "plan": list(self.plan),
            "adjust_at": list(self.adjust_at),
            "adjustments": [[step, list(adjustment)] for step, adjustment in self.adjustments],
            "caution": [self._back_off, self._good, self._bad],
            "store": self.store.state(),
            LAST_GOOD: self._last_good.clone(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "batches": self._drawn,
            "low_rank": None if self.low_rank is None else self.low_rank.state(),
        }

    def check_state(self, state: dict) -> dict:
        """The optimizer's part of `state`, which must come from `state()` of a run of the same settings.

        Raises DeltaError for a state that is damaged, was taken over another base or with other trained elements, and
        what the batches raise for other images; nothing is changed.
        """
        fields(state, "it", (
            "step", "losses", "adjustments", "caution", "store", "optimizer", "scaler", "batches", "low_rank",
        ))  # fmt: skip
        active = self.store.check_state(state["store"])
        if LAST_GOOD in state:  # older snapshots have none
            tensor(state[LAST_GOOD], "the last good values", torch.float32, (active,))
        step = whole_number(state["step"], "its number of steps", 0, self.settings.steps)
        for loss in sequence(state["losses"], "its list of losses", step):
            if not (isinstance(loss, float) and math.isnan(loss)):  # that of a step that was skipped
                number(loss, "a loss")
        self._check_plan(state, step)
        for entry in sequence(state["adjustments"], "its list of adjustments"):
            after, (trained, ineffective, kept) = _pair(entry)
            whole_number(after, "the step of an adjustment", 1, step)
            whole_number(trained, "the number of elements before an adjustment", 1, LARGEST_COUNT)
            whole_number(ineffective, "the number of elements after an adjustment", 0, trained)
            if not isinstance(kept, bool):
                raise damaged("whether moments were kept is neither true nor false")
        back_off, good, bad = sequence(state["caution"], "its caution", 3)
        number(back_off, "its factor of the learning rate", LEAST_ABOVE_0, 1.0)
        whole_number(good, "its number of good steps", 0, step)
        whole_number(bad, "its number of bad steps", 0, step)
        self._check_scaler(state["scaler"])
        if hasattr(self.batches, "check_state"):
            self.batches.check_state(state["batches"])
        if (state["low_rank"] is None) != (self.low_rank is None):
            raise damaged("it has a low-rank loss and the run has none, or the other way round")
        if self.low_rank is not None:
            self.low_rank.check_state(state["low_rank"])
        return checked_optimizer_state(self.optimizer, state["optimizer"], active, step, same_options=True)

    def _check_plan(self, state, step: int) -> None:
        plan, adjust_at = self._planned(state)
        before = 0
        for end in sequence(plan, "its plan"):
            before = whole_number(end, "an end in its plan", before + 1, LARGEST_COUNT)
        if before < step:
            raise damaged("its plan ends before the steps that are done")
        for after in sequence(adjust_at, "its steps of adjustment"):
            whole_number(after, "a step of adjustment", 0, LARGEST_COUNT)

    def _planned(self, state) -> tuple[Sequence[int], Sequence[int]]:
        """Older snapshots say nothing of it."""
        return state.get("plan", self.plan), state.get("adjust_at", self.adjust_at)

    def _check_scaler(self, saved) -> None:
        current = self.scaler.state_dict()
        saved = fields(saved, "its loss scale", current)
        for name, value in current.items():  # none, where losses are not scaled
            if name == "scale":
                number(saved[name], "its loss scale", LEAST_ABOVE_0)
            elif name == "_growth_tracker":
                whole_number(saved[name], "its steps with this loss scale", 0, LARGEST_COUNT)
            elif saved[name] != value:
                raise damaged(f"the {name} of its loss scale is not the run's")

    def load_state(self, state: dict) -> None:
        """Go on where `state` was taken, from a run of the same settings that has not begun; its steps may be more, and
        fewer as far as they are not done yet. Up to the end that was planned then nothing changes; what is added beyond
        is a part of its own in the schedule (planned_rate_factor), without adjustments.

        Raises what `check_state` raises; nothing is changed then.
        """
        optimizer = self.check_state(state)
        self.store.load_state(state["store"])
        self.optimizer.load_state_dict(optimizer)
        self.store.write(frozen=True)
        self.scaler.load_state_dict(state["scaler"])
        self.batches.load_state(state["batches"])
        if self.low_rank is not None:
            self.low_rank.load_state(state["low_rank"])
        self.step, self.losses = state["step"], list(state["losses"])
        self.adjustments = [(step, Adjustment(*adjustment)) for step, adjustment in state["adjustments"]]
        plan, adjust_at = map(tuple, self._planned(state))
        self.plan = plan if self.settings.steps <= plan[-1] else (*plan, self.settings.steps)
        self.adjust_at = adjust_at
        self._back_off, self._good, self._bad = state["caution"]
        self._last_good = state.get(LAST_GOOD, self.store.values.detach()).to(self.store.values.device, copy=True)
        self._drawn = self._data_state()


def _pair(entry) -> tuple:
    step, adjustment = sequence(entry, "an adjustment", 2)
    return step, sequence(adjustment, "an adjustment", len(Adjustment._fields))


def _diverged(step: int, times: int, what: str, value: float) -> TrainingError:
    if step == times:  # it never was finite: nothing that was learnt can be the cause
        remedy = Sentence(
            "It was never finite, so the learning rate is not to blame: the images, the captions or the model hold "
            "values that are not numbers. Try another VAE (some give black pictures in fp16) or another model file."
        )
    else:
        remedy = Sentence("Lower the learning rate, or check the training images for damaged files.")
    repeated = Sentence(" for the {times}. time in a row", times=times) if times > 1 else ""
    return TrainingError(Sentence(
        "Training stopped at step {step}: the {what} became {value}{repeated}. The last good values are kept. "
        "{remedy}", step=step, what=what, value=str(value), repeated=repeated, remedy=remedy,
    ))  # fmt: skip
