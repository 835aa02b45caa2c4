"""For the tests' vLLM servers alone: what vLLM's own Mooncake connector lacks on a CPU, counting, planted faults.

KVF_TEST_COUNT names a folder to which each process appends the bytes that `mooncake` has moved. While the file exists
that KVF_TEST_PLANT names, the last layer's KV is not moved, so that the tests can be seen to fail; KVFerryConnector
asks once, when it starts.
"""

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any


def planted() -> bool:
    return os.path.exists(os.environ.get("KVF_TEST_PLANT", ""))


def patch_torch(torch: ModuleType) -> None:
    torch.accelerator.current_device_index = lambda: 0


def patch_mooncake(engine: ModuleType) -> None:
    folder = os.environ.get("KVF_TEST_COUNT")
    if not folder:
        return
    original = engine.TransferEngine.batch_transfer_sync_write

    def counted(self: Any, target: str, local: Sequence[int], remote: Sequence[int], lengths: Sequence[int]) -> int:  # noqa: ANN401
        if planted():
            count = len(lengths) * 3 // 4
            local, remote, lengths = local[:count], remote[:count], lengths[:count]
        status = int(original(self, target, local, remote, lengths))
        if status == 0:
            with open(os.path.join(folder, str(os.getpid())), "a") as out:
                out.write(f"{sum(lengths)}\n")
        return status

    engine.TransferEngine.batch_transfer_sync_write = counted


def patch_layout(layout: ModuleType) -> None:
    """A prefiller and decoder that both forget the last layer."""
    if not planted():
        return
    original = layout.describe

    def describe(config: Any, cache: Any, tensors: Any, rank: Any, register: Any) -> Any:  # noqa: ANN401
        import kvferry

        told = original(config, cache, tensors, rank, register)
        whole = told.layout
        told.layout = kvferry.KvLayout(
            rank=whole.rank, layers_total=whole.layers_total - 1, groups=whole.groups, layers=whole.layers[:-1]
        )
        return told

    layout.describe = describe


PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "torch": patch_torch,
    "mooncake.engine": patch_mooncake,
    "kvferry.vllm.layout": patch_layout,
}


class Patcher(importlib.abc.MetaPathFinder):
    """Patches a module each time that it is loaded; a module may also be looked for without being loaded."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:  # noqa: ANN401
        if name not in PATCHES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            PATCHES[name](module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Patcher())
