"""Which encoders are exported, and what holds when several processes do it, or the cache is not to be had."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from lorauter.encoder import (
    DEFAULT_ENCODER,
    OnnxEncoder,
    SentenceEncoder,
    encoder_directory,
    load_encoder,
    preload,
)
from lorauter.encoder.cache import cached_model, model_digest
from lorauter.encoder.files import is_plain_bert, most_tokens
from lorauter.errors import FailedPrecondition

ENCODE = """
import sys, numpy
from lorauter.encoder import load_encoder
numpy.save(sys.argv[2], load_encoder(sys.argv[1]).encode(["one text", "two texts"]))
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The directory of an untrained BERT with one layer, 32 wide, that reads 20 tokens."""
    folder = tmp_path_factory.mktemp("encoder") / "tiny"
    shutil.copytree(
        encoder_directory(DEFAULT_ENCODER), folder, ignore=shutil.ignore_patterns("*.safetensors")
    )
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(folder)
    edit(folder, "sentence_bert_config", max_seq_length=20)
    edit(folder, "1_Pooling/config", word_embedding_dimension=32)
    return folder


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
    """A cache that holds it."""
    home = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        preload(str(tiny))
    return home / "lorauter" / "encoders"


@pytest.fixture
def filled(exported, monkeypatch):
    """The same, in use."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(exported.parent.parent))
    return exported


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lorauter" / "encoders"


@pytest.fixture
def copy(tiny, tmp_path):
    """A copy of the tiny encoder that a test may change."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def edit(folder, name, **values):
    """Changes some values in a JSON file."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_directory_of_a_plain_bert_runs_on_onnx_with_the_vectors_of_sentence_transformers(tiny, filled):
    texts = ["", "one text", "a longer text than the other one", "שלום"]
    encoder, reference = load_encoder(str(tiny)), SentenceEncoder(tiny, 1)
    assert isinstance(encoder, OnnxEncoder)
    assert encoder.dimension == 32
    np.testing.assert_allclose(encoder.encode(texts), reference.encode(texts), atol=1e-5)
    assert [path.name for path in filled.rglob("*") if path.is_file()] == ["export.lock", "model.onnx"]


def test_new_and_old_files_of_sentence_transformers_are_told_alike(copy):
    assert is_plain_bert(copy)
    assert most_tokens(copy) == 20
    modules = json.loads((copy / "modules.json").read_text())
    for module, place in zip(
        modules, ("base.modules.transformer", "modules.pooling", "modules"), strict=True
    ):
        module["type"] = f"sentence_transformers.{place}.{module['type'].rpartition('.')[2]}"
    (copy / "modules.json").write_text(json.dumps(modules))
    (copy / "1_Pooling" / "config.json").write_text('{"embedding_dimension": 32, "pooling_mode": "mean"}')
    (copy / "sentence_bert_config.json").write_text('{"module_output_name": "token_embeddings"}')
    edit(copy, "tokenizer_config", model_max_length=30)
    assert is_plain_bert(copy)
    assert most_tokens(copy) == 30


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("config", {"model_type": "mpnet"}),
        ("config", {"is_decoder": True}),
        ("1_Pooling/config", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}),
        ("1_Pooling/config", {"pooling_mode_max_tokens": True}),
        ("1_Pooling/config", {"pooling_mode": "cls"}),
        ("sentence_bert_config", {"do_lower_case": True}),
        ("config_sentence_transformers", {"default_prompt_name": "query"}),
    ],
)
def test_encoder_stays_with_sentence_transformers_when_it_is_no_plain_bert(copy, name, values):
    edit(copy, name, **values)
    assert not is_plain_bert(copy)


@pytest.mark.parametrize("text", ["", "[1]", "{}", "[]", '[{"path": null, "type": null}]'])
def test_encoder_stays_with_sentence_transformers_when_its_modules_cannot_be_read(copy, text):
    (copy / "modules.json").write_text(text)
    assert not is_plain_bert(copy)


def test_other_encoder_is_loaded_but_not_in_int8(copy):
    edit(copy, "1_Pooling/config", pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)
    assert isinstance(load_encoder(str(copy)), SentenceEncoder)
    with pytest.raises(FailedPrecondition, match="LORAUTER_ENCODER_PRECISION") as caught:
        load_encoder(str(copy), precision="int8")
    assert caught.value.reason == "PRECISION_UNSUPPORTED"


def test_both_get_the_whole_file_when_two_processes_export_at_once(tiny, cache, tmp_path):
    command = [sys.executable, "-c", ENCODE, str(tiny)]
    processes = [subprocess.Popen([*command, str(tmp_path / f"{name}.npy")]) for name in ("a", "b")]
    assert [process.wait(100) for process in processes] == [0, 0]
    first, second = np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy")
    np.testing.assert_array_equal(first, second)
    assert len(list(cache.rglob("*.onnx"))) == 1


def test_encoder_is_exported_for_itself_when_the_cache_cannot_be_written(tiny, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    preload(str(tiny))
    encoder = load_encoder(str(tiny))
    np.testing.assert_allclose(np.linalg.norm(encoder.encode(["text"])), 1, atol=1e-5)
    assert "XDG_CACHE_HOME" in caplog.text
    assert list((tmp_path / "temporary").iterdir()) == []


def test_encoder_is_exported_once_when_it_is_loaded_again(tiny, filled):
    (model,) = filled.rglob("*.onnx")
    written = model.stat().st_mtime_ns
    load_encoder(str(tiny))
    assert cached_model(tiny, "fp32", model_digest(tiny, "fp32")) == model
    assert model.stat().st_mtime_ns == written


def test_loading_says_what_to_remove_when_the_cached_file_is_damaged(tiny, cache):
    folder = cache / model_digest(tiny, "fp32").removeprefix("sha256:")
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"half a file")
    with pytest.raises(FailedPrecondition, match=r"model\.onnx.*remove it") as caught:
        load_encoder(str(tiny))
    assert caught.value.reason == "ENCODER_CACHE_DAMAGED"


def test_loading_says_why_when_the_export_fails(copy, cache):
    next(copy.glob("*.safetensors")).write_bytes(b"no weights")
    with pytest.raises(FailedPrecondition, match="exporting") as caught:
        load_encoder(str(copy))
    assert caught.value.reason == "ENCODER_EXPORT_FAILED"
    assert list(cache.rglob("*.onnx")) == []


def test_command_fills_the_cache_and_says_where(tiny, cache):
    command = [sys.executable, "-m", "lorauter.encoder", str(tiny), "--precision", "int8"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
    assert Path(done.stdout.strip()) in cache.rglob("model.onnx")
