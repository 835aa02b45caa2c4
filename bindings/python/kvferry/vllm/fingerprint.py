"""What must agree between prefiller and decoder for KV to mean the same (docs/vllm.md)."""

from __future__ import annotations

import hashlib
import json
import logging
from array import array
from typing import TYPE_CHECKING, Any

from vllm.platforms import current_platform

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

logger = logging.getLogger("vllm.kvferry")

# Of the way in which this package describes a KV cache: changed with every change of layout.py that two versions would
# read differently.
LAYOUT_VERSION = 1

# Of a model's config.json: where it was found and by which software, not what it is.
NOT_OF_THE_MODEL = {"_name_or_path", "transformers_version", "_commit_hash", "torch_dtype", "dtype"}


def _plain(value: Any) -> Any:  # noqa: ANN401, whatever a config holds
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items() if key not in NOT_OF_THE_MODEL}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _names_inputs(config: VllmConfig) -> bool:
    """Whether vLLM names images and the like by their content. With both of its caches off it counts them instead, in
    each process anew."""
    inputs = config.model_config.multimodal_config
    return inputs is None or inputs.mm_processor_cache_gb > 0 or config.cache_config.enable_prefix_caching


def inner_order(kv_cache_layout: str | None) -> str:
    """How a block of one layer orders heads, tokens and content: HNC or NHC."""
    return "".join(axis for axis in kv_cache_layout or "" if axis in "HNC")


class Fingerprints:
    """Of one instance; made once, since the model takes a while to hash."""

    def __init__(self, config: VllmConfig, cache: KVCacheConfig, model_id: str | None) -> None:
        model = config.model_config
        if not _names_inputs(config):
            logger.warning(
                "with --mm-processor-cache-gb 0 and --no-enable-prefix-caching vLLM does not hash multimodal inputs: "
                "prefiller and decoder will not agree on them, and reads of such prompts are refused. Leave one of the "
                "two caches on, on both servers"
            )
        identity: Any = model_id
        if identity is None:
            identity = [_plain(model.hf_config.to_dict()), str(model.quantization), str(model.dtype)]
        speculation = config.speculative_config
        told = {
            "version": LAYOUT_VERSION,
            "model": identity,
            "cache": str(config.cache_config.cache_dtype),
            "order": inner_order(cache.kv_cache_layout),
            "device": current_platform.device_type,  # whose kernels order the inside of a block
            "blocks": [group.kv_cache_spec.block_size for group in cache.transfer_groups],
            "speculation": None if speculation is None else str(speculation.method),
        }
        self._instance = hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=16).digest()

    def of(self, request: Request) -> str:
        """REQUIRES: a prompt of token ids."""
        told = hashlib.blake2b(self._instance, digest_size=16)
        for part in (
            request.lora_request.lora_name if request.lora_request else "",
            request.cache_salt or "",
            *(f"{feature.identifier}@{feature.mm_position.offset}" for feature in request.mm_features),
        ):
            told.update(part.encode("utf-8", "surrogatepass") + b"\0")
        told.update(array("q", request.prompt_token_ids or ()).tobytes())
        return told.hexdigest()
