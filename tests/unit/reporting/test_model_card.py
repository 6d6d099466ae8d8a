"""Test model cards: what the Hub reads in them, what people read, and the example that they show."""

import contextlib
import io
import re

import pytest
from huggingface_hub import ModelCard
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from ds_distill.reporting import provenance
from ds_distill.reporting.card_edits import for_repository, set_metadata
from ds_distill.reporting.card_sections import front_matter
from ds_distill.reporting.model_card import model_card, task_card
from ds_distill.reporting.provenance import Provenance
from ds_distill.tasks.catalog import TASKS
from tests.tiny import save_encoder

ORIGIN = Provenance(
    base="acme/tiny",
    base_model="acme/tiny",
    revision="abc123",
    license={"license": "other", "license_name": "acme", "license_link": "https://acme.example/license"},
    language=["en", "no"],
    layers=[0, 2, 4],
    base_layers=6,
    distilled=True,
    datasets=["acme/texts"],
    hardware="8 × H100",
    versions={"torch": "2.0"},
)
FIGURES = {"steps": 10, "heldout_mlm_loss": 2.5, "heldout_mlm_accuracy": 0.5}
OVER_MASKS = {"heldout_mask_loss": 3.5, "heldout_mask_accuracy": 0.25, "heldout_mask_accuracy_se": 0.01}


def results_of(card):
    return {
        result.metric_type: (result.metric_value, result.dataset_type) for result in ModelCard(card).data.eval_results
    }


def test_a_card_tells_of_stages_and_of_sequences_without_masks():
    recipe = {"data": {"clean_fraction": 0.5}, "stages": [{"share": 0.7}, {"share": 0.3}]}
    card = model_card("distill", FIGURES, recipe, "f00d", ORIGIN)
    assert "- 0.5 of its training sequences, others in each epoch, were shown without masks." in card
    assert "- It was trained in 2 stages with these shares of the steps: 0.7, 0.3." in card
    dotted = {"data": "f00d", "data.clean_fraction": 0.5, "stages": recipe["stages"]}  # as run.json has them
    again = model_card("distill", FIGURES, dotted, "f00d", ORIGIN)
    assert all(line in again for line in card.splitlines() if line.startswith("- ") and "of " in line)
    assert "stages" not in model_card("distill", FIGURES, {"data": {"clean_fraction": 0.0}}, "f00d", ORIGIN)
    rounded = recipe | {"stages": [{"share": 0.7}, {"share": 0.3, "quantize": "onnx-int8"}]}
    card = model_card("distill", FIGURES, rounded, "f00d", ORIGIN)
    assert "- In the last stage it computed as the file of the format onnx-int8 does, and so did the student of" in card
    card = model_card("distill", FIGURES, {"stages": [{"share": 1, "quantize": "onnx-int4"}]}, "f00d", ORIGIN)
    assert "- In the training it computed as the file of the format onnx-int4" in card and "1 stages" not in card


def test_a_card_tells_of_factors():
    card = model_card("distill", FIGURES, {}, "f00d", ORIGIN, rank=6)
    assert "products of two factors of rank 6" in card and "factors" not in model_card("m", FIGURES, {}, "f00d", ORIGIN)


def test_a_distilled_model_tells_the_hub_what_it_was_made_of():
    card = model_card("distill", FIGURES, {"teacher": "/home/ada/tiny"}, "f00d", ORIGIN)
    data = ModelCard(card).data
    assert (data.library_name, data.pipeline_tag, data.tags) == (
        "transformers",
        "fill-mask",
        ["ds-distill", "distillation"],
    )
    assert (data.base_model, data.base_model_relation, data.datasets) == ("acme/tiny", "finetune", ["acme/texts"])
    assert (data.license, data.license_name, data.language) == ("other", "acme", ["en", "no"])
    assert data.license_link == "https://acme.example/license"
    for words in ("revision `abc123`", "which has 6, counted from 0: 0, 2, 4.", "8 × H100", "torch 2.0", "Limitations"):
        assert words in card
    assert "/home" not in card


def test_figures_over_masked_positions_come_before_those_over_all_selected_ones():
    assert results_of(model_card("m", FIGURES, {}, "", ORIGIN)) == {
        "loss": (2.5, "acme/texts"),
        "accuracy": (0.5, "acme/texts"),
    }
    assert results_of(model_card("m", FIGURES | OVER_MASKS, {}, "", ORIGIN)) == {
        "loss": (3.5, "acme/texts"),
        "accuracy": (0.25, "acme/texts"),
    }
    unmeasured = model_card("m", {"heldout_mlm_loss": float("nan"), "heldout_mlm_accuracy": None}, {}, "")
    assert ModelCard(unmeasured).data.eval_results is None, "no figure is made up"


def test_nothing_is_told_of_a_model_of_which_nothing_is_known():
    data = ModelCard(model_card("m", FIGURES, {}, "")).data.to_dict()
    assert data.keys() == {"library_name", "pipeline_tag", "tags", "model-index"} and data["tags"] == ["ds-distill"]


