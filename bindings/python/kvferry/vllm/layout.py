"""vLLM's KV cache tensors as a KvLayout (docs/kv-layout.md).

A backend may order K and V inside of a block of one head as it likes: vLLM's CPU kernels keep all K of it, then all V,
packed for their instructions. So a row here is the slice of a block and head that one token would have, K and V
together, and parcels are read in whole blocks only: then every byte of a block arrives where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec, SlidingWindowSpec

import kvferry
from kvferry.vllm.checks import Unsupported, member_specs
from kvferry.vllm.device import memory_kind

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import AttentionSpec, KVCacheConfig

Spec = FullAttentionSpec | SlidingWindowSpec
Register = Callable[[int, int], kvferry.Region]


@dataclass
class CacheLayout:
    layout: kvferry.KvLayout
    regions: list[kvferry.Region]
    """Keeps them registered."""
    kernel_blocks: int
    """A block of vLLM's scheduler is so many blocks of the tensors."""

    def expand(self, blocks: list[list[int]]) -> list[list[int]]:
        """Ids of the tensors' blocks from ids of the scheduler's."""
        if self.kernel_blocks == 1:
            return blocks
        return [
            [
                kvferry.NO_BLOCK if block == kvferry.NO_BLOCK else block * self.kernel_blocks + part
                for block in group
                for part in range(self.kernel_blocks)
            ]
            for group in blocks
        ]


class _Storages:
    """Registers each allocation once, whole."""

    def __init__(self, register: Register) -> None:
        self._register = register
        self.by_address: dict[int, kvferry.Region] = {}

    def region_of(self, tensor: torch.Tensor) -> kvferry.Region:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address not in self.by_address:
            region = self._register(address, storage.nbytes())
            if region.kind != memory_kind(tensor.device):
                raise Unsupported(f"a KV cache on {tensor.device}, whose memory the engine takes for {region.kind}")
            self.by_address[address] = region
        return self.by_address[address]


def _row_bytes(tensor: torch.Tensor, layer: str) -> int:
    memory_kind(tensor.device)
    if tensor.dim() != 4 or tensor.stride(3) != 1:
        raise Unsupported(f"the KV cache of layer {layer}: {tuple(tensor.shape)}, strides {tensor.stride()}")
    return int(tensor.shape[3] * tensor.element_size())


def _group(tensor: torch.Tensor, spec: AttentionSpec, heads: int, tp_size: int, kernel_blocks: int) -> kvferry.KvGroup:
    replicated = isinstance(spec, MLAAttentionSpec)
    local = int(tensor.shape[1])
    total = local if replicated else heads
    if not replicated and local != max(1, heads // tp_size):
        raise Unsupported(f"{local} KV heads of {heads} on each of {tp_size} tensor parallel ranks")
    return kvferry.KvGroup(
        block_tokens=spec.block_size // kernel_blocks,
        block_count=int(tensor.shape[0]),
        heads_total=total,
        heads_local=local,
        head_size_k=_row_bytes(tensor, "?"),
        head_size_v=0,
        element_bits=8,
        window_tokens=spec.sliding_window if isinstance(spec, SlidingWindowSpec) else 0,
        replicated=replicated,
    )


def _layer(name: str, index: int, group: int, tensor: torch.Tensor, region: kvferry.Region) -> kvferry.KvLayer:
    size = tensor.element_size()
    plane = kvferry.KvPlane(
        region=region.id,
        base=tensor.data_ptr() - region.address,
        block_stride=tensor.stride(0) * size,
        head_stride=tensor.stride(1) * size,
        token_stride=tensor.stride(2) * size,
    )
    return kvferry.KvLayer(index=index, name=name, group=group, k=plane)


def describe(
    config: VllmConfig,
    cache: KVCacheConfig,
    tensors: dict[str, torch.Tensor],
    rank: kvferry.ParallelRank,
    register: Register,
) -> CacheLayout:
    """Registers the caches' memory and says how they lie in it."""
    storages = _Storages(register)
    groups: list[kvferry.KvGroup] = []
    layers: dict[int, kvferry.KvLayer] = {}
    kernel_blocks = 0
    heads = config.model_config.get_total_num_kv_heads()
    layers_total = config.model_config.get_total_num_hidden_layers()
    for number, described in enumerate(cache.transfer_groups):
        shape: tuple[int, ...] | None = None
        spec = member_specs(described.kv_cache_spec)[0]
        for name in described.layer_names:
            tensor = tensors.get(name)
            if tensor is None:
                raise Unsupported(f"layer {name} without a KV cache")
            row = (*tensor.shape, _row_bytes(tensor, name))
            if shape is None:
                shape = row
                split, rest = divmod(int(tensor.shape[0]), cache.num_blocks)
                if rest or split == 0 or kernel_blocks not in (0, split) or spec.block_size % split:
                    raise Unsupported(f"{tensor.shape[0]} blocks of layer {name} where vLLM counts {cache.num_blocks}")
                kernel_blocks = split
                groups.append(_group(tensor, spec, heads, rank.tp_size, split))
            elif row != shape:
                raise Unsupported(f"layer {name} of another shape than the rest of its KV group")
            index = extract_layer_index(name)
            if index in layers or index >= layers_total:
                raise Unsupported(f"layer {name}: its number is taken, or beyond the model's {layers_total} layers")
            layers[index] = _layer(name, index, number, tensor, storages.region_of(tensor))
    layout = kvferry.KvLayout(
        rank=rank,
        layers_total=layers_total,
        groups=groups,
        layers=[layers[index] for index in sorted(layers)],
    )
    return CacheLayout(layout, list(storages.by_address.values()), kernel_blocks)
