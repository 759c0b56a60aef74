"""The judge of drawn icons: one small network that has seen every set, and that no training ever uses.

A trunk of convolutions with two heads, trained together: which set a picture is of (style), and which name belongs to
it, by the contrastive loss of CLIP (https://arxiv.org/abs/2103.00020, section 2.3) with words of names in the text
encoder's place. The trunk's features, in which both are, are what FID and KID compare. Pictures that the base's
autoencoder has decoded are among those it learns from, so that what that loses is not mistaken for a style.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from . import icon_sets, names, render

FILE = Path(__file__).resolve().parent / "judge.safetensors"
STYLES = tuple(icons.name for icons in icon_sets.ALL)
FEATURES, SHARED = 256, 128
STEPS, BATCH, LEARNING_RATE = 3000, 128, 2e-3
DECODED_SHARE = 0.5


class _Block(torch.nn.Module):
    """Two convolutions beside a shortcut, at half the size afterwards."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.first = torch.nn.Conv2d(before, after, 3, stride=2, padding=1)
        self.second = torch.nn.Conv2d(after, after, 3, padding=1)
        self.shortcut = torch.nn.Conv2d(before, after, 1, stride=2)
        self.norms = torch.nn.ModuleList(torch.nn.GroupNorm(8, width) for width in (after, after))

    def forward(self, x):
        inner = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(inner)) + self.shortcut(x))


class Judge(torch.nn.Module):
    """words: the vocabulary of all names, in order."""

    def __init__(self, words: Sequence[str]):
        super().__init__()
        self.words = {word: number for number, word in enumerate(words)}
        widths = (24, 48, 96, 192, FEATURES)
        self.stem = torch.nn.Conv2d(3, widths[0], 3, padding=1)
        self.blocks = torch.nn.Sequential(*(_Block(a, b) for a, b in zip(widths, widths[1:])))
        self.style = torch.nn.Linear(FEATURES, len(STYLES))
        self.of_picture = torch.nn.Linear(FEATURES, SHARED)
        self.embedding = torch.nn.EmbeddingBag(len(words), FEATURES, mode="mean")
        self.of_name = torch.nn.Sequential(torch.nn.Linear(FEATURES, FEATURES), torch.nn.ReLU(),
                                           torch.nn.Linear(FEATURES, SHARED))
        self.log_scale = torch.nn.Parameter(torch.tensor(2.5))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Features [n, FEATURES] of pictures [n, 3, 64, 64] in 0..1."""
        return self.blocks(F.relu(self.stem(pictures * 2 - 1))).mean((2, 3))

    def pictures_embedded(self, features: torch.Tensor) -> torch.Tensor:
        """Directions [n, SHARED] of length 1, to be compared with those of names."""
        return F.normalize(self.of_picture(features), dim=1)

    def names_embedded(self, chosen: Sequence[str]) -> torch.Tensor:
        """Directions [n, SHARED] of length 1."""
        numbers = [[self.words[word] for word in name.split("-")] for name in chosen]
        device = self.embedding.weight.device
        offsets = torch.tensor([0, *np.cumsum([len(one) for one in numbers])[:-1]], device=device)
        flat = torch.tensor([number for one in numbers for number in one], device=device)
        return F.normalize(self.of_name(self.embedding(flat, offsets)), dim=1)


class Verdicts:
    """What the judge says of pictures, float [n, 64, 64, 3] in 0..1 on any device; it answers on its own."""

    def __init__(self, judge: Judge):
        self.judge = judge.eval().requires_grad_(False)

    def to(self, device: str) -> "Verdicts":
        """Itself, its judge moved to a device."""
        self.judge.to(device)
        return self

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """[n, FEATURES]"""
        device = self.judge.style.weight.device
        return torch.cat([self.judge(part.to(device).permute(0, 3, 1, 2)) for part in pictures.split(256)])

    def styles(self, pictures: torch.Tensor) -> torch.Tensor:
        """The probability of every set, [n, sets]."""
        return self.judge.style(self.features(pictures)).softmax(1)

    def text_score(self, pictures: torch.Tensor, asked: Sequence[str]) -> torch.Tensor:
        """Cosine of each picture and the name it was asked for, [n]: the CLIP score's place."""
        embedded = self.judge.pictures_embedded(self.features(pictures))
        return (embedded * self.judge.names_embedded(asked)).sum(1)

    def is_right(self, pictures: torch.Tensor, asked: Sequence[str], choice: Sequence[str], among: int = 100):
        """Whether the asked-for name fits best among itself and the `among` - 1 names that follow it in `choice`,
        bool [n]."""
        embedded = self.judge.pictures_embedded(self.features(pictures))
        place = {name: number for number, name in enumerate(choice)}
        directions = self.judge.names_embedded(choice)
        rows = torch.tensor([[(place[name] + k) % len(choice) for k in range(among)] for name in asked],
                            device=directions.device)  # fmt: skip
        return (directions[rows] @ embedded[:, :, None])[..., 0].argmax(1) == 0


