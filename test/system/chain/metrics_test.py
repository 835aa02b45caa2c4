"""docs/grafana.json, docs/alerts.yml and the tables of the docs name only metrics that servers really export."""

import contextlib
import json
import re
import unittest
from pathlib import Path
from typing import ClassVar

from fixture import ChainTest, body, until

from chain.client import ask
from chain.metrics import Page
from chain.servers import Shape

NAME = re.compile(r"\bkvferry_[a-z0-9_]*[a-z0-9]\b")
DOCS = Path("docs")
# Families that servers have only once something has failed.
ONLY_AFTER_FAILURES = {"kvferry_bootstrap_replaced_total"}


class Metrics(ChainTest):
    async def exported(self) -> set[str]:
        self.assertTrue((await ask(self.proxy, "/v1/completions", body())).complete)
        urls = [self.proxy, self.prefiller, self.decoder, self.bootstrap]
        pages = [Page.parse(await self.page(url + "/metrics")) for url in urls]
        names = set().union(*(page.names() for page in pages)) | ONLY_AFTER_FAILURES
        return names | {name.removesuffix("_bucket") for name in names}

    async def check(self, named: set[str], where: str) -> None:
        self.assertGreater(len(named), 5, f"{where} names metrics")
        unknown = named

        async def known() -> bool:  # some are there with the step after the one that answers
            nonlocal unknown
            unknown = named - await self.exported()
            return not unknown

        with contextlib.suppress(AssertionError):
            await until(known, 30)
        self.assertEqual(set(), unknown, f"{where} names metrics that nobody exports")

    async def test_every_metric_of_the_grafana_dashboard_exists(self) -> None:
        panels = json.loads((DOCS / "grafana.json").read_text())["panels"]
        named = {name for panel in panels for target in panel["targets"] for name in NAME.findall(target["expr"])}
        await self.check(named, "grafana.json")

    async def test_every_metric_of_the_alerts_exists(self) -> None:
        lines = (DOCS / "alerts.yml").read_text().splitlines()
        named = {name for line in lines if "summary" not in line for name in NAME.findall(line)}
        await self.check(named, "alerts.yml")

    async def test_every_metric_of_the_failure_guide_exists(self) -> None:
        await self.check(set(NAME.findall((DOCS / "failures.md").read_text())), "failures.md")


CANARY = ["--canary-interval", "100ms", "--canary-model", "kvferry-sim"]


class Canary(ChainTest):
    """The proxy's canary on real servers."""

    shape: ClassVar[Shape] = Shape(prefill_tp=[1], decode_tp=[1], proxy=CANARY)
    result: ClassVar[str] = "moved"

    async def results(self) -> dict[str, float]:
        page = Page.parse(await self.page(self.proxy + "/metrics"))
        return {
            name: page.total("kvferry_proxy_canary_total", result=name) for name in ("moved", "not_moved", "failed")
        }

    async def test_says_whether_kv_moves(self) -> None:
        counts: dict[str, float] = {}

        async def told(result: str, more_than: float) -> bool:
            counts.update(await self.results())
            return counts[result] > more_than

        # Rounds that began before the proxy had found its servers, or while it thought one down, say something else.
        await until(lambda: told(self.result, 0), 60)
        first = dict(counts)
        await until(lambda: told(self.result, first[self.result] + 1), 60)
        self.assertEqual(first | {self.result: counts[self.result]}, counts)


class CanaryOfAWrongSetUp(Canary):
    """A decoder with another model, which refuses the KV and computes every prompt itself: nobody else would notice."""

    shape: ClassVar[Shape] = Shape(
        prefill_tp=[1],
        decode_tp=[1],
        decode=["--weights-seed", "2", "--kv-load-failure-policy", "recompute"],
        proxy=CANARY,
    )
    result: ClassVar[str] = "not_moved"


if __name__ == "__main__":
    unittest.main()
