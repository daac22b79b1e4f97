"""What identifies an encoder, and what importing and loading it costs."""

import re
import subprocess
import sys

import numpy as np
import pytest

from lorauter.encoder import DEFAULT_ENCODER, encoder_directory, files_digest, load_encoder
from lorauter.encoder.cache import model_digest
from lorauter.errors import FailedPrecondition

HEAVY = "('torch', 'transformers', 'sentence_transformers', 'onnx', 'onnxruntime')"


def loaded_after(code):
    """Returns which heavy libraries a new process has imported after running ``code``."""
    code = f"import sys; {code}; print(*(m for m in {HEAVY} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_importing_the_encoder_imports_no_library_when_nothing_is_loaded():
    assert loaded_after("import lorauter.encoder") == []


def test_default_encoder_needs_no_torch_when_it_was_exported_before(encoder):
    load = "from lorauter.encoder import load_encoder, preload; preload('all-minilm-l6-v2'); "
    assert loaded_after(load + "load_encoder('all-minilm-l6-v2').encode(['text'])") == ["onnxruntime"]


def test_vectors_are_unit_and_alike_for_like_texts_when_encoded(encoder):
    texts = ["Reverse the word.", "Write the word backwards.", "What is the capital of France?"]
    vectors = encoder.encode(texts)
    assert (vectors.shape, vectors.dtype) == ((3, encoder.dimension), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert encoder.encode([]).shape == (0, encoder.dimension)


def test_vectors_do_not_depend_on_their_company_when_encoded(encoder):
    alone = encoder.encode(["short"])
    together = encoder.encode(["short", "a much longer text that pads the batch " * 5])
    np.testing.assert_allclose(alone[0], together[0], atol=1e-5)


def test_digest_is_of_files_and_pipeline_when_the_encoder_is_the_default(encoder):
    directory = encoder_directory(DEFAULT_ENCODER)
    assert encoder.digest == model_digest(directory, "fp32")
    assert re.fullmatch("sha256:[0-9a-f]{64}", encoder.digest)
    assert len({encoder.digest, files_digest(directory), model_digest(directory, "int8")}) == 3


def test_digest_changes_when_weights_or_pooling_do(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "1_Pooling").mkdir()
    pooling = tmp_path / "1_Pooling" / "config.json"
    pooling.write_text("{}")
    digests = [files_digest(tmp_path)]
    (tmp_path / "README.md").write_text("does not count")
    assert files_digest(tmp_path) == digests[0]
    pooling.write_text('{"mode": "max"}')
    digests.append(files_digest(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"other")
    digests.append(files_digest(tmp_path))
    assert len(set(digests)) == 3


def test_loading_says_what_to_do_when_there_is_no_such_encoder(tmp_path):
    with pytest.raises(FailedPrecondition, match="hf download") as caught:
        load_encoder("nobody/nothing")
    assert caught.value.reason == "ENCODER_NOT_FOUND"
    with pytest.raises(FailedPrecondition) as caught:
        load_encoder(str(tmp_path))
    assert caught.value.reason == "ENCODER_INVALID"
