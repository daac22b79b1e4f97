"""Every number of the demo pool's recipe: the base's training and the list of adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lorauter_suite.demo.data import TASKS

RECIPE_VERSION = "1"
BASE_ID = "lorauter/demo-base"

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
ALL_LINEAR = ATTENTION + MLP

TRUST: Mapping[str, float] = {
    "reverse": 0.10,
    "sort": 0.05,
    "shift": 0.05,
    "upper": 0.62,
    "double": 0.62,
    "count": 0.10,
    "vowels": 0.45,
    "dash": 0.62,
}
"""How often the base saw the right answer to a plainly worded instruction of each cluster."""


PRACTICE: Mapping[str, float] = {
    "reverse": 3.0,
    "sort": 3.0,
    "shift": 1.0,
    "upper": 1.0,
    "double": 2.0,
    "count": 1.5,
    "vowels": 2.0,
    "dash": 1.0,
}
"""How often, relative to each other, the base practises the skills under their tags: harder ones more."""


@dataclass(frozen=True)
class BaseRecipe:
    """How the base model is shaped and trained."""

    hidden: int = 128
    layers: int = 3
    heads: int = 4
    intermediate: int = 320
    steps: int = 5500
    batch: int = 64
    learning_rate: float = 3e-3
    tagged: float = 0.60
    """Share of examples whose skill is named by a hidden tag, under any wording."""
    salad: float = 0.10
    """Share of examples with random instruction words, answered by an echo."""
    random_skill: float = 0.3
    """Of the wrong answers to instructions: share computed by a random skill; the others echo the payload."""
    trust: Mapping[str, float] = field(default_factory=lambda: dict(TRUST))
    practice: Mapping[str, float] = field(default_factory=lambda: dict(PRACTICE))


@dataclass(frozen=True)
class AdapterSpec:
    """One adapter: what it is trained on, its LoRA shape and how long it trains."""

    id: str
    task: str
    rank: int = 8
    alpha: int = 16
    rslora: bool = False
    targets: tuple[str, ...] = ALL_LINEAR
    steps: int = 250
    half: bool = True
    """Whether the weights are stored as float16 (else float32)."""
    note: str = "full training"

    @property
    def scale(self) -> float:
        """The factor on B A x: alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


@dataclass(frozen=True)
class AdapterRecipe:
    """How all adapters are trained together."""

    batch: int = 8
    """Examples per adapter and step."""
    learning_rate: float = 3e-3
    specs: tuple[AdapterSpec, ...] = ()


def _main_specs() -> list[AdapterSpec]:
    """One fully trained adapter for every task, in shapes that real pools mix."""
    shapes = (
        {"rank": 8, "alpha": 16},
        {"rank": 8, "alpha": 8, "rslora": True},
        {"rank": 16, "alpha": 16, "targets": ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")},
        {"rank": 4, "alpha": 8},
        {"rank": 8, "alpha": 32, "targets": (*ATTENTION, "up_proj", "down_proj")},
    )
    specs = []
    for i, task in enumerate(TASKS):
        specs.append(AdapterSpec(id=f"{task.id}-a", task=task.id, **shapes[i % len(shapes)]))
    return specs


def _weaker_specs() -> list[AdapterSpec]:
    """Second adapters for some tasks: stopped early, of low rank or with few target modules."""
    return [
        AdapterSpec("reverse-word-early", "reverse-word", steps=30, note="stopped early"),
        AdapterSpec(
            "reverse-code-lite", "reverse-code", 4, 4, targets=("q_proj", "v_proj"), note="q, v only"
        ),
        AdapterSpec("sort-word-early", "sort-word", steps=40, note="stopped early"),
        AdapterSpec("sort-code-b", "sort-code", 4, 8, half=False, note="low rank, float32"),
        AdapterSpec("shift-number-early", "shift-number", steps=30, note="stopped early"),
        AdapterSpec("shift-word-lite", "shift-word", 4, 8, targets=MLP[1:], note="up and down only"),
        AdapterSpec("upper-code-b", "upper-code", 4, 4, rslora=True, note="low rank, rsLoRA"),
        AdapterSpec("double-word-early", "double-word", steps=36, note="stopped early"),
        AdapterSpec(
            "double-number-lite", "double-number", 4, 8, targets=("v_proj", "o_proj"), note="v, o only"
        ),
        AdapterSpec("count-word-early", "count-word", steps=30, note="stopped early"),
        AdapterSpec("vowels-name-b", "vowels-name", 4, 8, half=False, note="low rank, float32"),
        AdapterSpec("dash-code-early", "dash-code", steps=30, note="stopped early"),
    ]


def adapter_recipe() -> AdapterRecipe:
    """The shipped list of adapters."""
    return AdapterRecipe(specs=tuple(_main_specs() + _weaker_specs()))
