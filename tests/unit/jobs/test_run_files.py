"""Test what a run keeps of its model for later exports."""

import shutil

import pytest
from transformers import AutoModelForMaskedLM

from ds_distill.compression.prune_model import prune_model
from ds_distill.distributed.process_group import start_distributed
from ds_distill.jobs.run_files import describe_head, keep_model
from ds_distill.models.folder import find_model_folder
from ds_distill.models.layer_shapes import LayerShape
from ds_distill.reporting import provenance
from ds_distill.reporting.model_card import model_card
from ds_distill.run_folder import RunFolder
from tests.tiny import make_embedder, save_encoder


@pytest.mark.parametrize("pruned", [False, True])
def test_only_a_student_that_sentence_transformers_loads_has_its_files(tmp_path, pruned):
    start_distributed()
    teacher = save_encoder("bert", tmp_path / "teacher")
    make_embedder(teacher)
    shutil.copytree(teacher, tmp_path / "tokens" / "tokenizer", ignore=shutil.ignore_patterns("m*", "c*", "1_*", "2_*"))
    student = AutoModelForMaskedLM.from_pretrained(teacher)
    if pruned:
        prune_model(student, [LayerShape(1, 8), LayerShape(2, 64)], "first")
    origin, run = provenance.from_model(teacher), RunFolder(tmp_path / "run")
    keep_model(student, tmp_path / "tokens", run, origin, find_model_folder(str(teacher)))
    assert run.has_model() and (run.model / "modules.json").is_file() == (not pruned)
    card = model_card("A student", {}, {}, "0", origin, **describe_head(student))
    assert ("- sentence-transformers" in card) == (not pruned)
