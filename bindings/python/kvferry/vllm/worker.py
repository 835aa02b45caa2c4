"""The worker's side: owns the engine, publishes this rank's blocks, reads parcels of others into them.

Everything here but a release that had to wait for a first contact runs in the worker's main thread between and after
forwards, so nothing waits: reads go on by themselves and are looked at in each step. What is owed to vLLM is kept by
request and reported exactly once.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorTransferResults

import kvferry
from kvferry.vllm.checks import check_cache, check_config
from kvferry.vllm.device import work_so_far
from kvferry.vllm.layout import CacheLayout, describe
from kvferry.vllm.metadata import KVFerryMetadata, Load, Publication, Source
from kvferry.vllm.peers import Prefiller, Prefillers
from kvferry.vllm.settings import Settings, rank_of_this_worker
from kvferry.vllm.stats import KVFerryStats

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

logger = logging.getLogger("vllm.kvferry")

# How a read ends when its prefiller cannot be reached or is another incarnation, among other things.
MAY_HAVE_MOVED = ("failed", "gone")


@dataclass
class _Loading:
    """A load that is owed to vLLM: first its owners are looked up, then it is read."""

    load: Load
    owners: Future[Prefiller]
    began: float
    in_use: torch.cuda.Event | None
    """Behind what may still use the blocks; none for the host's memory. Kept until the read has ended."""
    reading: kvferry.ParcelReading | None = None
    cancelled: bool = False


