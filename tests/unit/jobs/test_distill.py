"""Test what a student with factors is fitted to: real text, of whatever lengths its sequences have."""

import numpy as np
import pytest
import torch

from ds_distill.data.dataset import TokenDataset
from ds_distill.data.run_data import prepare_tokens
from ds_distill.data.tokenizer import load_tokenizer
from ds_distill.exporters.parity import SAMPLE
from ds_distill.jobs.distill import _describe_text
from ds_distill.models.loading import load_masked_lm
from ds_distill.models.student import build_student
from ds_distill.recipe import Data, Recipe
from tests.tiny import save_encoder

SENTENCES = [part for line in SAMPLE.read_text().splitlines() for part in line.split(". ") if part.strip()]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_encoder("bert", tmp_path_factory.mktemp("bert"))


def describe(bert, folder, mode, texts, length=64):
    (folder / "text.txt").write_text("\n\n".join(texts))
    recipe = Recipe(data=Data(mode=mode, sequence_length=length, heldout_fraction=0.0, workers=1))
    prepare_tokens([str(folder / "text.txt")], load_tokenizer(bert), folder / "tokens", recipe)
    store = TokenDataset.open(folder / "tokens")
    return store, _describe_text(store, folder / "tokens", recipe)[1]


@pytest.mark.parametrize(
    ("mode", "texts"),
    [("lines", SENTENCES), ("lines", SENTENCES[:1]), ("packed", SENTENCES[:1]), ("packed", SENTENCES)],
)
def test_the_sample_is_of_the_sequences_of_the_text(bert, tmp_path, mode, texts):
    store, sample = describe(bert, tmp_path, mode, texts)
    mask = load_tokenizer(bert).mask_token_id
    rows = [store.sequence(index).astype("int64") for index in range(len(store))]
    taken = [ids for part in sample for ids in part.numpy()]
    assert taken, "a text has a sample"
    for ids in taken:
        shown = ids != mask
        assert any(len(row) == len(ids) and np.array_equal(row[shown], ids[shown]) for row in rows)
    if mode == "lines":
        assert len(taken) == len(rows)
    elif len(texts) > 1:
        assert {len(ids) for ids in taken} == {64}, "the rest of packed text is left out"


@pytest.mark.parametrize("mode", ["lines", "packed"])
def test_the_sample_is_drawn_from_all_of_the_text(bert, tmp_path, mode):
    """A corpus is often of several kinds of text, one after the other."""
    first, last = (" ".join([word] * 12) for word in ("the", "and"))
    _, sample = describe(bert, tmp_path, mode, [first] * 3000 + [last] * 3000)
    tokenizer = load_tokenizer(bert)
    count = torch.cat([ids.flatten() for ids in sample]).bincount(minlength=len(tokenizer))
    the, and_ = (count[tokenizer.convert_tokens_to_ids(word)].item() for word in ("the", "and"))
    assert count.sum() < 9000 and 0.7 < the / and_ < 1.4


def test_factors_of_short_lines_are_fitted_to_them(bert, tmp_path, capsys):
    _, sample = describe(bert, tmp_path, "lines", SENTENCES)
    teacher = load_masked_lm(str(bert))
    ids = max(sample, key=torch.numel)
    errors = []
    for given in (sample, None):
        student = build_student(teacher, init_layers=[0, 1], linear_rank=8, sample=given, family="bert", dropout=0.0)
        with torch.no_grad():
            difference = student.eval().bert(ids).last_hidden_state - teacher.bert(ids).last_hidden_state
        errors.append(difference.square().mean())
    assert errors[0] < 0.9 * errors[1]
    first, second = [line for line in capsys.readouterr().err.splitlines() if "factors of rank 8" in line]
    assert "isotropic inputs" in second and "isotropic" not in first


def test_a_narrow_embedding_head_is_fitted_to_short_lines(bert, tmp_path):
    _, sample = describe(bert, tmp_path, "lines", SENTENCES)
    teacher = load_masked_lm(str(bert))
    ids = max(sample, key=torch.numel)
    errors = []
    for given in (sample, None):
        student = build_student(teacher, init_layers=[0, 1], embedding_size=16, sample=given, dropout=0.0)
        with torch.no_grad():
            errors.append((student.eval()(ids).logits - teacher(ids).logits).square().mean())
    assert errors[0] < errors[1]
