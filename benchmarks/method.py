"""What the parts of the method are worth on the demo's toy model: the low-rank loss and the adjustment, off and on.

    python dev.py bench method [--steps N] [--seeds N] [--json FILE] [--plot FILE]

The demo's style is trained by SaRA Train in ComfyUI with the demo's settings and each of the four combinations. Then,
for every seed:
ineffective  share of the trained weights that are still below θ at the end
styled       share of samples judged to be in the style, with the trigger; and the right digit among them
base loss    mean denoising loss on digits and plain captions that nothing was trained on, fixed noise, against the
             base model's: how much the training has cost what the model knew
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from demo import digits, evaluate, settings
from devtools.checkpoint import demo_checkpoint
from devtools.comfyui.in_process import InProcessHost
from devtools.comfyui.install import prepare
from devtools.progress import Progress
from devtools.style_training import StyleTraining

# λ of the authors' scripts.
LOW_RANK = 5e-4
VARIANTS = {
    "neither": {"low_rank_weight": 0.0, "adjust_at": ""},
    "low-rank loss only": {"low_rank_weight": LOW_RANK, "adjust_at": ""},
    "adjustment only": {"low_rank_weight": 0.0, "adjust_at": "0.5"},
    "both": {"low_rank_weight": LOW_RANK, "adjust_at": "0.5"},
}
MEASURES = ("ineffective", "styled", "right", "base loss")
SAMPLES, HELD_OUT, LEVELS = 100, 60, 6
# Fewer than the demo's, after which every combination draws the style.
STEPS = 150


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench method", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps of each run (default: {STEPS})")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each combination (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement to FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture of the table to FILE")
    arguments = parser.parse_args()
    checkpoint = demo_checkpoint()
    results: dict[str, list[dict]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory(prefix="comfyui-sara-bench-") as base:
        bench = Bench(InProcessHost(prepare(), Path(base)), checkpoint)
        progress = Progress()
        for seed in range(arguments.seeds):
            for name, variant in VARIANTS.items():
                start = time.perf_counter()
                result = bench.run({"steps": arguments.steps, "seed": seed, **variant})
                results[name].append(result)
                progress.say(f"seed {seed}, {name}: {time.perf_counter() - start:.0f} s, {result}")
    print(table(results))
    print(
        f"{arguments.steps} steps at {settings.TRAINING['density']} %, θ = {bench.theta:.3g}, λ = {LOW_RANK:g}; median "
        f"(lowest to highest) of {arguments.seeds} seeds; {SAMPLES} samples each."
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    if arguments.plot:
        plot(results, arguments.plot)
    return 0


class Bench:
    """The demo's model in a host, its style to train on, and digits to judge the rest by."""

    def __init__(self, host: InProcessHost, checkpoint: Path):
        self.host = host
        with torch.inference_mode():
            self.base = evaluate.load(checkpoint)
        self.theta = float("nan")
        self.training = StyleTraining(host, self.base)
        test = digits.load_split().test
        chosen = slice(0, HELD_OUT)
        self.held_out = self.training.encoded(
            digits.paint(test.ink[chosen]), [digits.caption(int(label), "") for label in test.labels[chosen]]
        )
        self.base_loss = self._loss(self.base.model)

    def run(self, inputs: dict) -> dict[str, float]:
        """Train once and measure; see the module's description."""
        delta, styled = self.training.train(**inputs)
        self.theta = json.loads(delta.metadata["sara.selection"])["theta"]
        pictures, asked = evaluate.draw(styled, settings.STYLE, SAMPLES)
        score = evaluate.score(pictures, asked)
        return {
            "ineffective": self._ineffective(delta), "styled": score.styled, "right": score.right,
            "base loss": self._loss(styled.model) / self.base_loss,
        }

    def _ineffective(self, delta) -> float:
        with torch.inference_mode():
            self.host.execute("SaRAApply", model=self.base.model, delta=delta, strength=0.0)
            weights = self.base.model.model_state_dict()
        below = 0
        for name, (indices, values, _) in delta.entries.items():
            below += int(((weights[name].flatten()[indices.long()].float() + values).abs() < self.theta).sum())
        return below / delta.nnz

    def _loss(self, model) -> float:
        """Mean loss on the held-out digits, each at the same noise levels with the same noise."""
        import comfy.model_management

        pairing, dataset, denoiser = (
            self.host.pack_module(f"nodes.host.training.{name}") for name in ("pairing", "dataset", "denoiser")
        )
        generator = torch.Generator().manual_seed(0)
        with torch.inference_mode():
            comfy.model_management.load_models_gpu([model])
        with torch.inference_mode(False), torch.no_grad():
            samples = dataset.prepare_samples(model, pairing.pair(*self.held_out), seed=0)
            network = denoiser.Denoiser(model)
            positions = torch.linspace(0, len(network.sigmas) - 1, 2 * LEVELS + 1).long()[1::2]
            losses = []
            for position in positions:
                noises = [torch.randn(sample.latent.shape, generator=generator) for sample in samples]
                losses.append(network.losses(samples, [network.sigmas[position]] * len(samples), noises).mean())
        return float(torch.stack(losses).mean())


def table(results: dict[str, list[dict]]) -> str:
    lines = ["| | " + " | ".join(MEASURES) + " |", "| --- " * (len(MEASURES) + 1) + "|"]
    for name, runs in results.items():
        cells = [described([run[measure] for run in runs], measure) for measure in MEASURES]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def described(values: list[float], measure: str) -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    if measure == "base loss":
        return f"{middle:.3f} × ({low:.3f} to {high:.3f})"
    return f"{middle:.1%} ({low:.1%} to {high:.1%})"


def plot(results: dict[str, list[dict]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(11, 3), constrained_layout=True)
    titles = {
        "ineffective": "trained weights still below θ", "styled": "samples in the style",
        "base loss": "loss on plain digits ÷ the base's",
    }
    for panel, (measure, title) in zip(panels, titles.items()):
        for position, runs in enumerate(results.values()):
            values = [run[measure] for run in runs]
            panel.bar(position, statistics.median(values), color=f"C{position}", alpha=0.7)
            panel.plot([position] * len(values), values, "k.", markersize=5)
        panel.set_title(title, fontsize=10)
        panel.set_xticks(range(len(results)), [name.replace(" only", "") for name in results], rotation=20, fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[2].set_ylim(bottom=0.9)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
