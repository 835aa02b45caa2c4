"""Prometheus' text format, as far as the servers here speak it."""

import re
from dataclasses import dataclass, field

SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass
class Sample:
    name: str
    labels: dict[str, str]
    value: float


@dataclass
class Page:
    samples: list[Sample] = field(default_factory=list)

    @staticmethod
    def parse(text: str) -> "Page":
        page = Page()
        for line in text.splitlines():
            found = SAMPLE.match(line)
            if found and not line.startswith("#"):
                labels = dict(LABEL.findall(found.group(2) or ""))
                page.samples.append(Sample(found.group(1), labels, float(found.group(3))))
        return page

    def find(self, name: str, **labels: str) -> list[Sample]:
        return [
            sample
            for sample in self.samples
            if sample.name == name and all(sample.labels.get(key) == value for key, value in labels.items())
        ]

    def total(self, name: str, **labels: str) -> float:
        return sum(sample.value for sample in self.find(name, **labels))

    def names(self) -> set[str]:
        return {sample.name for sample in self.samples}
