"""The demo tasks, and their examples drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import NamedTuple

from lorauter_suite.demo.skills import SKILLS, Split, draw_payload, seeded
from lorauter_suite.demo.wordings import draw_wording

CLUSTER_DOMAINS: Mapping[str, tuple[str, ...]] = {
    "reverse": ("word", "number", "code"),
    "sort": ("word", "number", "code"),
    "shift": ("word", "number", "code"),
    "upper": ("word", "name", "code"),
    "double": ("word", "number", "code"),
    "count": ("word", "number", "code"),
    "vowels": ("word", "name", "code"),
    "dash": ("word", "number", "code"),
}
"""Which payload domains each cluster has a task for."""

SUMMARIES: Mapping[str, str] = {
    "reverse": "Writes a {domain} backwards.",
    "sort": "Sorts the symbols of a {domain} in ascending order.",
    "shift": "Replaces every symbol of a {domain} by the next one.",
    "upper": "Writes a {domain} in capital letters.",
    "double": "Writes every symbol of a {domain} twice.",
    "count": "Counts the symbols of a {domain}.",
    "vowels": "Removes the vowels from a {domain}.",
    "dash": "Puts dashes between the symbols of a {domain}.",
}


class Task(NamedTuple):
    """One skill on one payload domain."""

    cluster: str
    domain: str

    @property
    def id(self) -> str:
        """The task's public id, such as `reverse-word`."""
        return f"{self.cluster}-{self.domain}"

    @property
    def description(self) -> str:
        """One sentence for people."""
        return SUMMARIES[self.cluster].format(domain=self.domain)


class Example(NamedTuple):
    """A prompt (the whole model input) and its right answer."""

    input: str
    target: str


TASKS: tuple[Task, ...] = tuple(
    Task(cluster, domain) for cluster, domains in CLUSTER_DOMAINS.items() for domain in domains
)
"""All tasks, cluster by cluster."""


def draw_example(rng: random.Random, task: Task, split: Split) -> Example:
    """A fresh example of `task` whose wording and payload both belong to `split`."""
    payload = draw_payload(rng, task.domain, split)
    prompt = draw_wording(rng, task.cluster, task.domain, split).replace("{x}", payload)
    return Example(prompt, SKILLS[task.cluster](payload))


def task_examples(task: Task, split: Split, count: int, seed: int) -> list[Example]:
    """`count` examples of `task` with distinct inputs, the same for the same seed."""
    rng = seeded(seed, task.id, split)
    examples: dict[str, Example] = {}
    while len(examples) < count:
        example = draw_example(rng, task, split)
        examples.setdefault(example.input, example)
    return list(examples.values())
