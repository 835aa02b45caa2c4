"""The scheduler's side: decides which prompts are published and which are read; makes no engine, waits for nothing.

A prefill request is announced when it arrives, and published when it ends with its prompt computed; its blocks are kept
until every worker has reported it as sent. A decode request reads a parcel once; whatever ends it earlier releases the
parcel. Parameters of requests come from the network: what is not valid means that the prompt is computed here.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from vllm.v1.request import RequestStatus

import kvferry
from kvferry.vllm.checks import check_cache, check_config
from kvferry.vllm.fingerprint import Fingerprints
from kvferry.vllm.metadata import Blocks, KVFerryMetadata, Load, Publication, Source, name_of
from kvferry.vllm.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm.config import VllmConfig
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

# The prompt is computed; whatever the one token is that a prefiller is asked for.
WHOLE = {RequestStatus.FINISHED_LENGTH_CAPPED, RequestStatus.FINISHED_STOPPED, RequestStatus.FINISHED_REPETITION}


def has_plain_prompt(request: Request) -> bool:
    """Embeddings have no ids that could be compared."""
    return bool(request.prompt_token_ids) and request.prompt_embeds is None


class Scheduler:
    def __init__(self, config: VllmConfig, cache: KVCacheConfig) -> None:
        check_config(config)
        check_cache(cache)
        settings = Settings.of(config)
        self._producer, self._consumer = settings.producer, settings.consumer
        self._cache = cache
        self._block_tokens = cache.transfer_groups[0].kv_cache_spec.block_size
        self._fingerprints = Fingerprints(config, cache, settings.model_id)
        self._meta = KVFerryMetadata()
        self._loading: set[str] = set()
        # Requests that may still read a parcel, by its id: several children of one request share it.
        self._to_read: defaultdict[str, set[str]] = defaultdict(set)

    # ---- arrival and scheduling

    def on_new_request(self, request: Request) -> None:
        params = request.kv_transfer_params
        if not isinstance(params, dict):
            return
        source = self._source(request)
        if source is not None:
            self._to_read[source.transfer_id].add(request.request_id)
            self._meta.contacts.add((source.bootstrap, source.engine_id))
        elif self._publishes(params) and (transfer_id := name_of(params, "transfer_id")):
            self._meta.announced.append(transfer_id)

    def matched_tokens(self, request: Request, computed: int) -> tuple[int, bool]:
        """Without side effects: it is asked in every step while blocks are short."""
        if self._source(request) is None or not has_plain_prompt(request):
            return 0, False
        count = request.num_prompt_tokens - computed
        return (count, True) if count > 0 else (0, False)

    def update_after_alloc(self, request: Request, blocks: KVCacheBlocks, external: int) -> None:
        """Asked a second time when the loaded request starts to run; the parameters then say that nothing is left."""
        source = self._source(request)
        if source is None:
            return
        self._settle_params(request, source)
        if external == 0:  # all of it is here, or it must be computed here for its logprobs
            self._meta.released.append(source)
            return
        self._loading.add(request.request_id)
        tokens = request.num_prompt_tokens
        self._meta.loads.append(
            Load(
                request_id=request.request_id,
                source=source,
                blocks=self._blocks(blocks.get_block_ids(), tokens),
                first_token=tokens - external,
                end_token=self._whole_blocks(tokens),
                fingerprint=self._fingerprints.of(request),
                more=bool(self._to_read.get(source.transfer_id)),
            )
        )

    def build_meta(self) -> KVFerryMetadata:
        meta, self._meta = self._meta, KVFerryMetadata()
        return meta

    def has_urgent_work(self) -> bool:
        return self._meta.is_urgent()

    # ---- the end of a request

    def finished(self, request: Request, block_ids: Sequence[list[int]]) -> tuple[bool, dict[str, Any] | None]:
        params = request.kv_transfer_params
        if not isinstance(params, dict):
            return False, None
        source = self._source(request)
        if source is not None:  # it ended before it was scheduled
            self._settle_params(request, source)
            self._meta.released.append(source)
        elif request.request_id in self._loading:
            # Its blocks stay until the workers report the load, which is quiet then.
            self._meta.cancelled.append(request.request_id)
        elif self._publishes(params):
            return self._publish(request, params, block_ids), None
        return False, None

    def update_output(self, output: KVConnectorOutput) -> None:
        self._loading.difference_update(output.finished_recving or ())

    # ---- within

    def _publish(self, request: Request, params: dict[str, Any], block_ids: Sequence[list[int]]) -> bool:
        transfer_id = name_of(params, "transfer_id")
        if transfer_id is None:
            return False
        tokens = request.num_prompt_tokens
        whole = request.status in WHOLE and request.num_computed_tokens >= tokens
        if not whole or not has_plain_prompt(request) or not any(block_ids):
            self._meta.withdrawn.append(transfer_id)
            return False
        self._meta.published.append(
            Publication(
                request_id=request.request_id,
                transfer_id=transfer_id,
                blocks=self._blocks(block_ids, tokens),
                tokens=self._whole_blocks(tokens),
                fingerprint=self._fingerprints.of(request),
            )
        )
        return True

    def _source(self, request: Request) -> Source | None:
        params = request.kv_transfer_params
        if not self._consumer or not isinstance(params, dict) or not params.get("do_remote_prefill"):
            return None
        return Source.of(params)

    def _publishes(self, params: dict[str, Any]) -> bool:
        return self._producer and bool(params.get("do_remote_decode"))

    def _settle_params(self, request: Request, source: Source) -> None:
        """A parcel is read or released once by each request, also when the request is preempted and comes back."""
        assert request.kv_transfer_params is not None
        request.kv_transfer_params["do_remote_prefill"] = False
        waiting = self._to_read[source.transfer_id]
        waiting.discard(request.request_id)
        if not waiting:
            del self._to_read[source.transfer_id]

    def _whole_blocks(self, tokens: int) -> int:
        """Parcels are read in whole blocks (layout.py)."""
        return -(-tokens // self._block_tokens) * self._block_tokens

    def _blocks(self, block_ids: Sequence[list[int]], tokens: int) -> Blocks:
        """By transferred group, what holds the first `tokens`. Block 0 stands for none: a window has dropped it."""
        count = -(-tokens // self._block_tokens)
        selected = self._cache.select_transfer_block_ids(block_ids)
        return [[block or kvferry.NO_BLOCK for block in group[:count]] for group in selected]
