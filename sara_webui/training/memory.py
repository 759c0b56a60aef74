"""What this process has of the memory of the device that trains."""

import psutil
import torch


def used_memory(device: torch.device) -> tuple[int, int]:
    """Bytes now, and at most as far as the device tells; of other devices than CUDA's, the process's main memory."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    now = psutil.Process().memory_info().rss
    return now, now
