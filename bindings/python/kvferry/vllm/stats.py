"""What the connector tells vLLM's log and Prometheus. Lists of observations, as vLLM's own connectors have them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats
from vllm.v1.metrics.utils import create_metric_per_engine

OBSERVED = ("read_seconds", "read_bytes")
COUNTED = ("reads_failed", "parcels_published", "parcels_expired")


@dataclass
class KVFerryStats(KVConnectorStats):
    """Since they were last taken. Of the worker's main thread; copies travel."""

    def __post_init__(self) -> None:
        if not self.data:
            self.reset()

    def reset(self) -> None:
        self.data: dict[str, Any] = {**{key: [] for key in OBSERVED}, **{key: 0 for key in COUNTED}}

    def read(self, seconds: float, size: int) -> None:
        self.data["read_seconds"].append(seconds)
        self.data["read_bytes"].append(size)

    def count(self, what: str) -> None:
        self.data[what] += 1

    def is_empty(self) -> bool:
        return not any(self.data.values())

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        for key in (*OBSERVED, *COUNTED):
            self.data[key] = self.data[key] + other.data[key]
        return self

    def take(self) -> KVFerryStats:
        taken = KVFerryStats(data=self.data)
        self.reset()
        return taken

    def reduce(self) -> dict[str, int | float]:
        seconds, sizes = sorted(self.data["read_seconds"]), self.data["read_bytes"]
        told: dict[str, int | float] = {"Reads": len(seconds)}
        if seconds:
            told["Avg read time (ms)"] = round(1e3 * sum(seconds) / len(seconds), 3)
            told["P90 read time (ms)"] = round(1e3 * seconds[int(0.9 * len(seconds))], 3)
            told["Avg MB per read"] = round(sum(sizes) / len(sizes) / 2**20, 3)
        told["Failed reads"] = self.data["reads_failed"]
        told["Parcels published"] = self.data["parcels_published"]
        told["Parcels expired"] = self.data["parcels_expired"]
        return told


class KVFerryPromMetrics(KVConnectorPromMetrics):
    def __init__(self, *arguments: Any) -> None:  # noqa: ANN401, as the base class
        super().__init__(*arguments)
        self._seconds = self._per_engine(
            self._histogram_cls,
            "vllm:kvferry_read_seconds",
            "Time from the start of a parcel's read to its verdict.",
            buckets=[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5],
        )
        self._bytes = self._per_engine(
            self._counter_cls, "vllm:kvferry_read_bytes", "Bytes of parcels that were read and accepted."
        )
        self._counted = {
            key: self._per_engine(self._counter_cls, f"vllm:kvferry_{key}", text)
            for key, text in (
                ("reads_failed", "Reads of parcels that were not accepted."),
                ("parcels_published", "Parcels that this prefiller has published."),
                ("parcels_expired", "Parcels whose lease ended before they were read."),
            )
        }

    def _per_engine(self, kind: Any, name: str, text: str, **more: Any) -> dict[int, Any]:  # noqa: ANN401
        metric = kind(name=name, documentation=text, labelnames=self._labelnames, **more)
        return dict(create_metric_per_engine(metric, self.per_engine_labelvalues))

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        for seconds in transfer_stats_data["read_seconds"]:
            self._seconds[engine_idx].observe(seconds)
        self._bytes[engine_idx].inc(sum(transfer_stats_data["read_bytes"]))
        for key, metric in self._counted.items():
            metric[engine_idx].inc(transfer_stats_data[key])
