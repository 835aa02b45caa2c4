"""Where the workers of prefillers are: asked of their bootstrap servers once, by threads that may wait."""

from __future__ import annotations

import time
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import kvferry

# Instances that are remembered; each holds a peer for every rank that is read from.
MAX_INSTANCES = 1024
# Threads that look for one each, and how many may wait, those included: a host that is silent holds a thread for up to
# 15 s and the time to connect to its ranks.
MAX_CONTACTS = 64
MAX_WAITING = 512
# How long an instance may take to register all of its ranks.
PATIENCE = 5.0


@dataclass(frozen=True)
class Prefiller:
    owners: list[kvferry.Peer]
    """The ranks that this worker reads from or settles with."""


class Prefillers:
    """Used by the worker's main thread alone."""

    def __init__(self, engine: kvferry.Engine, rank: kvferry.ParallelRank, ca_file: str = "") -> None:
        self._engine, self._rank = engine, rank
        self._client = kvferry.BootstrapClient(timeout=PATIENCE, ca_file=ca_file)
        self._threads = ThreadPoolExecutor(max_workers=MAX_CONTACTS, thread_name_prefix="kvferry-contact")
        self._waiting: set[Future[Prefiller]] = set()  # left in the threads
        self._known: OrderedDict[tuple[str, str], Future[Prefiller]] = OrderedDict()

    def find(self, bootstrap: str, engine_id: str) -> Future[Prefiller]:
        key = (bootstrap, engine_id)
        found = self._known.get(key)
        if found is None or (found.done() and found.exception() is not None):
            found = self._known[key] = self._begin(bootstrap, engine_id)
            if len(self._known) > MAX_INSTANCES:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return found

    def forget(self, bootstrap: str, engine_id: str) -> None:
        """It may have gone or moved: ask again where it is, next time."""
        self._known.pop((bootstrap, engine_id), None)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _begin(self, bootstrap: str, engine_id: str) -> Future[Prefiller]:
        if len(self._waiting) >= MAX_WAITING:
            refused: Future[Prefiller] = Future()
            refused.set_exception(kvferry.Error(f"{MAX_WAITING} prefillers are waited for", "resource_exhausted"))
            return refused
        begun = self._threads.submit(self._contact, bootstrap, engine_id)
        self._waiting.add(begun)
        begun.add_done_callback(self._waiting.discard)
        return begun

    def _contact(self, bootstrap: str, engine_id: str) -> Prefiller:
        owners = [self._engine.peer(address) for address in self._addresses(bootstrap, engine_id)]
        for owner in owners:
            owner.connect()
        return Prefiller(owners)

    def _workers(self, bootstrap: str) -> list[kvferry.RegisteredWorker]:
        """One that is too busy to answer in time is asked again: the prompt is computed, and a load may take longer."""
        for _ in range(2):
            try:
                return self._client.workers(bootstrap)
            except kvferry.Error as error:
                if error.code != "deadline_exceeded":
                    raise
        return self._client.workers(bootstrap)

    def _addresses(self, bootstrap: str, engine_id: str) -> list[str]:
        deadline = time.monotonic() + PATIENCE
        while True:
            ranks = {
                (worker.pp_rank, worker.tp_rank): worker.address
                for worker in self._workers(bootstrap)
                if worker.engine_id == engine_id
            }
            pp_size = 1 + max((pp for pp, _ in ranks), default=-1)
            tp_size = 1 + max((tp for _, tp in ranks), default=-1)
            # Ranks register one by one: those that are there must fill the rectangle that they span.
            if ranks and len(ranks) == pp_size * tp_size:
                return [ranks[owner] for owner in kvferry.owners_to_settle(self._rank, tp_size, pp_size)]
            if time.monotonic() > deadline:
                raise kvferry.Error(f"{bootstrap} does not know the workers of {engine_id}", "not_found")
            time.sleep(0.05)
