"""The workers' side of KVFerryConnector with real engines: bytes of one rank's tensors arrive in another's."""

from __future__ import annotations

import os
import sys
import threading
import time
import unittest
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import torch
from fakes import (
    BLOCK,
    LAYERS,
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
from vllm import envs
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec
from vllm.v1.request import RequestStatus

import kvferry
from chain.ports import own_ports
from kvferry.vllm.scheduler import Scheduler
from kvferry.vllm.worker import Worker

TOKENS = 40  # 3 blocks, the last not full
PORTS = own_ports()


def layers_of(rank: kvferry.ParallelRank) -> range:
    count = LAYERS // rank.pp_size
    return range(rank.pp_rank * count, (rank.pp_rank + 1) * count)


class Pair:
    """A prefiller's ranks and a decoder, with their schedulers; steps are taken by the test."""

    def __init__(
        self, groups: Sequence[KVCacheSpec], split: int = 1, tp: int = 1, pp: int = 1, lease: int = 300
    ) -> None:
        """`tp`, `pp`: of the prefiller."""
        described = cache(*groups)
        os.environ["VLLM_HOST_IP"] = "127.0.0.1"
        os.environ["VLLM_MOONCAKE_BOOTSTRAP_PORT"] = str(PORTS.take(8))
        os.environ["VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT"] = str(lease)
        self.bootstrap = f"http://127.0.0.1:{os.environ['VLLM_MOONCAKE_BOOTSTRAP_PORT']}"
        # What the prefiller has computed, all layers and heads of it.
        self.theirs, self.mine = tensors(described, split), tensors(described, split)
        for number, tensor in enumerate(self.theirs.values()):
            generator = torch.Generator().manual_seed(number)
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 1)
        owner, reader = config("kv_producer", "prefiller", tp, pp=pp), config("kv_consumer", "decoder")
        ranks = [
            kvferry.ParallelRank(tp_size=tp, tp_rank=number % tp, pp_size=pp, pp_rank=number // tp)
            for number in range(tp * pp)
        ]
        self._shares = [self._share(rank) for rank in ranks]  # as vLLM does, the tensors are kept
        self.owners = [
            self._worker(owner, cache(*groups, layers=layers_of(rank)), share, rank)
            for rank, share in zip(ranks, self._shares, strict=True)
        ]
        self._sent = [Counter[str]() for _ in ranks]  # what each rank has reported
        self.reader = self._worker(reader, described, self.mine, kvferry.ParallelRank())
        self.prefill, self.decode = Scheduler(owner, described), Scheduler(reader, described)

    def _share(self, rank: kvferry.ParallelRank) -> dict[str, torch.Tensor]:
        """Of one rank: its layers and heads."""
        if rank.tp_size == rank.pp_size == 1:
            return self.theirs
        share: dict[str, torch.Tensor] = {}
        for name in map(layer, layers_of(rank)):
            whole = self.theirs[name]
            part = whole if whole.shape[1] == 1 else whole.tensor_split(rank.tp_size, 1)[rank.tp_rank]
            share[name] = part.clone()
        return share

    @staticmethod
    def _worker(
        told: Any,  # noqa: ANN401
        described: KVCacheConfig,
        found: dict[str, torch.Tensor],
        rank: kvferry.ParallelRank,
    ) -> Worker:
        worker = Worker(told, described)
        with patch("kvferry.vllm.worker.rank_of_this_worker", lambda _: rank):
            worker.register(found)
        return worker

    def close(self) -> None:
        for worker in (self.reader, *self.owners):
            worker.shutdown()

    def publish(self, blocks: Sequence[list[int]], transfer_id: str = "x") -> None:
        one = request(publishing(transfer_id), TOKENS, f"prefill-{transfer_id}")
        self.prefill.on_new_request(one)
        self.prefill.finished(ended(one), blocks)
        self.step_owners()

    def step_owners(self) -> None:
        meta = self.prefill.build_meta()
        for owner, sent in zip(self.owners, self._sent, strict=True):
            owner.start(meta, True)
            sent.update(owner.results().finished_sending or ())

    def ask(self, blocks: Sequence[list[int]], transfer_id: str = "x", cached: int = 0) -> str:
        one = request(
            reading(transfer_id=transfer_id, remote_bootstrap_addr=self.bootstrap), TOKENS, f"decode-{transfer_id}"
        )
        self.decode.on_new_request(one)
        self.decode.update_after_alloc(one, allocated(*blocks), TOKENS - cached)
        return one.request_id

    def is_reading(self) -> bool:
        """After a step: whether the first contact is made."""
        self.reader.start(self.decode.build_meta(), True)
        return all(loading.reading is not None for loading in self.reader._loading.values())

    def until_loaded(self, wanted: str) -> bool:
        """Steps until the load is reported, once; whether it went well."""
        reports: list[tuple[set[str], set[str]]] = []

        def step() -> bool:
            self.reader.start(self.decode.build_meta(), True)
            told = self.reader.results()
            reports.append((set(told.finished_recving or ()), set(told.failed_recving or ())))
            return wanted in reports[-1][0]

        eventually(step)
        failed = wanted in reports[-1][1]
        for _ in range(3):
            step()
        assert sum(wanted in finished for finished, _ in reports) == 1
        return not failed

    def until_sent(self, wanted: str) -> None:
        """All ranks report it, each once."""

        def step() -> bool:
            self.step_owners()
            return all(sent[wanted] for sent in self._sent)

        eventually(step)
        for _ in range(3):
            step()
        assert all(sent[wanted] == 1 for sent in self._sent)


def eventually(step: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not step():
        assert time.monotonic() < deadline, "not within 30 s"
        time.sleep(0.001)  # pause of a wait


@contextmanager
def pair(*groups: KVCacheSpec, **more: Any) -> Iterator[Pair]:  # noqa: ANN401
    made = Pair(groups, **more)
    try:
        yield made
    finally:
        made.close()


class Workers(unittest.TestCase):
    """Real engines: bytes of one rank's tensors arrive in another's."""

    def check_moved(self, made: Pair, theirs: Sequence[list[int]], mine: Sequence[list[int]], split: int = 1) -> None:
        """These blocks hold the prefiller's, and nothing else was written."""
        expected = {tensor.data_ptr(): torch.zeros_like(tensor) for tensor in made.mine.values()}
        for index in range(LAYERS):
            group = index % len(theirs)
            for source, target in zip(theirs[group], mine[group], strict=True):
                rows = slice(target * split, (target + 1) * split)
                if target:
                    found = made.theirs[layer(index)][source * split : (source + 1) * split]
                    expected[made.mine[layer(index)].data_ptr()][rows] = found
        for tensor in made.mine.values():
            self.assertTrue(torch.equal(tensor, expected[tensor.data_ptr()]))

    def read(self, made: Pair, theirs: Sequence[list[int]], mine: Sequence[list[int]], **more: int) -> None:
        made.publish(theirs)
        self.assertTrue(made.until_loaded(made.ask(mine, **more)))
        made.until_sent("prefill-x")

    def test_whole_prompts_arrive_for_each_kind_of_cache(self) -> None:
        for name, spec in (("full", full()), ("window", window(4 * BLOCK)), ("latent", latent())):
            with self.subTest(name), pair(spec) as made:
                self.read(made, [[3, 9, 4]], [[7, 5, 6]])
                self.check_moved(made, [[3, 9, 4]], [[7, 5, 6]])

    def test_heads_of_two_ranks_come_together(self) -> None:
        with pair(full(), tp=2) as made:
            self.read(made, [[3, 9, 4]], [[7, 5, 6]])
            self.check_moved(made, [[3, 9, 4]], [[7, 5, 6]])

    def test_layers_of_two_pipeline_ranks_come_together(self) -> None:
        for tp in (1, 2):
            with self.subTest(tp=tp), pair(full(), tp=tp, pp=2) as made:
                self.read(made, [[3, 9, 4]], [[7, 5, 6]])
                self.check_moved(made, [[3, 9, 4]], [[7, 5, 6]])

    def test_the_first_rank_is_found_at_another_address_than_its_engines(self) -> None:
        """By a rank of another node, which is told the address of the first one's."""
        told = patch("kvferry.vllm.settings._own_base", lambda *_: ("127.0.0.2", envs.VLLM_MOONCAKE_BOOTSTRAP_PORT))
        with told, pair(full(), tp=2) as made:
            self.read(made, [[3, 9, 4]], [[7, 5, 6]])
            self.check_moved(made, [[3, 9, 4]], [[7, 5, 6]])

    def test_latents_of_two_ranks_are_read_once_and_both_are_told(self) -> None:
        with pair(latent(), tp=2) as made:
            self.read(made, [[3, 9, 4]], [[7, 5, 6]])
            self.check_moved(made, [[3, 9, 4]], [[7, 5, 6]])

    def test_groups_share_memory_and_a_window_has_its_last_blocks_only(self) -> None:
        theirs, mine = [[3, 9, 4], [0, 11, 12]], [[7, 5, 6], [0, 13, 14]]
        with pair(full(), window(BLOCK)) as made:
            self.read(made, theirs, mine)
            self.check_moved(made, theirs, mine)

    def test_blocks_of_the_tensors_may_be_smaller(self) -> None:
        with pair(full(), split=2) as made:
            self.read(made, [[3, 9, 4]], [[7, 5, 6]])
            self.check_moved(made, [[3, 9, 4]], [[7, 5, 6]], split=2)

    def test_what_the_prefix_cache_has_is_left_alone(self) -> None:
        with pair(full()) as made:
            self.read(made, [[3, 9, 4]], [[7, 5, 6]], cached=BLOCK)
            self.check_moved(made, [[9, 4]], [[5, 6]])

    def test_a_withdrawn_prompt_fails_the_load_that_waits_for_it_at_once(self) -> None:
        with pair(full()) as made:
            one = request(publishing(), TOKENS)
            made.prefill.on_new_request(one)
            made.step_owners()
            wanted = made.ask([[7, 5, 6]])
            for _ in range(20):  # it waits
                made.reader.start(made.decode.build_meta(), True)
                self.assertFalse(made.reader.results().finished_recving)
            made.prefill.finished(ended(one, RequestStatus.FINISHED_ABORTED), ([3, 9, 4],))
            made.step_owners()
            self.assertFalse(made.until_loaded(wanted))  # the lease has 300 s, and the read 60
            self.assertEqual(made.reader.take_stats().data["reads_failed"], 1)  # type: ignore[union-attr]

    def test_a_cancelled_load_is_reported_once_and_gives_the_parcel_back(self) -> None:
        for published in (False, True):
            with self.subTest(published=published), pair(full()) as made:
                one = request(publishing(), TOKENS, "prefill-x")
                made.prefill.on_new_request(one)
                made.step_owners()
                reader = request(reading(remote_bootstrap_addr=made.bootstrap), TOKENS, "decode-x")
                made.decode.on_new_request(reader)
                made.decode.update_after_alloc(reader, allocated([7, 5, 6]), TOKENS)
                eventually(made.is_reading)
                if published:
                    made.prefill.finished(ended(one), ([3, 9, 4],))
                    made.step_owners()
                made.decode.finished(ended(reader, RequestStatus.FINISHED_ABORTED), ([7, 5, 6],))
                self.assertTrue(made.until_loaded("decode-x"))
                if not published:
                    made.prefill.finished(ended(one), ([3, 9, 4],))
                made.until_sent("prefill-x")

    def test_a_load_that_is_cancelled_before_the_first_contact_is_reported_at_once(self) -> None:
        """The parcel is given back when the prefiller is known."""
        with pair(full()) as made:
            go_on = threading.Event()
            contact = made.reader._prefillers._contact

            def slow(bootstrap: str, engine_id: str) -> Any:  # noqa: ANN401
                assert go_on.wait(60)
                return contact(bootstrap, engine_id)

            with patch.object(made.reader._prefillers, "_contact", slow):
                reader = request(reading(remote_bootstrap_addr=made.bootstrap), TOKENS, "decode-x")
                made.decode.on_new_request(reader)
                made.decode.update_after_alloc(reader, allocated([7, 5, 6]), TOKENS)
                made.reader.start(made.decode.build_meta(), True)
                made.decode.finished(ended(reader, RequestStatus.FINISHED_ABORTED), ([7, 5, 6],))
                self.assertTrue(made.until_loaded("decode-x"))
            made.publish([[3, 9, 4]])
            go_on.set()
            made.until_sent("prefill-x")

    def test_a_lease_that_ends_gives_the_blocks_back_and_refuses_who_comes_later(self) -> None:
        with pair(full(), lease=1) as made:
            made.publish([[3, 9, 4]])
            made.until_sent("prefill-x")
            self.assertEqual(made.owners[0].take_stats().data["parcels_expired"], 1)  # type: ignore[union-attr]
            self.assertFalse(made.until_loaded(made.ask([[7, 5, 6]])))
            self.assertFalse(any(tensor.any() for tensor in made.mine.values()))

    def test_a_directory_that_does_not_answer_in_time_is_asked_again(self) -> None:
        with pair(full()) as made:
            client = made.reader._prefillers._client
            late = kvferry.Error("no answer in time", "deadline_exceeded")
            answers = iter([late, late, client.workers(made.bootstrap)])
            made.reader._prefillers._client = Mock(workers=Mock(side_effect=answers))
            self.read(made, [[3, 9, 4]], [[7, 5, 6]])
            self.check_moved(made, [[3, 9, 4]], [[7, 5, 6]])

    def test_a_load_that_ends_at_once_is_reported_by_the_step_that_began_it(self) -> None:
        """Where the step computes nothing. A machine that stands still may come too late: one of many counts."""

        def in_one_step(transfer_id: str) -> bool:
            made.publish([[3, 9, 4]], transfer_id)
            wanted = made.ask([[7, 5, 6]], transfer_id)
            made.reader.start(made.decode.build_meta(), True)
            if wanted in (made.reader.results().finished_recving or ()):
                return True
            self.assertTrue(made.until_loaded(wanted))
            return False

        with pair(full()) as made:
            self.read(made, [[3, 9, 4]], [[7, 5, 6]])  # the first contact
            self.assertTrue(any(in_one_step(f"x-{number}") for number in range(500)))

    def test_a_step_that_computes_never_waits_for_a_load(self) -> None:
        """What is asked for is announced only: a wait would last as long as it may."""
        with pair(full()) as made:
            self.read(made, [[3, 9, 4]], [[7, 5, 6]])  # the first contact
            for empty, longest in ((False, 60.0), (True, 0.2)):
                made.reader._settings = replace(made.reader._settings, short_wait=longest)
                made.prefill.on_new_request(request(publishing(f"x-{empty}"), TOKENS))
                made.step_owners()
                made.ask([[7, 5, 6]], f"x-{empty}")
                meta = made.decode.build_meta()
                began = time.monotonic()
                made.reader.start(meta, empty)
                took = time.monotonic() - began
                self.assertEqual(len(made.reader._loading), 2 if empty else 1)
                self.assertFalse(made.reader.results().finished_recving)
                if empty:
                    self.assertGreater(took, longest / 2)
                else:
                    self.assertLess(took, longest)

    @contextmanager
    def silent(self, made: Pair) -> Iterator[None]:
        """Hosts named so do not answer before the end of this."""
        go_on = threading.Event()
        contact = made.reader._prefillers._contact

        def slow(bootstrap: str, engine_id: str) -> Any:  # noqa: ANN401
            assert not bootstrap.startswith("silent") or go_on.wait(60)
            return contact(bootstrap.removeprefix("silent "), engine_id)

        with patch.object(made.reader._prefillers, "_contact", slow):
            try:
                yield
            finally:
                go_on.set()

    def test_a_load_fails_in_time_when_its_prefiller_is_silent(self) -> None:
        """The parcel is given back when the prefiller is known after all."""
        with pair(full()) as made:
            made.reader._settings = replace(made.reader._settings, read_timeout=0.1)
            made.publish([[3, 9, 4]])
            with self.silent(made), self.assertLogs("vllm.kvferry", "WARNING") as told:
                made.bootstrap = f"silent {made.bootstrap}"
                self.assertFalse(made.until_loaded(made.ask([[7, 5, 6]])))
            self.assertIn("no contact with silent", told.output[-1])
            made.until_sent("prefill-x")
            self.assertFalse(any(tensor.any() for tensor in made.mine.values()))

    def test_silent_prefillers_hold_nobody_else_up(self) -> None:
        with pair(full()) as made, self.silent(made):
            for number in range(16):
                made.reader._prefillers.find(f"silent {number}", "prefiller")
            self.read(made, [[3, 9, 4]], [[7, 5, 6]])

    def test_prefillers_that_are_waited_for_are_bounded(self) -> None:
        with pair(full()) as made, patch("kvferry.vllm.peers.MAX_WAITING", 2):
            with self.silent(made):
                waited_for = [made.reader._prefillers.find(f"silent {number}", "prefiller") for number in range(2)]
                with self.assertLogs("vllm.kvferry", "WARNING") as told:
                    self.assertFalse(made.until_loaded(made.ask([[7, 5, 6]])))
                self.assertIn("2 prefillers are waited for", told.output[-1])
            for contact in waited_for:
                self.assertIsNotNone(contact.exception(60))
            eventually(lambda: not made.reader._prefillers._waiting)
            self.read(made, [[3, 9, 4]], [[7, 5, 6]])

    def test_a_prefiller_that_refuses_is_not_looked_for_again(self) -> None:
        """One whose parcel is gone is, because it may be another one by now."""
        with pair(full()) as made:
            made.publish([[3, 9, 4]])
            with patch.object(made.reader._prefillers, "_contact", wraps=made.reader._prefillers._contact) as contact:
                for salt, contacts in (("other", 1), (None, 1), (None, 2)):  # refused, gone, gone
                    one = request(reading(remote_bootstrap_addr=made.bootstrap), TOKENS, "decode-x", cache_salt=salt)
                    made.decode.on_new_request(one)
                    made.decode.update_after_alloc(one, allocated([7, 5, 6]), TOKENS)
                    made.until_loaded("decode-x")
                    self.assertEqual(contact.call_count, contacts)

    def test_a_prefiller_that_nobody_knows_fails_the_load(self) -> None:
        with pair(full()) as made:
            made.bootstrap = f"http://127.0.0.1:{PORTS.take()}"
            self.assertFalse(made.until_loaded(made.ask([[7, 5, 6]])))


class Tensors(unittest.TestCase):
    def test_torchs_tensors_are_registered_and_their_parts_are_read(self) -> None:
        theirs, mine = torch.arange(4096, dtype=torch.float16), torch.zeros(4096, dtype=torch.float16)
        with kvferry.Engine() as owner, kvferry.Engine() as reader:
            region, _ = owner.register(theirs, readable=True), reader.register(mine)
            outcome = reader.read(reader.peer(owner.address), mine[8:16], region.span(2 * 100, 16)).wait()
        self.assertEqual(outcome.bytes_done, 16)
        self.assertTrue(torch.equal(mine[8:16], theirs[100:108]))
        self.assertEqual(int(mine.count_nonzero()), 8)


if __name__ == "__main__":
    unittest.main()
