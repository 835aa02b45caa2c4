"""Where KV caches may lie, and what a GPU still has to do when a load begins."""

from __future__ import annotations

import torch

from kvferry.vllm.checks import Unsupported


def memory_kind(device: torch.device) -> str:
    """As kvferry calls it."""
    if device.type == "cpu":
        return "host"
    if device.type == "cuda" and torch.version.hip is None:
        return "cuda"
    raise Unsupported(f"KV caches on {device.type}: kvferry moves memory of the host and of NVIDIA GPUs")


def work_so_far(device: torch.device) -> torch.cuda.Event | None:
    """An event behind all that vLLM has given to this GPU. Forwards of steps before may still write the blocks of
    requests that have ended since, which vLLM has dealt out again; kernels of steps after it find what was loaded."""
    if memory_kind(device) == "host":
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event