def test_a_fine_tuned_model_tells_its_scores_by_split_and_its_labels():
    card = task_card("classification", TASKS["mnli"], {"accuracy": 80.0, "mismatched_accuracy": 81.0}, {}, "", ORIGIN)
    results = ModelCard(card).data.eval_results
    assert [(r.metric_value, r.dataset_split, r.dataset_type, r.dataset_config) for r in results] == [
        (80.0, "validation_matched", "nyu-mll/glue", "mnli"),
        (81.0, "validation_mismatched", "nyu-mll/glue", "mnli"),
    ]
    assert "0 is `entailment`, 1 is `neutral`, 2 is `contradiction`" in card
    local = task_card("classification", TASKS["stsb"], {"pearson": 80.0, "spearman": None}, {}, "")
    assert results_of(local) == {"pearsonr": (80.0, "stsb")}, "of local files it does not say that they are the Hub's"


@pytest.mark.parametrize("kind", ["masked-lm", "sst2", "rte", "squad"])
def test_the_example_runs_in_the_folder(tmp_path, monkeypatch, kind):
    folder = save_encoder("distilbert", tmp_path)
    head = {"masked-lm": AutoModelForMaskedLM, "squad": AutoModelForQuestionAnswering}
    head.get(kind, AutoModelForSequenceClassification).from_pretrained(folder).save_pretrained(folder)
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    if kind == "masked-lm":
        card = model_card("m", FIGURES, {}, "")
    else:
        task = TASKS[kind]
        card = task_card("question-answering" if task.spans else "classification", task, {}, {})
    monkeypatch.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], {})
    assert printed.getvalue()


def test_a_card_names_the_repository_that_it_is_uploaded_to():
    card = model_card("distill", FIGURES, {}, "", ORIGIN)
    for name in ("ada/first", "ada/second"):  # a folder may be uploaded twice
        card = for_repository(card, name)
        assert f'\nname = "{name}"\n' in card and f"\n# {name[4:]}\n" in card
        assert ModelCard(card).data.model_name == name[4:]
        assert results_of(card) == results_of(model_card("distill", FIGURES, {}, "", ORIGIN))


def test_metadata_is_set_in_a_card_of_any_origin():
    assert ModelCard(set_metadata("# no metadata\n", base_model="a/b")).data.base_model == "a/b"
    card = set_metadata(front_matter("encoder", language="no") + "# m\n", base_model="a/b")
    assert (ModelCard(card).data.base_model, ModelCard(card).data.language) == ("a/b", "no"), "Norwegian, not false"
    assert card.endswith("---\n\n# m\n")


def test_provenance_comes_from_the_cards_and_the_cache(tmp_path):
    snapshot = tmp_path / "models--acme--tiny" / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (snapshot / "README.md").write_text("---\nlicense: mit\nlanguage: [en]\nbase_model: other/model\n---\n")
    found = provenance.from_model(snapshot, distilled=True)
    assert (found.base, found.base_model, found.revision) == ("acme/tiny", "acme/tiny", "abc123")
    assert (found.license, found.language, found.distilled) == ({"license": "mit"}, ["en"], True)
    provenance.write(found, tmp_path / "provenance.json")
    assert provenance.read(tmp_path / "provenance.json") == found

    local = tmp_path / "run" / "export"
    local.mkdir(parents=True)
    (local / "README.md").write_text("---\nlicense: [a, b]\nbase_model: acme/tiny\n---\n")
    found = provenance.from_model(local)
    assert (found.base, found.base_model, found.revision, found.license) == ("run/export", "acme/tiny", None, {})
    assert provenance.read(tmp_path / "none.json") == Provenance()


def test_datasets_of_the_hub_are_named():
    inputs = ["hf:acme/texts:en@train#text", "hf:acme/texts@test", "hf:wiki", "text.txt", "hf:/local/folder"]
    assert provenance.name_datasets(inputs) == ["acme/texts", "wiki"]


def test_a_card_names_all_teachers_and_a_license_that_they_share(tmp_path):
    for name, license in (("first", "mit"), ("second", "mit"), ("third", "apache-2.0")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(f"---\nlicense: {license}\nbase_model: hub/{name}\n---\n")
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    both = provenance.from_models([first, second], distilled=True)
    assert both.license == {"license": "mit"} and both.base_model == ["hub/first", "hub/second"]
    assert provenance.from_models([first, third], distilled=True).license == {}
    alone = provenance.from_models([first, third], distilled=False)  # trained without its teachers
    assert alone == provenance.from_model(first)
    card = model_card("run", {"steps": 1}, {}, "0", provenance.from_models([first, third], distilled=True))
    assert "distilled from `first` and `third`" in card and "one and the same for all of its teachers" in card


def test_models_of_seeds_and_of_tasks_are_named_with_their_runs(tmp_path):
    names = {
        "runs/first/seed=0/model": "first/seed=0/model",
        "runs/grid/learning_rate=0.1,seed=2/model": "grid/learning_rate=0.1,seed=2/model",
        "runs/tuned/tasks/rte": "tuned/tasks/rte",
        "runs/student/export": "student/export",
        "models/teacher": "teacher",
    }
    for path, name in names.items():
        assert provenance.name_model(tmp_path / path) == name


def test_the_card_of_a_bare_encoder_promises_no_masks():
    figures = {"heldout_mse": 0.00012, "heldout_mse_se": 0.00001, "heldout_loss": 0.00012, "steps": 5}
    card = model_card("run", figures, {}, "0", head="encoder", pooler=True)
    assert provenance.parse_front_matter(card)["pipeline_tag"] == "feature-extraction" and "fill-mask" not in card
    assert "from_pretrained(name, add_pooling_layer=False)" in card and "0.00012" in card
    assert "# student\n" in for_repository(card, "owner/student")
