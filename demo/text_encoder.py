"""A CLIP-L text encoder with random weights made from a seed.

Nobody trains it: as long as every word gets its own direction, a model can be conditioned on it. Making it costs a
second; storing it would cost 246 MB.
"""

from __future__ import annotations

import numpy as np
import torch

SEED = 20240911
LAYERS, WIDTH, HIDDEN, VOCABULARY, POSITIONS = 12, 768, 3072, 49408, 77

# Words must outweigh their positions and what the layers add, or captions would hardly differ from each other.
TOKEN_STD, POSITION_STD = 1.0, 0.2
INPUT_STD = WIDTH**-0.5
RESIDUAL_STD = WIDTH**-0.5 * (2 * LAYERS) ** -0.5


class _Uniform:
    """Uniform random fp16 tensors, the same bytes on every machine.

    Drawn from the raw bytes of NumPy's legacy generator, whose stream is frozen: normal deviates would depend on the
    platform's vectorised logarithm and cosine.
    """

    def __init__(self, seed: int):
        self._random = np.random.RandomState(seed)

    def __call__(self, *shape: int, std: float) -> torch.Tensor:
        raw = np.frombuffer(self._random.bytes(2 * int(np.prod(shape))), "<i2").reshape(shape)
        scale = np.float32(std * 3**0.5 / 32768)
        return torch.from_numpy((raw.astype(np.float32) * scale).astype(np.float16))


def weights() -> dict[str, torch.Tensor]:
    """The complete text encoder as fp16 tensors under the names of an SD1.5 checkpoint."""
    uniform = _Uniform(SEED)
    tensors = {
        "embeddings.token_embedding.weight": uniform(VOCABULARY, WIDTH, std=TOKEN_STD),
        "embeddings.position_embedding.weight": uniform(POSITIONS, WIDTH, std=POSITION_STD),
    }
    for layer in range(LAYERS):
        name = f"encoder.layers.{layer}"
        for projection in ("q_proj", "k_proj", "v_proj"):
            tensors |= _linear(f"{name}.self_attn.{projection}", uniform(WIDTH, WIDTH, std=INPUT_STD))
        tensors |= _linear(f"{name}.self_attn.out_proj", uniform(WIDTH, WIDTH, std=RESIDUAL_STD))
        tensors |= _linear(f"{name}.mlp.fc1", uniform(HIDDEN, WIDTH, std=INPUT_STD))
        tensors |= _linear(f"{name}.mlp.fc2", uniform(WIDTH, HIDDEN, std=RESIDUAL_STD))
        tensors |= _layer_norm(f"{name}.layer_norm1") | _layer_norm(f"{name}.layer_norm2")
    tensors |= _layer_norm("final_layer_norm")
    return {f"cond_stage_model.transformer.text_model.{name}": tensor for name, tensor in tensors.items()}


def _linear(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": weight, f"{name}.bias": torch.zeros(len(weight), dtype=torch.float16)}


def _layer_norm(name: str) -> dict[str, torch.Tensor]:
    return {
        f"{name}.weight": torch.ones(WIDTH, dtype=torch.float16),
        f"{name}.bias": torch.zeros(WIDTH, dtype=torch.float16),
    }
