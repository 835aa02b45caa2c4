"""KV caches on GPUs, over the release build's fake driver: device memory that no CPU may touch.

torch's build for CPUs has no tensors there: what the connector asks of a tensor is asked of a stand-in that has the
shape of a real one and an address of the driver's.
"""

from __future__ import annotations

import ctypes
import os
import sys
import unittest
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[2] / "test/python"))

import torch
from fakes import LAYERS, full, layer
from vllm.v1.kv_cache_interface import KVCacheSpec
from workers_test import Pair, eventually

import kvferry
from gpu import Gpu
from kvferry.vllm.checks import Unsupported
from kvferry.vllm.device import memory_kind

DRIVER = Path(__file__).parents[2] / "build/release/test/fake_cuda/libcuda.so.1"


class GpuTensor:
    """One layer's cache in an allocation of a GPU's. It has `model`'s shape, and its bytes at first."""

    def __init__(self, gpu: Gpu, model: torch.Tensor, base: int) -> None:
        self.device = torch.device("cuda", 0)
        self.shape, self.dtype = model.shape, model.dtype
        self._gpu, self._model, self._base = gpu, model, base
        self._length = model.untyped_storage().nbytes()

    def untyped_storage(self) -> Any:  # noqa: ANN401
        return SimpleNamespace(data_ptr=lambda: self._base, nbytes=lambda: self._length)

    def data_ptr(self) -> int:
        return self._base + self._model.storage_offset() * self._model.element_size()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401, dim, stride, element_size: as the model's
        return getattr(self._model, name)

    def load(self) -> torch.Tensor:
        """What is there now."""
        bytes_ = self._gpu.load(self._base, self._length)
        whole = torch.frombuffer(bytearray(bytes_), dtype=self.dtype)
        return whole.as_strided(self.shape, self._model.stride(), self._model.storage_offset())


class GpuPair(Pair):
    gpu: Gpu

    @classmethod
    def _worker(cls, told: Any, described: Any, found: dict[str, torch.Tensor], rank: Any) -> Any:  # noqa: ANN401
        bases: dict[int, int] = {}  # of the copies on the GPU, by where the originals lie
        for storage in (tensor.untyped_storage() for tensor in found.values()):
            if storage.data_ptr() not in bases:
                bases[storage.data_ptr()] = base = cls.gpu.allocate(storage.nbytes())
                cls.gpu.store(base, ctypes.string_at(storage.data_ptr(), storage.nbytes()))
        placed = {
            name: GpuTensor(cls.gpu, tensor, bases[tensor.untyped_storage().data_ptr()])
            for name, tensor in found.items()
        }
        worker = Pair._worker(told, described, placed, rank)  # type: ignore[arg-type]
        worker.placed = placed  # type: ignore[attr-defined]
        return worker


class Kinds(unittest.TestCase):
    """Without a GPU."""

    def test_what_is_neither_the_hosts_nor_of_an_nvidia_gpu_is_refused(self) -> None:
        self.assertEqual(memory_kind(torch.device("cpu")), "host")
        for device in ("xpu", "meta"):
            with self.assertRaisesRegex(Unsupported, f"KV caches on {device}"):
                memory_kind(torch.device(device))
        with patch("torch.version.hip", "6.0"), self.assertRaisesRegex(Unsupported, "KV caches on cuda"):
            memory_kind(torch.device("cuda", 0))


class Gpus(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        os.environ["KVFERRY_CUDA_DRIVER"] = str(DRIVER)
        GpuPair.gpu = Gpu()

    def pair(self, *groups: KVCacheSpec, in_use: Any = None, **more: int) -> GpuPair:  # noqa: ANN401
        """`in_use`: the event of each load."""
        waits = patch("kvferry.vllm.worker.work_so_far", lambda _: in_use)
        waits.start()
        self.addCleanup(waits.stop)
        made = GpuPair(groups, **more)
        self.addCleanup(made.close)
        return made

    def check_moved(self, made: GpuPair, theirs: Sequence[int], mine: Sequence[int]) -> None:
        for index in range(LAYERS):
            landed = made.reader.placed[layer(index)].load()  # type: ignore[attr-defined]
            expected = torch.zeros_like(landed)
            expected[list(mine)] = made.theirs[layer(index)][list(theirs)]
            self.assertTrue(torch.equal(landed, expected), layer(index))

    def test_a_prompt_goes_from_one_gpus_memory_to_anothers(self) -> None:
        for tp in (1, 2):
            with self.subTest(tp=tp):
                made = self.pair(full(), tp=tp)
                made.publish([[3, 9, 4]])
                self.assertTrue(made.until_loaded(made.ask([[7, 5, 6]])))
                made.until_sent("prefill-x")
                self.check_moved(made, [3, 9, 4], [7, 5, 6])

    def test_a_load_waits_for_what_the_gpu_still_does_with_its_blocks(self) -> None:
        kernel = GpuPair.gpu.launch()
        made = self.pair(full(), in_use=SimpleNamespace(cuda_event=kernel.event))
        made.publish([[3, 9, 4]])
        wanted = made.ask([[7, 5, 6]])
        eventually(made.is_reading)
        # What is published later and asked for without an event overtakes it.
        with patch("kvferry.vllm.worker.work_so_far", lambda _: None):
            made.publish([[10, 11, 12]], "y")
            self.assertTrue(made.until_loaded(made.ask([[13, 14, 15]], "y")))
        self.assertIn(wanted, made.reader._loading)
        self.check_moved(made, [10, 11, 12], [13, 14, 15])
        kernel.end()
        self.assertTrue(made.until_loaded(wanted))
        self.check_moved(made, [3, 9, 4, 10, 11, 12], [7, 5, 6, 13, 14, 15])

    def test_memory_that_the_engine_takes_for_the_hosts_is_refused(self) -> None:
        host = SimpleNamespace(kind="host", id=1, address=0)
        with (
            patch.object(kvferry.Engine, "register_address", lambda *_: host),
            self.assertRaisesRegex(Unsupported, "a KV cache on cuda:0, whose memory the engine takes for host"),
        ):
            self.pair(full())


if __name__ == "__main__":
    unittest.main()