class Teaching:
    """All pictures of all sets, with their names and styles, as they are and as the autoencoder decodes them."""

    def __init__(self, folder: Path, decode):
        """decode: pictures [n, 64, 64, 3] in 0..1 → what the base's autoencoder makes of them"""
        read = [render.pictures(icons, folder) for icons in icon_sets.ALL]
        self.names = [name for chosen, _ in read for name in chosen]
        self.pixels = np.concatenate([pixels for _, pixels in read])
        self.styles = torch.tensor(np.repeat(np.arange(len(read)), [len(chosen) for chosen, _ in read]))
        parts = torch.from_numpy(self.pixels).split(64)
        decoded = torch.cat([decode(part.float() / 255).clamp(0, 1) for part in parts])
        self.decoded = (decoded * 255).round().byte().numpy()

    @cached_property
    def words(self) -> list[str]:
        return sorted({word for name in self.names for word in name.split("-")})

    def draw(self, random: np.random.RandomState) -> tuple[torch.Tensor, list[str], torch.Tensor]:
        """A batch of different names, each a picture of one set, shifted and with its colours a little changed."""
        chosen: dict[str, int] = {}
        while len(chosen) < BATCH:
            row = random.randint(len(self.names))
            chosen.setdefault(self.names[row], row)
        pictures = []
        for row in chosen.values():
            source = self.decoded if random.rand() < DECODED_SHARE else self.pixels
            shifted = np.roll(source[row], random.randint(-3, 4, size=2), axis=(0, 1)).astype(np.float32) / 255
            changed = shifted * (1 + 0.1 * random.randn(3)) + 0.02 * random.randn(*shifted.shape)
            pictures.append(changed.astype(np.float32))
        rows = list(chosen.values())
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2), list(chosen), self.styles[rows]


def train(teaching: Teaching, seed: int, report, steps: int = STEPS) -> Judge:
    """A judge; report(step, steps, loss) is called after every step."""
    torch.manual_seed(seed)
    random = np.random.RandomState(seed)
    judge = Judge(teaching.words)
    optimizer = torch.optim.AdamW(judge.parameters(), LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        pictures, asked, styles = teaching.draw(random)
        features = judge(pictures)
        logits = judge.log_scale.exp() * judge.pictures_embedded(features) @ judge.names_embedded(asked).T
        right = torch.arange(len(asked))
        loss = F.cross_entropy(logits, right) / 2 + F.cross_entropy(logits.T, right) / 2
        loss = loss + F.cross_entropy(judge.style(features), styles)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        report(step + 1, steps, loss.item())
    return judge


def save(judge: Judge, path: Path = FILE) -> None:
    """Weights as fp16, with the vocabulary in the metadata."""
    from safetensors.torch import save_file

    tensors = {name: tensor.half().contiguous() for name, tensor in judge.state_dict().items()}
    save_file(tensors, path, metadata={"words": " ".join(judge.words)})


def load(path: Path = FILE) -> Verdicts:
    """The judge beside this file."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        judge = Judge(file.metadata()["words"].split(" "))
        judge.load_state_dict({name: file.get_tensor(name).float() for name in file.keys()})
    return Verdicts(judge)


def held_out(chosen: Sequence[str]) -> list[str]:
    """Those names that no style is trained on."""
    return [name for name in chosen if names.is_held_out(name)]
