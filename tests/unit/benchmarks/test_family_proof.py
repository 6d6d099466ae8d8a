"""Test the proof by family: its small models are ones of their family, and it goes on where it was stopped."""

import argparse
import json

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from benchmarks.analysis.family_proof import page, row_of, tokenizer_of, write_start
from ds_distill.data.tokenizer import train_wordpiece
from ds_distill.exporters.parity import SAMPLE
from ds_distill.models.families import FAMILIES, get_family
from tests.start import Process


@pytest.mark.parametrize("name", FAMILIES)
def test_a_start_is_a_small_model_of_its_family(name, tmp_path):
    train_wordpiece(SAMPLE.read_text().splitlines(), 300, tmp_path / "shared")
    write_start(name, tokenizer_of(name, tmp_path / "shared", tmp_path / "own"), tmp_path / "start")
    model, tokenizer = (auto.from_pretrained(tmp_path / "start") for auto in (AutoModelForMaskedLM, AutoTokenizer))
    family = get_family(model)
    assert model.config.model_type == name and family.dims(model.config)[:4] == (4, 4, 128, 512)
    assert family.first_position(model.config) in (0, tokenizer.pad_token_id + 1)
    batch = tokenizer(["a text", "a longer text " * 100], padding=True, truncation=True, max_length=128)
    logits = model(**batch.convert_to_tensors("pt")).logits
    assert logits.shape[:2] == (2, 128) and torch.isfinite(logits).all()


def test_the_page_counts_the_seeds_at_which_the_distilled_student_is_ahead():
    losses = {"word counts": 6.0, "teacher": 5.0, "distilled": 5.25, "without a teacher": 5.5}
    rows = [
        row_of("bert", seed, {"losses": losses, "lead": lead, "lead_se": 0.01}) for seed, lead in ((0, 0.25), (1, -0.1))
    ]
    text = page(rows, argparse.Namespace(teacher_tokens=10, student_tokens=5))
    assert "bert 1 of 2" in text and "0.250 ± 0.010" in text and "| 5.250" in text


@pytest.mark.long
def test_a_proof_of_a_family_goes_on_where_it_was_stopped(tmp_path):
    words = ["--output", tmp_path / "proof", "--page", tmp_path / "page.md", "--families", "mpnet", "--seeds", 1]
    words += ["--student-tokens", 2048, "--megabytes", 0.1, "--teacher-tokens"]
    first = Process("benchmarks.analysis.family_proof", *words, 2048).wait()
    assert first.returncode == 0, first.stderr[-3000:]
    written = (tmp_path / "page.md").read_text()
    assert json.loads(first.stdout.splitlines()[-1])["page"] == str(tmp_path / "page.md") and "| mpnet " in written
    done = {file: file.stat().st_mtime_ns for file in (tmp_path / "proof").rglob("*") if file.is_file()}
    again = Process("benchmarks.analysis.family_proof", *words, 2048).wait()
    assert again.returncode == 0, again.stderr[-3000:]
    assert {file.name for file, time in done.items() if file.stat().st_mtime_ns != time} == {"asked.json"}
    assert (tmp_path / "page.md").read_text() == written
    other = Process("benchmarks.analysis.family_proof", *words, 4096).wait()
    assert other.returncode == 2 and "holds runs of other sizes" in other.stderr


@pytest.mark.long
@pytest.mark.parametrize("name", FAMILIES)
def test_the_distilled_student_of_each_family_is_ahead_at_three_seeds_of_three(name, tmp_path):
    """As docs/results/families.md has it: five minutes of a core for a family."""
    words = ["--output", tmp_path / "proof", "--page", tmp_path / "page.md", "--families", name]
    done = Process("benchmarks.analysis.family_proof", *words).wait()
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["ahead"] == "3 of 3"
