"""Both sides of KVFerryConnector without servers: what it does with each kind of cache, request and ending."""

from __future__ import annotations

import subprocess
import sys
import unittest
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, get_args
from unittest.mock import patch

import torch
from fakes import (
    BLOCK,
    HEADS,
    allocated,
    cache,
    config,
    ended,
    full,
    latent,
    layer,
    publishing,
    reading,
    request,
    tensors,
    window,
)
from vllm.config import KVTransferConfig, MultiModalConfig, ParallelConfig
from vllm.config.speculative import SpeculativeConfig, SpeculativeMethod
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    KVCacheConfig,
    KVCacheSpec,
    MambaSpec,
    SinkFullAttentionSpec,
    SlidingWindowMLASpec,
    UniformTypeKVCacheSpecs,
)
from vllm.v1.request import RequestStatus

import kvferry
import kvferry.vllm
from kvferry.vllm.checks import Unsupported, check_cache, check_config
from kvferry.vllm.fingerprint import Fingerprints
from kvferry.vllm.layout import CacheLayout, describe
from kvferry.vllm.metadata import KVFerryMetadata
from kvferry.vllm.scheduler import Scheduler
from kvferry.vllm.settings import Settings, rank_of_this_worker
from kvferry.vllm.stats import KVFerryStats
from kvferry.vllm.worker import Worker

TOKENS = 40  # 3 blocks, the last not full


def scheduler(role: str = "kv_both", described: KVCacheConfig | None = None) -> Scheduler:
    return Scheduler(config(role), described or cache(full()))


class Refusals(unittest.TestCase):
    def refuses(self, what: str, call: Callable[[], object]) -> None:
        with self.assertRaisesRegex(Unsupported, what):
            call()

    def test_caches_that_hold_something_else_are_refused_by_name(self) -> None:
        plain = {"block_size": BLOCK, "num_kv_heads": HEADS, "head_size": 8, "dtype": torch.float32}
        kinds: list[KVCacheSpec] = [
            MambaSpec(block_size=BLOCK, shapes=((4, 4),), dtypes=(torch.float32,)),
            ChunkedLocalAttentionSpec(**plain, attention_chunk_size=64),
            SinkFullAttentionSpec(**plain, sink_len=4),
            SlidingWindowMLASpec(**plain | {"num_kv_heads": 1}, sliding_window=32),
        ]
        for spec in kinds:
            with self.subTest(type(spec).__name__):
                self.refuses(type(spec).__name__, lambda spec=spec: check_cache(cache(spec)))
                self.refuses(type(spec).__name__, lambda spec=spec: check_cache(cache(full(), spec)))
        self.refuses("chunked", lambda: check_cache(cache(full(attention_chunk_size=64))))
        self.refuses("tokens a state", lambda: check_cache(cache(full(tokens_per_state=4))))
        self.refuses("block sizes", lambda: check_cache(cache(full(), full(block_size=2 * BLOCK))))
        self.refuses("without a KV cache", lambda: check_cache(cache()))

    def test_one_kind_among_those_of_a_mixed_group_is_enough(self) -> None:
        mixed = UniformTypeKVCacheSpecs(
            block_size=BLOCK, kv_cache_specs={layer(0): full(), layer(1): full(attention_chunk_size=64)}
        )
        self.refuses("chunked", lambda: check_cache(cache(mixed)))

    def test_what_is_served_passes(self) -> None:
        for groups in ((full(),), (window(32),), (latent(),), (full(), window(32)), (full(sliding_window=32),)):
            check_cache(cache(*groups))

    def test_tokens_dealt_out_among_ranks_are_refused(self) -> None:
        for axis in ("decode", "prefill"):
            more = {f"{axis}_context_parallel_size": 2}
            self.refuses(f"{axis} context", lambda more=more: check_config(config(**more)))

    def test_draft_models_with_a_cache_are_refused_and_others_pass(self) -> None:
        for method in ("ngram", "ngram_gpu", "suffix", "medusa", "mlp_speculator"):
            check_config(config(speculation=SimpleNamespace(method=method)))
        # What vLLM says of each method that it has.
        told = object.__new__(SpeculativeConfig)
        refused = [method for method in get_args(SpeculativeMethod) if self.has_cache(told, method)]
        self.assertLessEqual({"eagle", "eagle3", "mtp", "draft_model", "extract_hidden_states"}, set(refused))
        for method in (*refused, "custom_class", "of tomorrow"):
            speculation = SimpleNamespace(method=method)
            self.refuses(f"{method}, .*draft model", lambda s=speculation: check_config(config(speculation=s)))

    @staticmethod
    def has_cache(told: SpeculativeConfig, method: str) -> bool:
        object.__setattr__(told, "method", method)
        return told.uses_draft_kv_cache()

    def test_both_roles_ask(self) -> None:
        for side in (Scheduler, Worker):
            self.refuses("MambaSpec", lambda side=side: side(config(), self.mamba()))

    @staticmethod
    def mamba() -> KVCacheConfig:
        return cache(MambaSpec(block_size=BLOCK, shapes=((4, 4),), dtypes=(torch.float32,)))


