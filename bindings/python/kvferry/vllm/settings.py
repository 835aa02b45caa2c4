"""What the connector can be told, in one place: kv_connector_extra_config, vLLM's variables, ranks of this process."""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from vllm import envs
from vllm.utils.network_utils import get_ip

import kvferry

if TYPE_CHECKING:
    from vllm.config import ParallelConfig, VllmConfig


@dataclass(frozen=True)
class Settings:
    instance: str
    """vLLM's engine_id: new at each start."""
    producer: bool
    consumer: bool
    protocol: str
    host: str
    base_host: str
    base_port: int
    external_base: bool
    """The workers' directory is not kept by an instance, but by a server of its own."""
    bootstrap_token: str
    """"@file", never the token itself: vLLM logs what it is told. Empty: nobody is asked for one."""
    bootstrap_certificate: str
    bootstrap_key: str
    bootstrap_ca: str
    """PEM files. With authorities, bootstrap servers are asked by https."""
    lease: float
    read_timeout: float
    digest: bool
    short_wait: float
    """How long a step that computes nothing waits for loads that have just begun."""
    model_id: str | None

    @staticmethod
    def of(config: VllmConfig) -> Settings:
        transfer = config.kv_transfer_config
        assert transfer is not None and transfer.engine_id is not None
        extra: dict[str, Any] = transfer.kv_connector_extra_config
        external = extra.get("bootstrap_server_address")
        host = str(extra.get("kvferry_host") or get_ip())
        base_host, base_port = _host_port(external) if external else _own_base(config.parallel_config, host)
        read_timeout = float(extra.get("kvferry_read_timeout", 60))
        if not 0 < read_timeout <= 3600:
            raise ValueError("kvferry_read_timeout must be more than 0 and at most 3600 seconds")
        return Settings(
            instance=transfer.engine_id,
            producer=transfer.is_kv_producer,
            consumer=transfer.is_kv_consumer,
            protocol=str(extra.get("mooncake_protocol", "auto")),
            host=host,
            base_host=base_host,
            base_port=base_port,
            external_base=external is not None,
            bootstrap_token=f"@{token}" if (token := extra.get("bootstrap_token_file")) else "",
            bootstrap_certificate=str(extra.get("bootstrap_certificate_file", "")),
            bootstrap_key=str(extra.get("bootstrap_key_file", "")),
            bootstrap_ca=str(extra.get("bootstrap_ca_file", "")),
            lease=float(envs.VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT),
            read_timeout=read_timeout,
            digest=bool(extra.get("kvferry_digest", False)),
            short_wait=min(float(extra.get("kvferry_short_wait_us", 500)), 900.0) * 1e-6,
            model_id=None if extra.get("model_id") is None else str(extra["model_id"]),
        )

    @property
    def listen(self) -> str | None:
        """Of the engine; nothing: KVFERRY_LISTEN says it."""
        if os.environ.get("KVFERRY_LISTEN"):
            return None
        return f"[{self.host}]:0" if ":" in self.host else f"{self.host}:0"

    def bootstrap_listen(self, rank: kvferry.ParallelRank) -> str:
        """Of this rank's bootstrap server. The first, which keeps the directory, is asked at two addresses where others
        are told another than its engine's."""
        is_first = rank.dp_rank == rank.pp_rank == rank.tp_rank == 0
        if not is_first or self.external_base or self.base_host == self.host:
            return self.host
        return "::" if ":" in self.host + self.base_host else "0.0.0.0"


def _host_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f'bootstrap_server_address must be "host:port", not {address!r}')
    return host.strip("[]"), int(port)


def _own_base(parallel: ParallelConfig, host: str) -> tuple[str, int]:
    """Where the first rank of this instance, or of all data-parallel ones behind one endpoint, keeps the directory.
    `host`: of this worker, and so of that rank where all are on one machine."""
    first = host
    if not parallel.local_engines_only and not _is_loopback(host):
        far = parallel.master_addr if parallel.nnodes_within_dp > 1 else parallel.data_parallel_master_ip
        first = host if _is_loopback(far) else far
    return first, envs.VLLM_MOONCAKE_BOOTSTRAP_PORT


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def rank_of_this_worker(parallel: ParallelConfig) -> kvferry.ParallelRank:
    """REQUIRES: vLLM's process groups are set up."""
    from vllm.distributed.parallel_state import (
        get_pp_group,
        get_tensor_model_parallel_rank,
    )

    alone = parallel.local_engines_only
    dp_size = parallel.data_parallel_size_local if alone else parallel.data_parallel_size
    dp_rank = (parallel.data_parallel_rank_local or 0) if alone else parallel.data_parallel_index
    return kvferry.ParallelRank(
        tp_size=parallel.tensor_parallel_size,
        tp_rank=get_tensor_model_parallel_rank(),
        pp_size=parallel.pipeline_parallel_size,
        pp_rank=get_pp_group().rank_in_group,
        dp_size=max(dp_size, dp_rank + 1),  # the engines of a dense model are told a size of 1, and keep their ranks
        dp_rank=dp_rank,
    )
