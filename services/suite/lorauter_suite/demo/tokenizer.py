"""The demo tokenizer: instruction words are single tokens and all else is bytes, so no text is unknown."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from lorauter_suite.demo.wordings import all_wordings

PAD, EOS, ANSWER = "<pad>", "</s>", "<answer>"
SPECIALS = (PAD, EOS, ANSWER)
"""ANSWER ends every prompt, so that what follows is the target; being special it vanishes from text."""
TAG_COUNT = 8
"""Hidden skill tags: only the base's training uses them, and no text is ever split into one."""
CONTEXT_TOKENS = 512
WORD_PATTERN = r" ?\p{L}+(?![\p{L}\p{N}])|\p{L}+|[^\p{L}]"
"""A word may be one token only where no digit follows, so the letters of a code stay single symbols."""

CHAT_TEMPLATE = (
    "{%- set turn = namespace(system='', user='') -%}"
    "{%- for message in messages -%}"
    "{%- if message['content'] is string -%}{%- set text = message['content'] -%}"
    "{%- else -%}{%- set text = message['content'] | map(attribute='text') | join('') -%}{%- endif -%}"
    "{%- if message['role'] == 'system' -%}{%- set turn.system = text + '\\n' -%}"
    "{%- elif message['role'] == 'user' -%}{%- set turn.user = text -%}{%- endif -%}"
    "{%- endfor -%}"
    "{{- turn.system + turn.user -}}"
    "{%- if add_generation_prompt -%}" + ANSWER + "{%- endif -%}"
)
"""Renders the last user message as the raw prompt, behind the system text if there is any."""


def instruction_words() -> list[str]:
    """The words of the instruction language as sentences hold them, sorted; Ġ marks a leading space."""
    words: set[str] = set()
    for sentence in all_wordings():
        plain = sentence.replace("{x}", "0")
        words.update(match.replace(" ", "Ġ") for match in re.findall(r" ?[A-Za-z]+", plain))
    return sorted(word for word in words if len(word) > 1)


def build_tokenizer() -> Tokenizer:
    """A byte-level tokenizer without merges, whose vocabulary also holds the instruction words whole."""
    names = [*SPECIALS, *(f"<tag{i}>" for i in range(TAG_COUNT))]
    names += sorted(pre_tokenizers.ByteLevel.alphabet()) + instruction_words()
    vocabulary = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    answer = (ANSWER, tokenizer.token_to_id(ANSWER))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {ANSWER}", special_tokens=[answer])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json as AutoTokenizer reads them."""
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT_TOKENS,
        "eos_token": EOS,
        "pad_token": PAD,
        "additional_special_tokens": [ANSWER],
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
