"""Turns templates into the wordings of a domain: nouns and openers in place, the payload still open."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from lorauter_suite.demo.skills import Split
from lorauter_suite.demo.templates import TEMPLATES


class Noun(NamedTuple):
    """What one domain's payloads are called."""

    things: tuple[str, ...]
    units: str
    unit: str


NOUNS: Mapping[str, Noun] = {
    "word": Noun(("word", "English word", "dictionary word"), "letters", "letter"),
    "number": Noun(("number", "telephone number", "long number"), "digits", "digit"),
    "code": Noun(("product code", "serial code", "stock code"), "characters", "character"),
    "name": Noun(("full name", "name of a person", "first and last name"), "letters", "letter"),
}
"""Nouns by payload domain."""

STATEMENT_OPENERS = ("", "", "", "Please ", "Now ", "Could you ", "Hello, ")
QUESTION_OPENERS = ("", "", "", "Hello, ", "One question, ")


def lower_first(sentence: str) -> str:
    """`sentence` with a small first letter, to follow an opener."""
    return sentence[0].lower() + sentence[1:]


def openers(template: str) -> tuple[str, ...]:
    """The openers that go with `template`."""
    return QUESTION_OPENERS if template.endswith("?") else STATEMENT_OPENERS


def with_opener(opener: str, template: str) -> str:
    """`template` behind `opener` (which may be empty)."""
    return opener + lower_first(template) if opener else template


def draw_wording(
    rng: random.Random, cluster: str, domain: str, split: Split, thing: str | None = None
) -> str:
    """A sentence of `split` that asks for the skill of `cluster`, with `{x}` where the payload goes."""
    template = rng.choice(TEMPLATES[cluster][split])
    noun = NOUNS[domain]
    sentence = with_opener(rng.choice(openers(template)), template)
    return fill_nouns(sentence, thing or rng.choice(noun.things), noun)


def fill_nouns(sentence: str, thing: str, noun: Noun) -> str:
    """`sentence` with its nouns in place and the payload still open."""
    return sentence.replace("{t}", thing).replace("{u}", noun.units).replace("{n}", noun.unit)


def all_wordings() -> Iterator[str]:
    """One sentence for every template, domain, thing and opener: the whole instruction language."""
    for by_split in TEMPLATES.values():
        for templates in by_split.values():
            for template in templates:
                for noun in NOUNS.values():
                    for thing in noun.things:
                        for opener in openers(template):
                            yield fill_nouns(with_opener(opener, template), thing, noun)
