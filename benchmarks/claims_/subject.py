"""A subject from five pictures: an icon in colours that nobody has drawn it in, here and there on grounds of its own.

Trained with a word before its name, with the base's own pictures of the same name among the batches (DreamBooth's prior
preservation, https://arxiv.org/abs/2208.12242, section 3.2) or without, and judged by how near a picture with the word
is to the subject, how near one without it is, and how far the base's other pictures have moved.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from . import names
from .bench import Bench
from .better import BETTER
from .judge import Verdicts
from .lines import Job
from .protocol import BUDGETS, Cell

WORD = "sks"
TAUGHT, JUDGED = 5, 12  # pictures of a subject
OF_CLASS = 4  # of the base's own pictures for each of the subject's
NAMES = ("cat-face", "sailboat", "mushroom", "teapot", "rocket")
# What to call it → method and options.
METHODS = {name: BETTER[name] for name in ("SaRA", "LoRA", "SaRA, no adjustment")}
HUE = 96  # of 256: how far the colours are turned
LARGEST_SHIFT, SMALLEST_SCALE = 6, 0.75


def pictures(icon: np.ndarray, count: int, seed: int) -> torch.Tensor:
    """Float [count, 64, 64, 3] in 0..1 of an icon uint8 [64, 64, 3] on white, each elsewhere, on another ground."""
    random, subject = np.random.RandomState(seed), _turned(icon)
    size, drawn = len(icon), []
    for _ in range(count):
        inner = round(size * random.uniform(SMALLEST_SCALE, 1))
        small = np.asarray(Image.fromarray(subject).resize((inner, inner), Image.LANCZOS), np.float32) / 255
        one = np.ones((size, size, 3), np.float32)
        start = (size - inner) // 2
        one[start : start + inner, start : start + inner] = small
        one = np.roll(one, random.randint(-LARGEST_SHIFT, LARGEST_SHIFT + 1, size=2), axis=(0, 1))
        drawn.append(one * random.uniform(0.6, 1, size=3).astype(np.float32))
    return torch.from_numpy(np.stack(drawn))


def _turned(icon: np.ndarray) -> np.ndarray:
    """Its hues turned; white and black stay."""
    hue, saturation, value = Image.fromarray(icon).convert("HSV").split()
    return np.asarray(Image.merge("HSV", (hue.point(lambda h: (h + HUE) % 256), saturation, value)).convert("RGB"))


def measure(
    verdicts: Verdicts, subject: torch.Tensor, with_word: torch.Tensor, without: torch.Tensor,
    others: torch.Tensor, base_others: torch.Tensor,
) -> dict[str, float]:  # fmt: skip
    """subject and leaked: mean cosine of features between the subject's pictures and those drawn with the word, and of
    the plain name; drift: mean distance of other names' pictures from the base's own. All float [n, 64, 64, 3]."""
    directions = F.normalize(verdicts.features(subject), dim=1)

    def nearness(drawn: torch.Tensor) -> float:
        return (F.normalize(verdicts.features(drawn), dim=1) @ directions.T).mean().item()

    distance = 1 - F.cosine_similarity(verdicts.features(others), verdicts.features(base_others))
    return {"subject": nearness(with_word), "leaked": nearness(without), "drift": distance.mean().item()}


def jobs(bench: Bench, rate: Callable[[str, float], float]) -> list[Job]:
    """Every subject by METHODS of 2.3 %, with prior preservation and without, at the rates that a style gave."""
    from . import icon_sets, render

    share = BUDGETS[1]
    icons = dict(zip(*render.pictures(icon_sets.NOTO, bench.work)))

    def measured(called: str, name: str, preserved: bool) -> dict:
        method, options = METHODS[called]
        base = bench.new_model().requires_grad_(False).eval()
        plain = names.caption(name)
        with_word = f"{WORD} {plain}"
        taught, captions = pictures(icons[name], TAUGHT, seed=0), [with_word] * TAUGHT
        if preserved:
            own = bench.drawn(base, [plain] * TAUGHT * OF_CLASS, seed=1)
            taught, captions = torch.cat([taught.repeat(OF_CLASS, 1, 1, 1), own]), captions * OF_CLASS
            captions = captions + [plain] * len(own)
        cell = Cell(method, share, name, 0, rate(method, share), tuple(options.items()))
        model = bench.trained_on(bench.task_of(taught, captions, [plain] * len(captions)), cell).model
        others = [names.caption(other) for other in NAMES if other != name] * 5
        return measure(
            bench.verdicts, pictures(icons[name], JUDGED, seed=1), bench.drawn(model, [with_word] * JUDGED),
            bench.drawn(model, [plain] * JUDGED), bench.drawn(model, others), bench.drawn(base, others),
        )  # fmt: skip

    return [
        Job({"part": "subject", "method": called, "name": name, "preserved": preserved},
            lambda given=(called, name, preserved): measured(*given))
        for name in NAMES for preserved in (False, True) for called in METHODS
    ]  # fmt: skip
