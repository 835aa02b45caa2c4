"""Configurations, caches and requests as vLLM's engine hands them to the connector, with what it asks for alone."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from vllm.config import KVTransferConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
)
from vllm.v1.request import Request, RequestStatus

BLOCK, BLOCKS, HEADS, HEAD, LAYERS = 16, 32, 2, 8, 4
ROW = 2 * HEAD


def full(**more: Any) -> FullAttentionSpec:  # noqa: ANN401
    return FullAttentionSpec(
        **{"block_size": BLOCK, "num_kv_heads": HEADS, "head_size": HEAD, "dtype": torch.float32} | more
    )


def window(tokens: int, **more: Any) -> SlidingWindowSpec:  # noqa: ANN401
    told = {"block_size": BLOCK, "num_kv_heads": HEADS, "head_size": HEAD, "dtype": torch.float32}
    return SlidingWindowSpec(**told | {"sliding_window": tokens} | more)


def latent() -> MLAAttentionSpec:
    return MLAAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=ROW, dtype=torch.float32)


def layer(index: int) -> str:
    return f"model.layers.{index}.self_attn.attn"


def cache(*groups: KVCacheSpec, layers: Sequence[int] = range(LAYERS)) -> KVCacheConfig:
    """These of the model's layers, dealt out among the groups in turn."""
    members = [[layer(index) for index in layers[number :: len(groups)]] for number in range(len(groups))]
    described = [KVCacheGroupSpec(names, spec) for names, spec in zip(members, groups, strict=True)]
    return KVCacheConfig(BLOCKS, [], described, kv_cache_layout="LBHNC")


def config(role: str = "kv_both", engine_id: str = "instance", tp: int = 1, **more: Any) -> Any:  # noqa: ANN401
    """`more`: attributes of the parallel configuration, `pp`, `extra`, `speculation`, `model`."""
    extra = more.pop("extra", {"kvferry_host": "127.0.0.1"})
    model = {"architectures": ["Tiny"], "hidden_size": 32} | more.pop("model", {})
    speculation = more.pop("speculation", None)
    parallel = {
        "tensor_parallel_size": tp,
        "pipeline_parallel_size": more.pop("pp", 1),
        "decode_context_parallel_size": 1,
        "prefill_context_parallel_size": 1,
        "data_parallel_size": 1,
        "data_parallel_index": 0,
        "data_parallel_master_ip": "127.0.0.1",
        "nnodes_within_dp": 1,
        "local_engines_only": False,
    }
    return SimpleNamespace(
        parallel_config=SimpleNamespace(**parallel | more),
        speculative_config=speculation,
        kv_transfer_config=KVTransferConfig(
            kv_connector="KVFerryConnector", engine_id=engine_id, kv_role=role, kv_connector_extra_config=extra
        ),
        cache_config=SimpleNamespace(cache_dtype="auto", enable_prefix_caching=True),
        model_config=SimpleNamespace(
            hf_config=SimpleNamespace(to_dict=lambda: model),
            multimodal_config=None,
            quantization=None,
            dtype=torch.float32,
            get_total_num_kv_heads=lambda: HEADS,
            get_total_num_hidden_layers=lambda: LAYERS,
        ),
    )


def publishing(transfer_id: Any = "x") -> dict[str, Any]:  # noqa: ANN401, or what a stranger sends
    return {"do_remote_decode": True, "do_remote_prefill": False, "transfer_id": transfer_id}


def reading(**more: Any) -> dict[str, Any]:  # noqa: ANN401, or what a stranger sends
    told = {"do_remote_decode": False, "do_remote_prefill": True, "transfer_id": "x", "remote_engine_id": "prefiller"}
    return told | {"remote_bootstrap_addr": "http://127.0.0.1:1"} | more


def request(params: Any, tokens: int = 40, name: str = "request", **more: Any) -> Request:  # noqa: ANN401
    sampling = SamplingParams(max_tokens=1, extra_args={"kv_transfer_params": params})
    return Request(name, list(range(2, 2 + tokens)), sampling, None, **more)


def ended(one: Request, status: RequestStatus = RequestStatus.FINISHED_LENGTH_CAPPED, computed: bool = True) -> Request:
    one.status = status
    one.num_computed_tokens = one.num_prompt_tokens if computed else 0
    return one


def allocated(*groups: Sequence[int]) -> Any:  # noqa: ANN401, a KVCacheBlocks
    return SimpleNamespace(get_block_ids=lambda: tuple(list(group) for group in groups))


def tensors(described: KVCacheConfig, split: int = 1, heads: int = HEADS) -> dict[str, torch.Tensor]:
    """As vLLM makes them: one allocation; the groups' layers of one rank in it share their bytes; each block of the
    scheduler is `split` blocks here."""
    spec = described.kv_cache_groups[0].kv_cache_spec
    mla = isinstance(spec, MLAAttentionSpec)
    deepest = max(len(group.layer_names) for group in described.kv_cache_groups)
    shape = (deepest, BLOCKS * split, 1 if mla else heads, BLOCK // split, ROW)
    whole = torch.zeros(shape)
    return {name: whole[number] for group in described.kv_cache_groups for number, name in enumerate(group.layer_names)}
