"""docs/grafana.json, docs/alerts.yml and the tables of the docs name only metrics that servers really export."""

import json
import re
import unittest
from pathlib import Path

from fixture import ChainTest, body

from chain.client import ask
from chain.metrics import Page

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
        unknown = named - await self.exported()
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


if __name__ == "__main__":
    unittest.main()