class Layouts(unittest.TestCase):
    def describe(self, described: KVCacheConfig, found: dict[str, torch.Tensor], tp: int = 1) -> CacheLayout:
        engine = kvferry.Engine()
        self.addCleanup(engine.close)
        return describe(config(tp=tp), described, found, kvferry.ParallelRank(tp_size=tp), engine.register_address)

    def test_a_storage_is_registered_once_and_whole(self) -> None:
        described = cache(full(), window(32))
        found = tensors(described)
        told = self.describe(described, found)
        self.assertEqual(len(told.regions), 1)
        self.assertEqual(told.regions[0].length, found[layer(0)].untyped_storage().nbytes())
        # The layers of different groups lie on the same bytes.
        bases = [one.k.base for one in told.layout.layers]
        self.assertEqual(bases[0], bases[1])
        self.assertEqual([one.group for one in told.layout.layers], [0, 1, 0, 1])
        self.assertEqual([group.window_tokens for group in told.layout.groups], [0, 32])

    def test_blocks_of_the_scheduler_are_several_of_the_tensors(self) -> None:
        described = cache(full())
        told = self.describe(described, tensors(described, split=2))
        self.assertEqual(told.kernel_blocks, 2)
        self.assertEqual(told.layout.groups[0].block_tokens, BLOCK // 2)
        self.assertEqual(told.expand([[3, kvferry.NO_BLOCK]]), [[6, 7, kvferry.NO_BLOCK, kvferry.NO_BLOCK]])

    def test_latent_caches_are_the_same_on_every_rank(self) -> None:
        described = cache(latent())
        told = self.describe(described, tensors(described), tp=2)
        self.assertTrue(told.layout.groups[0].replicated)
        self.assertEqual(told.layout.groups[0].heads_total, 1)

    def test_tensors_that_are_not_as_described_are_refused(self) -> None:
        described = cache(full())
        good = tensors(described)
        wrong = {
            "without a KV cache": {key: value for key, value in good.items() if key != layer(2)},
            "another shape": good | {layer(2): torch.zeros(16, HEADS, BLOCK, 16)},
            "strides": good | {layer(0): good[layer(0)].transpose(2, 3)},
            "vLLM counts": {key: value[:-1] for key, value in good.items()},
            "KV heads": {key: value[:, :1] for key, value in good.items()},
            "on meta": {key: value.to("meta") for key, value in good.items()},
        }
        for what, found in wrong.items():
            with self.subTest(what), self.assertRaisesRegex(Unsupported, what):
                self.describe(described, found)


class Agreement(unittest.TestCase):
    def test_everything_that_changes_kv_changes_the_fingerprint(self) -> None:
        described = cache(full())

        def of(one: Any = None, model_id: str | None = None, kv: KVCacheConfig = described, **more: Any) -> str:  # noqa: ANN401
            return Fingerprints(config(**more), kv, model_id).of(one or request(None))

        speculation = SimpleNamespace(method="ngram")
        feature = SimpleNamespace(identifier="picture", mm_position=SimpleNamespace(offset=3))
        pictured = request(None)
        pictured.mm_features = [feature]  # type: ignore[list-item]
        seen = [
            of(),
            of(request(None, tokens=41)),
            of(request(None, cache_salt="salt")),
            of(request(None, lora_request=SimpleNamespace(lora_name="adapter"))),
            of(pictured),
            of(model={"hidden_size": 64}),
            of(model_id="named"),
            of(speculation=speculation),
            of(kv=cache(full(block_size=32))),
            of(kv=KVCacheConfig(8, [], described.kv_cache_groups, kv_cache_layout="LBNHC")),
        ]
        with patch("kvferry.vllm.fingerprint.current_platform", SimpleNamespace(device_type="cuda")):
            seen.append(of())
        self.assertEqual(len(set(seen)), len(seen))

    def test_where_a_model_was_found_does_not(self) -> None:
        one, other = (
            Fingerprints(config(model={"_name_or_path": path}), cache(full()), None).of(request(None))
            for path in ("/a", "/b")
        )
        self.assertEqual(one, other)

    def test_multimodal_inputs_that_vllm_only_counts_are_warned_of_once(self) -> None:
        told = config()
        for inputs, prefixes, warnings in (
            (MultiModalConfig(mm_processor_cache_gb=0), False, 1),
            (MultiModalConfig(mm_processor_cache_gb=0), True, 0),
            (MultiModalConfig(), False, 0),
            (None, False, 0),
        ):
            told.model_config.multimodal_config, told.cache_config.enable_prefix_caching = inputs, prefixes
            with self.subTest(warnings=warnings), patch("kvferry.vllm.fingerprint.logger.warning") as warned:
                Scheduler(told, cache(full()))
                Worker(told, cache(full()))
                self.assertEqual(warned.call_count, warnings)

    def test_settings_have_their_defaults_and_limits(self) -> None:
        told = Settings.of(config(extra={"num_workers": 4, "device_name": "mlx5_0"}))
        self.assertEqual((told.protocol, told.lease, told.external_base), ("auto", 480.0, False))
        told = Settings.of(config(extra={"bootstrap_server_address": "[::1]:99", "kvferry_short_wait_us": 5000}))
        self.assertEqual((told.base_host, told.base_port, told.external_base), ("::1", 99, True))
        self.assertLess(told.short_wait, 0.001)
        for extra in ({"bootstrap_server_address": "nowhere"}, {"kvferry_read_timeout": 0}):
            with self.assertRaises(ValueError):
                Settings.of(config(extra=extra))

    def test_the_class_has_its_aliases(self) -> None:
        self.assertIs(kvferry.vllm.MooncakeConnector, kvferry.vllm.KVFerryConnector)
        self.assertIs(KVConnectorFactory.get_connector_class_by_name("KVFerryConnector"), kvferry.vllm.KVFerryConnector)

    def test_settings_for_vllms_own_connector_find_ours_by_the_module_path(self) -> None:
        for name in ("MooncakeConnector", "KVFerryConnector"):
            told = KVTransferConfig(kv_connector=name, kv_connector_module_path="kvferry.vllm", kv_role="kv_both")
            self.assertIs(KVConnectorFactory.get_connector_class(told), kvferry.vllm.KVFerryConnector)

    def test_pages_with_heads_apart_are_asked_for_where_there_are_heads(self) -> None:
        asked = kvferry.vllm.KVFerryConnector.get_required_kvcache_layout
        for mla, layout in ((False, "LBHNC"), (True, None)):
            told = SimpleNamespace(model_config=SimpleNamespace(use_mla=mla))
            self.assertEqual(asked(told), layout)  # type: ignore[arg-type]
        self.assertIsNone(asked(SimpleNamespace(model_config=None)))  # type: ignore[arg-type]

    def test_statistics_add_up_in_any_process(self) -> None:
        one, other = KVFerryStats(), KVFerryStats()
        one.read(0.5, 100)
        other.count("reads_failed")
        rebuilt = kvferry.vllm.KVFerryConnector.build_kv_connector_stats(other.take().data)
        told = one.aggregate(rebuilt).reduce()
        self.assertEqual((told["Reads"], told["Failed reads"]), (1, 1))
        self.assertTrue(other.is_empty())


class Places(unittest.TestCase):
    """Of a worker among those of its instance, as vLLM's own configuration tells it."""

    @patch("vllm.distributed.parallel_state.get_pp_group", lambda: SimpleNamespace(rank_in_group=0))
    @patch("vllm.distributed.parallel_state.get_tensor_model_parallel_rank", lambda: 0)
    def rank(self, parallel: ParallelConfig) -> tuple[int, int]:
        found = rank_of_this_worker(parallel)
        with kvferry.Engine() as engine:  # where no layout has a rank beyond its size
            described = cache(full())
            told = describe(config(), described, tensors(described), found, engine.register_address)
            kvferry.Parcels(engine).set_cache("instance", told.layout)
        return found.dp_rank, found.dp_size

    def test_data_parallel_engines_have_their_ranks(self) -> None:
        self.assertEqual(self.rank(ParallelConfig()), (0, 1))
        self.assertEqual(self.rank(ParallelConfig(data_parallel_size=2, data_parallel_rank=1)), (1, 2))
        balanced = ParallelConfig(data_parallel_size=4, data_parallel_size_local=2, data_parallel_hybrid_lb=True)
        balanced.data_parallel_index, balanced.data_parallel_rank_local = 3, 1
        self.assertEqual(self.rank(balanced), (1, 2))

    def test_engines_of_a_dense_model_keep_their_ranks(self) -> None:
        """vLLM makes each an engine of its own: a size of 1 with the index that it had."""
        dense = ParallelConfig(data_parallel_size=2, data_parallel_rank=1)
        dense.reconfigure_for_independent_dp_rank()
        self.assertEqual((dense.data_parallel_size, dense.data_parallel_index), (1, 1))
        self.assertEqual(self.rank(dense), (1, 2))

    def test_every_rank_registers_where_the_first_listens(self) -> None:
        master: dict[str, Any] = {"data_parallel_master_ip": "10.0.0.1", "data_parallel_rank": 1}
        dense = ParallelConfig(data_parallel_size=2, data_parallel_size_local=1, **master)
        dense.reconfigure_for_independent_dp_rank()
        nodes = ParallelConfig(tensor_parallel_size=2, nnodes=2, node_rank=1, master_addr="10.0.0.1")
        balanced = ParallelConfig(
            data_parallel_size=2, data_parallel_size_local=1, data_parallel_external_lb=True, **master
        )
        for parallel, host, base, listen in (
            (ParallelConfig(), "10.0.0.2", "10.0.0.2", "10.0.0.2"),
            (ParallelConfig(data_parallel_size=2, data_parallel_rank=1), "10.0.0.2", "10.0.0.2", "10.0.0.2"),
            (balanced, "10.0.0.2", "10.0.0.2", "10.0.0.2"),
            (dense, "10.0.0.1", "10.0.0.1", "10.0.0.1"),
            (dense, "10.0.0.2", "10.0.0.1", "0.0.0.0"),
            (nodes, "10.0.0.2", "10.0.0.1", "0.0.0.0"),
            (nodes, "fd00::2", "10.0.0.1", "::"),
            (nodes, "127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ):
            with self.subTest(base=base, host=host):
                told = config(extra={"kvferry_host": host})
                told.parallel_config = parallel
                settings = Settings.of(told)
                self.assertEqual((settings.host, settings.base_host), (host, base))
                self.assertEqual(settings.bootstrap_listen(kvferry.ParallelRank()), listen)
                # All ranks but the first are asked at the engine's address alone.
                self.assertEqual(settings.bootstrap_listen(kvferry.ParallelRank(tp_size=2, tp_rank=1)), host)


class EngineMadeError(Exception):
    """Instead of an engine."""


class Starting(unittest.TestCase):
    """When there is an engine: in a worker, when its device is set up and its cache is there."""

    def setUp(self) -> None:
        engine = patch("kvferry.Engine", side_effect=EngineMadeError)
        self.engine = engine.start()
        self.addCleanup(engine.stop)

    def test_the_schedulers_role_makes_none(self) -> None:
        side = kvferry.vllm.KVFerryConnector(config(), KVConnectorRole.SCHEDULER, cache(full()))
        theirs, mine = request(publishing("x"), TOKENS, "theirs"), request(reading(transfer_id="y"), TOKENS, "mine")
        for one in (theirs, mine):
            side.on_new_request(one)
            side.get_num_new_matched_tokens(one, 0)
        side.update_state_after_alloc(mine, allocated([1, 2, 3]), TOKENS)
        side.request_finished(ended(theirs), [5, 6, 7])
        meta = side.build_connector_meta(SimpleNamespace())  # type: ignore[arg-type]
        assert isinstance(meta, KVFerryMetadata)
        self.assertEqual((len(meta.published), len(meta.loads)), (1, 1))
        side.update_connector_output(SimpleNamespace(finished_recving={"mine"}))  # type: ignore[arg-type]
        side.request_finished(ended(mine), [1, 2, 3])
        side.shutdown()
        self.engine.assert_not_called()

    def test_a_worker_makes_one_when_it_is_given_its_cache(self) -> None:
        described = cache(full())
        side = kvferry.vllm.KVFerryConnector(config(), KVConnectorRole.WORKER, described)
        side.get_kv_connector_stats()
        self.engine.assert_not_called()
        with (
            patch("kvferry.vllm.worker.rank_of_this_worker", lambda _: kvferry.ParallelRank()),
            self.assertRaises(EngineMadeError),
        ):
            side.register_kv_caches(tensors(described))
        side.shutdown()

    def test_importing_starts_nothing(self) -> None:
        """What vLLM's own modules start is there before."""
        program = """
import os, sys
import vllm.distributed.kv_transfer.kv_connector.factory, vllm.v1.request, vllm.v1.kv_cache_interface
import vllm.utils.network_utils, vllm.distributed.kv_transfer.kv_connector.v1.metrics, vllm.platforms
vllm.platforms.current_platform.device_type
seen = lambda: (len(os.listdir("/proc/self/task")), sorted(os.listdir("/proc/self/fd")))
before = seen()
assert "kvferry" not in sys.modules
import kvferry.vllm
print(seen() == before, before, seen())
"""
        ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
        self.assertEqual(ran.returncode, 0, ran.stderr)
        self.assertTrue(ran.stdout.splitlines()[-1].startswith("True "), ran.stdout)


class Owners(unittest.TestCase):
    """The scheduler of a prefiller."""

    def test_a_computed_prompt_is_published_and_its_blocks_kept(self) -> None:
        side = scheduler()
        one = request(publishing(), TOKENS)
        side.on_new_request(one)
        self.assertEqual(side.build_meta().announced, ["x"])
        self.assertEqual(side.finished(ended(one), ([5, 6, 7, 8],)), (True, None))
        self.assertTrue(side.has_urgent_work())
        (told,) = side.build_meta().published
        self.assertEqual((told.blocks, told.tokens), ([[5, 6, 7]], 3 * BLOCK))
        self.assertFalse(side.has_urgent_work())

    def test_every_other_end_answers_who_waits_also_on_an_idle_engine(self) -> None:
        ends = [
            (RequestStatus.FINISHED_ABORTED, True),
            (RequestStatus.FINISHED_ERROR, True),
            (RequestStatus.FINISHED_LENGTH_CAPPED, False),
        ]
        for status, computed in ends:
            side = scheduler()
            one = request(publishing(), TOKENS)
            side.on_new_request(one)
            side.build_meta()
            self.assertEqual(side.finished(ended(one, status, computed), ([5, 6, 7],)), (False, None))
            self.assertTrue(side.has_urgent_work(), "the engine goes on until the workers were told")
            self.assertEqual(side.build_meta().withdrawn, ["x"])

    def test_a_block_that_a_window_has_dropped_is_none(self) -> None:
        side = scheduler(described=cache(full(), window(16)))
        side.finished(ended(request(publishing(), TOKENS)), ([5, 6, 7], [0, 0, 9]))
        (told,) = side.build_meta().published
        self.assertEqual(told.blocks, [[5, 6, 7], [kvferry.NO_BLOCK, kvferry.NO_BLOCK, 9]])


class Readers(unittest.TestCase):
    """The scheduler of a decoder."""

    def test_a_parcel_is_read_once_also_when_the_request_is_preempted(self) -> None:
        side = scheduler()
        one = request(reading(), TOKENS)
        side.on_new_request(one)
        self.assertEqual(side.build_meta().contacts, {("http://127.0.0.1:1", "prefiller")})
        for _ in range(3):  # asked in each step while blocks are short
            self.assertEqual(side.matched_tokens(one, BLOCK), (TOKENS - BLOCK, True))
        side.update_after_alloc(one, allocated([1, 2, 3]), TOKENS - BLOCK)
        side.update_after_alloc(one, allocated([1, 2, 3]), 0)  # it starts to run
        meta = side.build_meta()
        (told,) = meta.loads
        self.assertEqual((told.first_token, told.end_token, told.blocks), (BLOCK, 3 * BLOCK, [[1, 2, 3]]))
        self.assertEqual((told.more, meta.released), (False, []))
        self.assertEqual(side.matched_tokens(one, 0), (0, False))

    def test_children_of_one_request_share_its_parcel(self) -> None:
        side = scheduler()
        params = reading()
        children = [request(dict(params), TOKENS, name) for name in ("0", "1")]
        for child in children:
            side.on_new_request(child)
        for child in children:
            side.update_after_alloc(child, allocated([1, 2, 3]), TOKENS)
        self.assertEqual([told.more for told in side.build_meta().loads], [True, False])

    def test_a_request_that_needs_no_kv_releases_its_parcel(self) -> None:
        side = scheduler()
        computed_here, never_run = (
            request(reading(transfer_id="a"), TOKENS, "a"),
            request(reading(transfer_id="b"), TOKENS, "b"),
        )
        for one in (computed_here, never_run):
            side.on_new_request(one)
        side.build_meta()
        side.update_after_alloc(computed_here, allocated([1, 2, 3]), 0)
        self.assertEqual(side.finished(ended(never_run, RequestStatus.FINISHED_ABORTED), ([],)), (False, None))
        self.assertTrue(side.has_urgent_work())
        self.assertEqual([source.transfer_id for source in side.build_meta().released], ["a", "b"])

    def test_a_load_is_cancelled_with_its_request_until_it_has_ended(self) -> None:
        for over in (False, True):
            side = scheduler()
            one = request(reading(), TOKENS)
            side.on_new_request(one)
            side.update_after_alloc(one, allocated([1, 2, 3]), TOKENS)
            side.build_meta()
            if over:
                side.update_output(SimpleNamespace(finished_recving={one.request_id}))  # type: ignore[arg-type]
            self.assertEqual(side.finished(ended(one, RequestStatus.FINISHED_ABORTED), ([1, 2, 3],)), (False, None))
            self.assertEqual(side.build_meta().cancelled, [] if over else [one.request_id])

    def test_parameters_that_name_no_parcel_mean_that_the_prompt_is_computed(self) -> None:
        nonsense: list[Any] = [
            None,
            "words",
            {},
            {"do_remote_prefill": True},
            reading(transfer_id=7),
            reading(transfer_id="x" * 300),
            reading(remote_engine_id=None),
            reading(remote_bootstrap_addr=["http://127.0.0.1:1"]),
            publishing(transfer_id=None),
            publishing(transfer_id=""),
        ]
        for params in nonsense:
            with self.subTest(str(params)[:60]):
                side = scheduler()
                one = request(params, TOKENS)
                side.on_new_request(one)
                self.assertEqual(side.matched_tokens(one, 0), (0, False))
                side.update_after_alloc(one, allocated([1, 2, 3]), 0)
                self.assertEqual(side.finished(ended(one), ([1, 2, 3],)), (False, None))
                self.assertEqual(side.build_meta(), KVFerryMetadata())

    def test_a_role_does_what_it_is_for(self) -> None:
        for role, loads, publishes in (
            ("kv_producer", False, True),
            ("kv_consumer", True, False),
            ("kv_both", True, True),
        ):
            side = scheduler(role)
            self.assertEqual(side.matched_tokens(request(reading(), TOKENS), 0)[1], loads)
            self.assertEqual(side.finished(ended(request(publishing(), TOKENS)), ([1, 2, 3],))[0], publishes)


if __name__ == "__main__":
    unittest.main()
