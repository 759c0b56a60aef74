"""What a node's IMAGE output must be."""

import numpy
import torch


def assert_is_picture(image):
    """One picture as the host has them, with something drawn on it."""
    assert image.dtype == torch.float32 and image.dim() == 4 and image.shape[0] == 1 and image.shape[3] == 3
    assert float(image.min()) >= 0 and float(image.max()) <= 1 and len(numpy.unique(image.numpy())) > 10
