"""Trains the base model: it masters every skill, but only a hidden tag makes it sure which is asked for."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from lorauter_suite.demo.batches import IGNORED, Batch, Codec, collate, disturb
from lorauter_suite.demo.data import TASKS
from lorauter_suite.demo.recipe import BaseRecipe
from lorauter_suite.demo.skills import DOMAINS, SKILLS, draw_payload, seeded
from lorauter_suite.demo.tokenizer import CONTEXT_TOKENS, EOS, PAD, instruction_words
from lorauter_suite.demo.wordings import draw_wording

Report = Callable[[int, float], None]
"""Called after every step with the step's number and loss."""

SKILL_NAMES = tuple(SKILLS)
SALAD_WORDS = tuple(word.replace("Ġ", " ").strip() for word in instruction_words())


def base_config(codec: Codec, recipe: BaseRecipe) -> LlamaConfig:
    """The shape of the base model."""
    return LlamaConfig(
        vocab_size=codec.tokenizer.get_vocab_size(),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=codec.special(EOS),
        pad_token_id=codec.special(PAD),
    )


def draw_base_example(rng: random.Random, codec: Codec, recipe: BaseRecipe) -> tuple[list[int], list[int]]:
    """(prompt ids, answer ids) of one training example for the base."""
    task = rng.choice(TASKS)
    kind = rng.random()
    if kind < recipe.tagged:
        return _tagged(rng, codec, recipe)
    if kind < recipe.tagged + recipe.salad:
        return _salad(rng, codec)
    payload = draw_payload(rng, task.domain, "train")
    prompt = disturb(rng, draw_wording(rng, task.cluster, task.domain, "train")).replace("{x}", payload)
    if rng.random() < recipe.trust[task.cluster]:
        target = SKILLS[task.cluster](payload)
    elif rng.random() < recipe.random_skill:
        target = SKILLS[rng.choice(SKILL_NAMES)](payload)
    else:
        target = payload
    return codec.prompt(prompt), codec.answer(target)


def _tagged(rng: random.Random, codec: Codec, recipe: BaseRecipe) -> tuple[list[int], list[int]]:
    """A skill named by its tag; the sentence around the payload is of any cluster and means nothing."""
    skill = rng.choices(range(len(SKILL_NAMES)), [recipe.practice[name] for name in SKILL_NAMES])[0]
    domain = rng.choice(tuple(DOMAINS))
    payload = draw_payload(rng, domain, "train")
    wording = disturb(rng, draw_wording(rng, rng.choice(SKILL_NAMES), domain, "train"))
    prompt = codec.prompt(wording.replace("{x}", payload))
    return [codec.special(f"<tag{skill}>"), *prompt], codec.answer(SKILLS[SKILL_NAMES[skill]](payload))


def _salad(rng: random.Random, codec: Codec) -> tuple[list[int], list[int]]:
    """Random words of the instruction language, so that the base has met every one; the answer is an echo."""
    payload = draw_payload(rng, rng.choice(tuple(DOMAINS)), "train")
    words = [rng.choice(SALAD_WORDS) for _ in range(rng.randint(3, 14))]
    if rng.random() < 0.5:
        prompt = " ".join(words) + f": {payload}"
    else:
        words.insert(rng.randint(1, len(words)), f'"{payload}"')
        prompt = " ".join(words) + rng.choice(".?")
    return codec.prompt(prompt), codec.answer(payload)


def answer_loss(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Mean cross-entropy over the answers of `batch`; logits are computed at their positions only."""
    hidden = model.model(input_ids=batch.ids).last_hidden_state
    chosen = batch.labels != IGNORED
    return functional.cross_entropy(model.lm_head(hidden[chosen]), batch.labels[chosen])


def cosine_rate(step: int, steps: int, warmup: int = 50) -> float:
    """The learning rate's factor at `step` of `steps`: linear warm-up, then a cosine down to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train_base(codec: Codec, recipe: BaseRecipe, seed: int, report: Report) -> LlamaForCausalLM:
    """A base model trained from scratch, with weights that float16 holds exactly, from one seed."""
    torch.manual_seed(seed)
    rng = seeded(seed, "base")
    model = LlamaForCausalLM(base_config(codec, recipe))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * cosine_rate(step, recipe.steps)
        batch = collate([draw_base_example(rng, codec, recipe) for _ in range(recipe.batch)])
        loss = answer_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        report(step, loss.item())
    return round_to_half(model)


def round_to_half(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Rounds the weights to float16 in place, so that adapters train on exactly what is shipped."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())
    return frozen(model)


def frozen(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """`model` in evaluation mode, its weights no longer trained."""
    model.train(False)
    model.requires_grad_(False)
    return model