class Worker:
    def __init__(self, config: VllmConfig, cache: KVCacheConfig) -> None:
        check_config(config)
        check_cache(cache)
        self._config, self._cache = config, cache
        self._settings = Settings.of(config)
        self._stats = KVFerryStats()
        self._loading: dict[str, _Loading] = {}  # by request
        self._sending: dict[str, str] = {}  # requests by transfer id: their blocks belong to parcels
        self._results = KVConnectorTransferResults()

    def register(self, tensors: dict[str, torch.Tensor]) -> None:
        """The device is set up and the cache is there: only now is there an engine."""
        settings = self._settings
        rank = rank_of_this_worker(self._config.parallel_config)
        name = f"{settings.instance}/{rank.dp_rank}.{rank.pp_rank}.{rank.tp_rank}"
        self._engine = kvferry.Engine(settings.listen, engine_id=name, protocol=settings.protocol)
        self._layout: CacheLayout = describe(self._config, self._cache, tensors, rank, self._engine.register_address)
        self._device = next(iter(tensors.values())).device
        if self._device.type != "cpu":
            logger.warning(
                "KV caches on %s: so far kvferry has moved GPU memory in tests without a GPU only (docs/gpu.md); "
                "kvferry_digest has the bytes of each read compared",
                self._device,
            )
        self._parcels = kvferry.Parcels(self._engine)
        self._parcels.set_cache(settings.instance, self._layout.layout)
        if settings.producer:
            self._bootstrap = kvferry.BootstrapServer(
                self._engine,
                settings.instance,
                self._layout.layout,
                host=settings.bootstrap_listen(rank),
                base_host=settings.base_host,
                base_port=settings.base_port,
                external_base=settings.external_base,
                token=settings.bootstrap_token,
                certificate_file=settings.bootstrap_certificate,
                key_file=settings.bootstrap_key,
                ca_file=settings.bootstrap_ca,
            )
        if settings.consumer:
            self._prefillers = Prefillers(self._engine, rank, settings.bootstrap_ca)
        logger.info("kvferry engine %s listens at %s", name, self._engine.address)

    # ---- a step

    def start(self, meta: KVFerryMetadata, empty_step: bool) -> None:
        for transfer_id in meta.announced:
            self._announce(transfer_id)
        for transfer_id in meta.withdrawn:
            self._parcels.withdraw(transfer_id)
        for publication in meta.published:
            self._publish(publication)
        for bootstrap, engine_id in meta.contacts:
            self._prefillers.find(bootstrap, engine_id)
        for source in meta.released:
            self._release(source, self._prefillers.find(source.bootstrap, source.engine_id))
        in_use = work_so_far(self._device) if meta.loads else None
        for load in meta.loads:
            owners = self._prefillers.find(load.source.bootstrap, load.source.engine_id)
            self._loading[load.request_id] = _Loading(load, owners, time.monotonic(), in_use)
        for request_id in meta.cancelled:
            self._cancel(request_id)
        self._go_on()
        if empty_step and meta.loads:
            self._wait_shortly(meta.loads)

    def results(self) -> KVConnectorTransferResults:
        self._go_on()
        for request_id, loading in list(self._loading.items()):
            if loading.reading is not None and (outcome := loading.reading.poll()) is not None:
                self._end_load(request_id, loading, outcome)
        for released in self._parcels.take_released():
            request_id = self._sending.pop(released.transfer_id, "")
            if request_id:
                self._results.finished_sending.add(request_id)
            if released.why == "expired":
                self._stats.count("parcels_expired")
                logger.warning("parcel %s was not read before its lease ended", released.transfer_id)
        results, self._results = self._results, KVConnectorTransferResults()
        return results

    def take_stats(self) -> KVFerryStats | None:
        return None if self._stats.is_empty() else self._stats.take()

    def shutdown(self) -> None:
        if hasattr(self, "_prefillers"):
            self._prefillers.close()
        if hasattr(self, "_bootstrap"):
            self._bootstrap.close()
        if hasattr(self, "_engine"):
            self._engine.close()

    # ---- as owner

    def _announce(self, transfer_id: str) -> None:
        try:
            self._parcels.announce(transfer_id, self._settings.lease)
        except kvferry.Error as error:  # whoever wanted it has left before we heard of it
            logger.info("parcel %s was not announced: %s", transfer_id, error)

    def _publish(self, publication: Publication) -> None:
        try:
            self._parcels.publish(
                publication.transfer_id,
                self._layout.expand(publication.blocks),
                tokens=publication.tokens,
                fingerprint=publication.fingerprint,
                lease=self._settings.lease,
                digest=self._settings.digest,
            )
        except kvferry.Error as error:  # released already, or published twice: the blocks go straight back
            logger.info("parcel %s was not published: %s", publication.transfer_id, error)
            self._results.finished_sending.add(publication.request_id)
            return
        self._sending[publication.transfer_id] = publication.request_id
        self._stats.count("parcels_published")

    # ---- as reader

    def _go_on(self) -> None:
        """Starts what has waited for the first contact with a prefiller; nothing writes its blocks before."""
        for request_id, loading in list(self._loading.items()):
            if loading.reading is not None:
                continue
            if loading.owners.done():
                self._read(request_id, loading)
            elif time.monotonic() - loading.began > self._settings.read_timeout:
                why = f"no contact with {loading.load.source.bootstrap} in {self._settings.read_timeout} s"
                self._fail_load(request_id, loading, why)

    def _release(self, source: Source, owners: Future[Prefiller]) -> None:
        """As soon as the owners are known, also when that is after this step: an engine that is idle has no other."""

        def tell(found: Future[Prefiller]) -> None:
            if found.cancelled() or found.exception() is not None:  # whoever is gone holds nothing
                return
            for owner in found.result().owners:
                self._parcels.release_at(owner, source.transfer_id)

        owners.add_done_callback(tell)

    def _read(self, request_id: str, loading: _Loading) -> None:
        load = loading.load
        unknown = loading.owners.exception()
        if unknown is not None:
            self._fail_load(request_id, loading, str(unknown))
            return
        try:
            loading.reading = self._parcels.read(
                load.source.transfer_id,
                loading.owners.result().owners,
                self._layout.expand(load.blocks),
                fingerprint=load.fingerprint,
                group=self._settings.instance,
                expected_instance=load.source.engine_id,
                first_token=load.first_token,
                end_token=load.end_token,
                more=load.more,
                timeout=self._settings.read_timeout,
                event=loading.in_use.cuda_event if loading.in_use else 0,
            )
        except kvferry.Error as error:
            self._fail_load(request_id, loading, str(error))

    def _wait_shortly(self, loads: list[Load]) -> None:
        """Nothing is computed in this step: a load that ends at once is reported a step earlier."""
        deadline = time.monotonic() + self._settings.short_wait
        for load in loads:
            loading = self._loading.get(load.request_id)
            left = deadline - time.monotonic()
            if loading is None or loading.reading is None or left <= 0:
                continue
            loading.reading.wait_for(left)

    def _cancel(self, request_id: str) -> None:
        loading = self._loading.get(request_id)
        if loading is None:  # reported already
            return
        if loading.reading is None:
            self._give_back(loading)
            self._report(request_id, failed=False)
        else:
            loading.cancelled = True
            loading.reading.cancel()  # quiet when it returns; results() reports it

    def _end_load(self, request_id: str, loading: _Loading, outcome: kvferry.ParcelOutcome) -> None:
        if outcome.ok:
            self._stats.read(time.monotonic() - loading.began, outcome.bytes)
            self._report(request_id, failed=False)
        elif loading.cancelled:  # of no interest any more, however it ended
            self._give_back(loading)
            self._report(request_id, failed=False)
        else:
            if outcome.state in MAY_HAVE_MOVED:
                self._prefillers.forget(loading.load.source.bootstrap, loading.load.source.engine_id)
            self._fail_load(request_id, loading, outcome.error)

    def _fail_load(self, request_id: str, loading: _Loading, why: str) -> None:
        source = loading.load.source
        logger.warning("request %s did not get parcel %s: %s", request_id, source.transfer_id, why)
        self._give_back(loading)
        self._stats.count("reads_failed")
        self._report(request_id, failed=True)

    def _give_back(self, loading: _Loading) -> None:
        """The parcel is not asked for again, also where vLLM computes the prompt now: its owner need not wait for the
        lease to end."""
        if not loading.load.more:
            self._release(loading.load.source, loading.owners)

    def _report(self, request_id: str, failed: bool) -> None:
        del self._loading[request_id]
        self._results.finished_recving.add(request_id)
        if failed:
            self._results.failed_recving.add(request_id)
