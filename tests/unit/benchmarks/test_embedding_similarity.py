"""Test the comparison of encoders as sentence embedders."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from benchmarks.analysis.embedding_similarity import embed, main
from tests.tiny import save_encoder

SENTENCES = ["the", "a longer text about the encoder", "the file has two lines", "the model of the student reads text"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return [save_encoder(family, tmp_path_factory.mktemp(family)) for family in ("bert", "mpnet")]


def test_an_embedding_is_the_mean_over_the_sentence_alone(folders):
    for folder in map(str, folders):
        model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
        for sentence, embedded in zip(SENTENCES, embed(SENTENCES, folder, 128), strict=True):
            with torch.no_grad():
                mean = model(**tokenizer(sentence, return_tensors="pt")).last_hidden_state[0].mean(0)
            np.testing.assert_allclose(embedded, mean / mean.norm(), atol=1e-5)


def test_a_model_is_as_good_as_itself(folders, tmp_path, monkeypatch, capsys):
    (tmp_path / "stsb").mkdir()
    rows = [
        {"sentence1": first, "sentence2": second, "label": 5.0 if first == second else len(first) % 3}
        for first in SENTENCES
        for second in SENTENCES
    ]
    (tmp_path / "stsb" / "validation.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["--models", str(folders[0]), str(folders[1]), "--data", str(tmp_path / "stsb")]
    monkeypatch.setattr("sys.argv", ["embedding_similarity", *words])
    assert main() == 0
    [first, second] = json.loads(capsys.readouterr().out.splitlines()[-1])["models"]
    assert first["difference"] == [0, 0, 0] and first["share"] == [100, 100, 100]
    assert second["difference"][0] == pytest.approx(second["pearson"][0] - first["pearson"][0])
    assert second["difference"][1] < second["difference"][0] < second["difference"][2]
