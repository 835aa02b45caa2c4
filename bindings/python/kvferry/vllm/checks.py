"""What this connector does not do, refused by name when a server starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec, SlidingWindowSpec

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec


# Exactly these: what vLLM derives from them keeps other things in its blocks, or drops other blocks.
KINDS = (FullAttentionSpec, MLAAttentionSpec, SlidingWindowSpec)

# Speculation that keeps no KV cache of its own; a draft model's is no layer of what is published.
WITHOUT_CACHE = ("ngram", "ngram_gpu", "suffix", "medusa", "mlp_speculator")


class Unsupported(ValueError):
    """A setting or a model that the connector cannot serve correctly."""

    def __init__(self, what: str) -> None:
        super().__init__(f"KVFerryConnector: {what}")


def member_specs(spec: KVCacheSpec) -> list[KVCacheSpec]:
    """A group of layers may hold several kinds of the same size."""
    members = getattr(spec, "kv_cache_specs", None)
    return list(members.values()) if isinstance(members, dict) else [spec]


def check_config(config: VllmConfig) -> None:
    parallel = config.parallel_config
    if parallel.decode_context_parallel_size > 1:
        raise Unsupported("decode context parallelism: tokens are dealt out among the ranks")
    if getattr(parallel, "prefill_context_parallel_size", 1) > 1:
        raise Unsupported("prefill context parallelism: tokens are dealt out among the ranks")
    speculation = config.speculative_config
    if speculation is not None and speculation.method not in WITHOUT_CACHE:
        raise Unsupported(
            f"speculation by {speculation.method}, which has a draft model with a KV cache of its own, or may have one"
        )


def check_cache(cache: KVCacheConfig) -> None:
    if not cache.transfer_groups:
        raise Unsupported("a model without a KV cache to transfer")
    for group in cache.transfer_groups:
        for spec in member_specs(group.kv_cache_spec):
            if type(spec) not in KINDS:
                raise Unsupported(f"caches of the kind {type(spec).__name__} (layer {group.layer_names[0]})")
            if spec.tokens_per_state != 1:
                raise Unsupported(f"compressed caches, {spec.tokens_per_state} tokens a state")
            if getattr(spec, "attention_chunk_size", None):
                raise Unsupported("chunked local attention")
    sizes = {group.kv_cache_spec.block_size for group in cache.transfer_groups}
    if len(sizes) > 1:
        raise Unsupported(f"KV groups of different block sizes: {sorted(sizes)}")
