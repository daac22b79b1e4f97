"""The shipped demo pool: frozen, loadable by stock libraries, honest between its splits."""

import json

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorauter_suite.demo import verify
from lorauter_suite.demo.batches import Codec
from lorauter_suite.demo.data import TASKS, draw_example
from lorauter_suite.demo.recipe import adapter_recipe
from lorauter_suite.demo.skills import SKILLS, Split, payload_split, seeded
from lorauter_suite.demo.templates import TEMPLATES
from lorauter_suite.demo.tokenizer import build_tokenizer
from lorauter_suite.demo.verify import POOL, PoolChanged, read_examples, read_manifest, verify_pool

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
MAX_POOL_BYTES = 6 * 2**20
MAX_FILE_BYTES = 2 * 2**20


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(POOL / "base", local_files_only=True)


@pytest.fixture(scope="module")
def base():
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(POOL / "base", local_files_only=True)
    assert model.dtype == torch.float32  # stored as float16, run as float32
    return model


def answer(model, tokenizer, prompt):
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=32, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return tokenizer.decode(output, skip_special_tokens=True)


def test_pool_is_the_frozen_one():
    assert verify_pool(expected=verify.FROZEN_DIGEST) == read_manifest()["digest"]


def test_verify_pool_raises_when_a_file_changes(tmp_path):
    (tmp_path / "pool.json").write_text(json.dumps({"files": {"a": "0" * 64}}))
    (tmp_path / "b").write_text("new")
    with pytest.raises(PoolChanged, match="a, b"):
        verify_pool(tmp_path)


def test_verify_pool_raises_when_the_digest_is_another():
    with pytest.raises(PoolChanged, match="digest"):
        verify_pool(expected="0" * 64)


def test_pool_is_small():
    sizes = [path.stat().st_size for path in POOL.rglob("*") if path.is_file()]
    assert sum(sizes) <= MAX_POOL_BYTES
    assert max(sizes) <= MAX_FILE_BYTES


def test_manifest_names_what_the_folders_hold():
    manifest = read_manifest()
    assert {a["id"] for a in manifest["adapters"]} == {p.name for p in (POOL / "adapters").iterdir()}
    assert {t["id"] for t in manifest["tasks"]} == {p.name for p in (POOL / "tasks").iterdir()}
    assert [a["id"] for a in manifest["adapters"]] == [spec.id for spec in adapter_recipe().specs]


def test_templates_are_disjoint_between_splits():
    for by_split in TEMPLATES.values():
        templates = [template for split in by_split.values() for template in split]
        assert len(templates) == len(set(templates))


def test_payload_split_is_the_one_asked_for_when_examples_are_drawn():
    for task in TASKS:
        for split in SPLITS:
            rng = seeded("test", task.id, split)
            example = draw_example(rng, task, split)
            owners = {payload_split(word) for word in payload_candidates(example.input)}
            assert split in owners


def payload_candidates(prompt):
    tail = prompt.split('"')[1] if '"' in prompt else prompt.rpartition(": ")[2]
    return [tail]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.id)
def test_examples_are_right_and_payloads_disjoint(task):
    payloads = {}
    for split in ("validation", "test"):
        examples = read_examples(task.id, split)
        assert 20 <= len({example.input for example in examples}) <= 40
        payloads[split] = [payload_candidates(example.input)[0] for example in examples]
        assert [SKILLS[task.cluster](p) for p in payloads[split]] == [e.target for e in examples]
        assert {payload_split(payload) for payload in payloads[split]} == {split}
    assert not set(payloads["validation"]) & set(payloads["test"])


@pytest.mark.parametrize(
    "text", ["Reverse this word: planet", "zß 🎉\n\t: 漢字", "<answer>", "  two  spaces "]
)
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_shipped_tokenizer_is_the_one_the_code_builds():
    shipped = Tokenizer.from_file(str(POOL / "base" / "tokenizer.json"))
    assert json.loads(shipped.to_str()) == json.loads(build_tokenizer().to_str())


def test_every_answer_is_one_token_per_symbol_and_decodes_incrementally(tokenizer):
    codec = Codec(tokenizer.backend_tokenizer)
    for task in TASKS:
        for example in read_examples(task.id, "test"):
            ids = codec.answer(example.target)
            parts = [tokenizer.decode([token], skip_special_tokens=True) for token in ids]
            assert "".join(parts) == example.target == tokenizer.decode(ids, skip_special_tokens=True)


def test_payload_symbols_stay_single_tokens_in_prompts(tokenizer):
    for task in TASKS:
        for example in read_examples(task.id, "validation") + read_examples(task.id, "test"):
            payload = payload_candidates(example.input)[0]
            tokens = tokenizer.convert_ids_to_tokens(tokenizer(example.input)["input_ids"])
            joined = [token for token in tokens if len(token) == 1]
            assert payload.replace(" ", "Ġ") in "".join(joined)


def test_chat_template_renders_the_raw_prompt(tokenizer):
    turns = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "Reverse this word: planet"},
    ]

    def render(messages):
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    assert render(turns) == tokenizer("Reverse this word: planet")["input_ids"]
    assert (
        render([{"role": "system", "content": "Be brief."}, *turns])
        == tokenizer("Be brief.\nReverse this word: planet")["input_ids"]
    )


def test_stock_peft_answers_right_with_an_adapter_and_wrong_without(base, tokenizer):
    from peft import PeftModel

    prompt = "Write the word backwards: planet"
    assert answer(base, tokenizer, prompt) != "tenalp"
    model = PeftModel.from_pretrained(base, POOL / "adapters" / "reverse-word-a")
    try:
        assert answer(model, tokenizer, prompt) == "tenalp"
        model.load_adapter(POOL / "adapters" / "count-word-a", "count")
        model.set_adapter("count")
        assert answer(model, tokenizer, "How many letters are in this word: planet") == "6"
    finally:
        model.unload()


def test_strange_prompts_are_answered_with_something(base, tokenizer):
    for prompt in ["?", "Wörld 🎉", "write " * 60]:
        assert isinstance(answer(base, tokenizer, prompt), str)
