"""Test the tuning of one encoder on several tasks, in one process on tiny models."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from ds_distill.cli.app import main
from ds_distill.cli.multitask import closing
from ds_distill.cli.parser import build_parser
from ds_distill.data.tokenizer import load_tokenizer
from ds_distill.exporters.parity import SAMPLE
from ds_distill.finetune import trainer as trainer_module
from ds_distill.finetune.data import dev_sets, encode_sets, load_data
from ds_distill.finetune.features import ByLength, Collator, Features
from ds_distill.finetune.heads import load_for_task
from ds_distill.finetune.trainer import score_model
from ds_distill.jobs import multitask as multitask_module
from ds_distill.jobs.multitask import multitask
from ds_distill.models.families import get_family
from ds_distill.models.folder import find_model_folder
from ds_distill.models.loading import load_masked_lm
from ds_distill.models.saving import save_model_folder
from ds_distill.models.student import build_student, count_parameters
from ds_distill.multitask import results as multitask_results
from ds_distill.multitask.model import MultitaskModel
from ds_distill.multitask.order import Steps, count_steps, draw_probabilities
from ds_distill.multitask.settings import DEFAULTS, check_settings
from ds_distill.tasks.catalog import MASKED_LM, get_task
from ds_distill.utils.errors import UserError
from tests.tiny import FAMILIES, save_encoder

TASKS = ("rte", "stsb", "squad")
QUICK = replace(DEFAULTS, epochs=2, batch_size=8, learning_rate=1e-3, precision="fp32")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder for each family's tiny masked-LM model, tasks of 40, 24 and 16 examples, and text.txt."""
    folder = tmp_path_factory.mktemp("multitask")
    lines = SAMPLE.read_text().splitlines()
    for family in FAMILIES:
        save_encoder(family, folder / family)
    (folder / "text.txt").write_text("\n\n".join(lines * 8))
    words = [line.split() for line in lines if len(line.split()) > 6]
    for task, count in zip(TASKS, (40, 24, 16), strict=True):
        (folder / task).mkdir()
        for split in ("train", "validation"):
            rows = []
            for i, w in enumerate((words * count)[:count]):
                context, answer = " ".join(w[:6]), w[1 + i % 3]
                pair = {"sentence1": " ".join(w[: 3 + i % 4]), "sentence2": " ".join(w[-3:])}
                label = i % 2 if task == "rte" else float(i % 6)
                answers = {"text": [answer], "answer_start": [context.index(answer)]}
                rows.append(
                    {"id": str(i), "question": " ".join(w[:2]), "context": context, "answers": answers}
                    if task == "squad"
                    else pair | {"label": label}
                )
            (folder / task / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(autouse=True)
def environment():
    """Leave the variables of ranks, which an evaluation sets, as they were: Trainer reads them."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def load_models(world, family, tasks=TASKS, seed=0):
    for name in tasks:
        torch.manual_seed(seed)
        yield name, load_for_task(str(world / family), get_task(name), "model", tuned=False, dropout=0.0)


def encoded(world, family, task):
    data = load_data(get_task(task), str(world / task))
    return data, encode_sets(data, load_tokenizer(world / family), QUICK, 64)


def make_steps(lengths, seed=0, steps=4000, batch=4, **masked):
    tasks = {
        name: Features({"input_ids": [[1] * length for length in rows]}, {"labels": [0] * len(rows)})
        for name, rows in lengths.items()
    }
    return Steps(tasks, None, batch=batch, steps=steps, seed=seed, **masked)


LENGTHS = {"a": [5] * 400, "b": [*range(5, 105)], "c": [7] * 25}


def test_tasks_are_drawn_by_the_square_root_of_their_examples():
    steps, same, other = make_steps(LENGTHS), make_steps(LENGTHS), make_steps(LENGTHS, seed=1)
    counts = np.array([steps.of_each[name] for name in "abc"])
    expected = 4000 * np.array([20, 10, 5]) / 35
    assert ((counts - expected) ** 2 / expected).sum() < 13.8  # chi-square of 2 degrees of freedom, p = 0.001
    drawn = [steps.task(k) for k in range(4000)]
    assert {name: drawn.count(name) for name in "abc"} == steps.of_each
    assert drawn == [same.task(k) for k in range(4000)] != [other.task(k) for k in range(4000)]


def test_masked_lm_is_drawn_with_its_share_and_tasks_keep_their_steps():
    sizes = {"a": 400, "b": 100}
    assert draw_probabilities(sizes, 0.25) == pytest.approx({"a": 0.5, "b": 0.25, MASKED_LM: 0.25})
    assert count_steps(sizes, 32, 4, 0.0) == 4 * (13 + 4) and count_steps(sizes, 32, 0.5, 0.0) == 9
    assert count_steps(sizes, 32, 4, 0.25) == math.ceil(68 / 0.75)
    of_each = make_steps(LENGTHS, mlm_fraction=0.25).of_each
    assert abs(of_each[MASKED_LM] - 1000) < 3.3 * math.sqrt(4000 * 0.25 * 0.75)


def test_a_tasks_batches_are_those_of_a_run_on_it_alone_whatever_step_is_asked_for_first():
    steps, alone = make_steps(LENGTHS, seed=3), ByLength(LENGTHS["b"], 4, seed=3)
    expected = []
    for epoch in range(100):
        alone.set_epoch(epoch)
        order = list(alone)
        expected += [order[start : start + 4] for start in range(0, 100, 4)]
    of_b = [k for k in range(4000) if steps.task(k) == "b"]
    assert [steps.rows(k) for k in of_b] == expected[: len(of_b)] and len(of_b) > 100
    assert [steps.rows(k) for k in reversed(of_b[:60])] == expected[:60][::-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_encoder_is_one_and_each_task_is_a_model_of_its_stock_class(world, tmp_path, family):
    masked_lm = load_masked_lm(str(world / family))
    model = MultitaskModel(masked_lm, load_models(world, family))
    shared = {id(parameter) for parameter in model.encoder.parameters()}
    for name, task_model in model.tasks.items():
        ids = {id(parameter) for parameter in task_model.parameters()}
        assert shared < ids, name
        assert not (ids - shared) & {
            id(p) for other in model.tasks.values() if other is not task_model for p in other.parameters()
        }
        stock = type(next(m for n, m in load_models(world, family) if n == name))
        assert type(task_model) is stock
    trained = [*model.parameters()]
    own = sum(p.numel() for m in model.tasks.values() for p in m.parameters() if id(p) not in shared)
    assert sum(p.numel() for p in trained) == own + sum(p.numel() for p in model.encoder.parameters())
    # The state has each tensor once, without which a checkpoint could not be written, and nothing of the frozen head.
    state = model.state_dict()
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
    decoder = get_family(masked_lm).get_decoder(masked_lm)
    assert not decoder.weight.requires_grad and not masked_lm.get_input_embeddings().weight.requires_grad
    layer = get_family(masked_lm).get_layers(masked_lm)[0]
    assert all(parameter.requires_grad for parameter in layer.parameters())


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
def test_a_steps_gradient_is_that_of_the_task_alone(world, family):
    model = MultitaskModel(load_masked_lm(str(world / family), dropout=0.0), load_models(world, family)).train()
    for name, alone in load_models(world, family):
        _, sets = encoded(world, family, name)
        batch = Collator(load_tokenizer(world / family))([sets.train[row] for row in range(8)])
        model.zero_grad()
        loss = model(name, **batch)
        loss.backward()
        taken = {key: value for key, value in batch.items() if key != "token_type_ids" or family == "bert"}
        expected = alone.train()(**taken).loss
        expected.backward()
        assert torch.equal(loss, expected)
        frozen = model.masked_lm[0].get_input_embeddings().weight
        gradients = dict(model.tasks[name].named_parameters())
        compared = [
            torch.equal(gradients[key].grad, parameter.grad)
            for key, parameter in alone.named_parameters()
            if parameter.grad is not None and gradients[key] is not frozen
        ]
        assert all(compared) and len(compared) > 20
        others = [p for other, m in model.tasks.items() if other != name for p in m.parameters()]
        mine = {id(p) for p in model.tasks[name].parameters()}
        assert all(p.grad is None for p in others if id(p) not in mine)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_masked_lm_step_is_that_of_the_masked_lm_model_and_leaves_its_head(world, family):
    model = MultitaskModel(load_masked_lm(str(world / family)), load_models(world, family, tasks=("rte",)))
    alone = load_masked_lm(str(world / family))
    ids = torch.arange(6, 30).view(2, 12)
    labels = torch.where(torch.arange(24).view(2, 12) % 5 == 0, ids, -100)
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    labels[1, 9:] = -100
    model.eval()
    loss = model(MASKED_LM, input_ids=ids, attention_mask=mask, labels=labels)
    expected = alone(input_ids=ids, attention_mask=mask, labels=labels).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    prefix = get_family(alone).prefix(alone)
    heads = [p for key, p in model.masked_lm[0].named_parameters(remove_duplicate=False) if not key.startswith(prefix)]
    assert heads and all(parameter.grad is None for parameter in heads)
    expected.backward()
    layers = get_family(alone).get_layers
    for one, other in zip(layers(model.masked_lm[0]).parameters(), layers(alone).parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-6)


def run(world, output, settings=QUICK, **options):
    return multitask(
        [get_task(name) for name in TASKS],
        str(world / "bert"),
        output,
        settings=settings,
        data=str(world),
        **{"corpus": [str(world / "text.txt")]} | options,
    )


@pytest.fixture(scope="module")
def tuned(world, tmp_path_factory):
    """(folder, summary) of a run with masked LM in one step of four."""
    output = tmp_path_factory.mktemp("tuned") / "run"
    before = dict(os.environ)
    summary = run(world, output, mlm_fraction=0.25)
    os.environ.clear()
    os.environ.update(before)
    return output, summary


def test_the_result_is_the_teacher_with_a_tuned_encoder_and_its_own_head(world, tuned):
    output, summary = tuned
    before, after = (load_file(folder / "model.safetensors") for folder in (world / "bert", output / "export"))
    changed = {name for name, value in after.items() if name in before and not torch.equal(value, before[name])}
    assert any("encoder.layer.0" in name for name in changed) and any("position" in name for name in changed)
    assert not any(name.startswith("cls.") or "word_embeddings" in name for name in changed)
    assert any(name.startswith("cls.") for name in after)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (world / "bert", output / "export")]
    assert {k: v for k, v in configs[0].items() if k != "transformers_version"}.items() <= configs[1].items()
    model = AutoModelForMaskedLM.from_pretrained(output / "export")
    assert torch.equal(model.get_output_embeddings().weight, before["bert.embeddings.word_embeddings.weight"])
    encoder = AutoModel.from_pretrained(output / "tasks" / "rte").state_dict()
    for name, value in model.bert.state_dict().items():
        assert torch.equal(encoder[name], value), f"the encoder of a task's model is the teacher's: {name}"
    card = (output / "export" / "README.md").read_text()
    assert "rte, stsb, squad" in card and "pipeline_tag: fill-mask" in card and "mlm_fraction" in card
    assert "tuned on several tasks at once: rte, stsb, squad" in (output / "tasks" / "rte" / "README.md").read_text()


def test_a_model_of_factors_is_tuned_in_factors(world, tmp_path):
    teacher = find_model_folder(str(world / "bert"))
    student = build_student(load_masked_lm(teacher), num_layers=2, dropout=0.0, linear_rank=5)
    save_model_folder(student, teacher.tokenizer, tmp_path / "factors")
    settings = replace(QUICK, epochs=1)
    options = {"settings": settings, "data": str(world), "corpus": [str(world / "text.txt")]}
    summary = multitask([get_task("rte")], str(tmp_path / "factors"), tmp_path / "run", **options)
    before = load_file(tmp_path / "factors" / "model.safetensors")
    for folder, name in ((summary["export"], "the teacher"), (summary["tasks"]["rte"]["model"], "the task's model")):
        assert find_model_folder(folder).linear_rank == 5, name
        key = next(key for key in before if key.endswith("layer.0.ffn.lin1.weight"))
        weight = load_file(Path(folder) / "model.safetensors")[key].double()
        values = torch.linalg.svdvals(weight)
        assert values[5] < 1e-5 * values[0] and not torch.equal(weight.float(), before[key]), name
        assert "factors of rank 5" in (Path(folder) / "README.md").read_text(), name
    assert summary["parameters"] == count_parameters(student) < student_as_loaded(tmp_path / "factors")


def student_as_loaded(folder):
    return AutoModelForMaskedLM.from_pretrained(folder).num_parameters()


def test_drift_is_reported_by_the_projects_own_evaluation(world, tuned):
    from ds_distill.api import evaluate

    output, summary = tuned
    rows = {row.model: row for row in evaluate([world / "bert", output / "export"], tokens=output / "tokens")}
    assert rows[str(world / "bert")].heldout_mask_loss == summary["teacher_heldout_mask_loss"]
    assert rows[str(output / "export")].heldout_mask_loss == summary["heldout_mask_loss"]
    assert summary["heldout_mask_loss"] != summary["teacher_heldout_mask_loss"]
    assert summary["heldout_mlm_accuracy"] is not None and summary["parameters"] == count_parameters(
        load_masked_lm(str(world / "bert"))
    )


@pytest.mark.parametrize(("before", "after", "error"), [(7.5, 10.7, 0.4), (7.5, 7.9, 0.4), (7.5, None, None)])
def test_a_teacher_whose_masked_lm_has_become_worse_is_matched_by_its_inner_layers(before, after, error):
    options = build_parser().parse_args(["multitask", "--output", "runs/tuned"]).multitask
    figures = {"heldout_mask_loss": after, "heldout_mask_loss_se": error}
    figures |= {"teacher_heldout_mask_loss": before, "teacher_heldout_mask_loss_se": 0.1}
    text = closing(options, {"export": "x"} | figures)
    (command,) = (line for line in text.splitlines() if line.startswith("ds-distill distill"))
    assert ("--config inner_layers" in command) == ("Masked LM has become worse" in text) == (after == 10.7)


def test_a_tasks_folder_gives_its_score_again(world, tuned):
    output, summary = tuned
    assert [*summary["tasks"]] == [*TASKS] and sum(task["steps"] for task in summary["tasks"].values()) < summary[
        "steps"
    ]
    for name, row in summary["tasks"].items():
        folder, data = Path(row["model"]), load_data(get_task(name), str(world / name))
        model, tokenizer = load_for_task(str(folder), get_task(name), "model", tuned=True), load_tokenizer(folder)
        _, sets = encoded(world, "bert", name)
        sets = replace(sets, dev=dev_sets(data, tokenizer, tokenizer.model_max_length))
        scores = score_model(get_task(name), model, sets, Collator(tokenizer), 16, name)
        assert scores == {key: row[key] for key in scores} and row["constant"].keys() == scores.keys()
        assert row["length"] == tokenizer.model_max_length
    assert AutoModelForSequenceClassification.from_pretrained(output / "tasks" / "stsb").config.num_labels == 1


def test_tasks_of_ones_own_are_tuned_with_others(world, tmp_path, capsys):
    """One has classes by name, the other tags of words."""
    words = [line.split() for line in SAMPLE.read_text().splitlines() if len(line.split()) > 6]
    rows = [f"{' '.join(w[:5]).replace(',', '')},{('calm', 'loud')[i % 2]}" for i, w in enumerate(words)]
    for split in ("train", "dev"):
        (tmp_path / f"{split}.csv").write_text("\n".join(["text,mood", *rows, ""]))
        tagged = ["\n".join(f"{word} {'B-x' if len(word) > 5 else 'O'}" for word in w[:6]) for w in words]
        (tmp_path / f"{split}.conll").write_text("\n\n".join(tagged) + "\n")
    (tmp_path / "mood.yaml").write_text("text: text\nlabel: mood\ntrain: train.csv\ndev: dev.csv\nmetric: f1_macro\n")
    (tmp_path / "long.yaml").write_text("kind: token-classification\ntrain: train.conll\ndev: dev.conll\n")
    given = ["rte", str(tmp_path / "mood.yaml"), str(tmp_path / "long.yaml")]
    command = ["multitask", "--model", str(world / "bert"), "--data", str(world), "--corpus", str(world / "text.txt")]
    command += ["--output", str(tmp_path / "run"), "--finetune.epochs", "1", "--finetune.precision", "fp32"]
    assert main([*command, "--tasks", *given]) == 0
    printed = capsys.readouterr().out
    summary = json.loads(printed.splitlines()[-1])
    assert [*summary["tasks"]] == ["rte", "mood", "long"] and "| mood | f1_macro |" in " ".join(printed.split())
    assert summary["tasks"]["long"]["constant"]["f1"] == 0 and summary["tasks"]["mood"]["constant"]["f1_macro"] > 0
    folder = find_model_folder(summary["tasks"]["long"]["model"])
    assert folder.config.architectures == ["BertForTokenClassification"]
    assert "token-classification" in (folder.path / "README.md").read_text()
    (tmp_path / "other.yaml").write_text((tmp_path / "mood.yaml").read_text() + "name: mood\n")
    assert main([*command, "--tasks", given[1], str(tmp_path / "other.yaml")]) == 2
    assert "another task is called mood; give it another `name` in its file" in capsys.readouterr().err


def test_a_finished_run_is_not_done_again_even_where_it_was_moved(world, tuned, tmp_path):
    import shutil

    output, summary = tuned
    shutil.copytree(output, tmp_path / "moved")
    again = run(world, tmp_path / "moved", mlm_fraction=0.25)
    assert again["export"] == str(tmp_path / "moved" / "export")
    assert again["tasks"]["rte"]["model"] == str(tmp_path / "moved" / "tasks" / "rte")
    with pytest.raises(
        UserError, match=r"holds another run \(finetune.epochs was 2, is 3; mlm_fraction was 0.25, is 0"
    ):
        run(world, tmp_path / "moved", replace(QUICK, epochs=3))


@pytest.mark.promise("A run on several tasks that is killed ends as if it had not been, bit-equal")
def test_a_run_that_is_broken_off_ends_as_if_it_had_not_been(world, tuned, tmp_path, monkeypatch):
    whole, summary = tuned
    monkeypatch.setattr(multitask_module, "SAVE_EVERY", 12)
    monkeypatch.setattr(trainer_module, "SAVE_SECONDS", math.inf)
    options = {"mlm_fraction": 0.25, "corpus": (), "tokens": str(whole / "tokens")}
    step, scores = trainer_module.ProgressBar.on_step_end, multitask_results.score_answers

    def stop_at_15(self, args, state, control, **kwargs):
        if state.global_step == 15:
            raise KeyboardInterrupt
        step(self, args, state, control, **kwargs)

    def stop_at_stsb(task, *rest):
        if task.name == "stsb":
            raise KeyboardInterrupt
        return scores(task, *rest)

    for place, name, stop in (
        (trainer_module.ProgressBar, "on_step_end", stop_at_15),
        (multitask_results, "score_answers", stop_at_stsb),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, stop)
            with pytest.raises(KeyboardInterrupt):
                run(world, tmp_path / "run", **options)
        left = [int(folder.name[11:]) for folder in (tmp_path / "run" / "checkpoints").iterdir()]
        assert left == [12 if stop is stop_at_15 else summary["steps"]]
    again = run(world, tmp_path / "run", **options)
    assert again["tasks"]["squad"]["f1"] == summary["tasks"]["squad"]["f1"]
    assert again["heldout_mask_loss"] == summary["heldout_mask_loss"]
    for part in ("export", "tasks/rte", "tasks/stsb", "tasks/squad"):
        one, other = (load_file(folder / part / "model.safetensors") for folder in (whole, tmp_path / "run"))
        assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items()), part
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_in_bf16_all_models_attend_alike(world, tuned, tmp_path, monkeypatch):
    seen, train = [], multitask_module._train

    def note(run, model, *rest):
        modules = [m for top in (*model.masked_lm, *model.tasks.values()) for m in top.modules()]
        seen.extend(m.config._attn_implementation for m in modules if hasattr(m, "config"))
        train(run, model, *rest)

    monkeypatch.setattr(multitask_module, "_train", note)
    settings = replace(QUICK, epochs=0.2, precision="bf16", dropout=0.3)
    summary = run(world, tmp_path / "run", settings, mlm_fraction=0.5, corpus=(), tokens=str(tuned[0] / "tokens"))
    assert {*seen} == {"eager"} if not torch.cuda.is_available() else {"sdpa"}
    kept = json.loads((tmp_path / "run" / "export" / "config.json").read_text())
    assert kept["hidden_dropout_prob"] == 0.1 and "_attn_implementation" not in kept, "as the teacher came"
    assert summary["settings"]["precision"] == "bf16"


def test_text_of_less_than_a_batch_cannot_be_trained_on(world, tuned, tmp_path):
    settings = replace(QUICK, batch_size=100_000)
    with pytest.raises(UserError, match=r"finetune.batch_size = 100000: the text has only \d+ sequences .* --mlm_fra"):
        run(world, tmp_path / "run", settings, mlm_fraction=0.25, corpus=(), tokens=str(tuned[0] / "tokens"))


def test_an_encoder_without_a_masked_lm_head_is_refused(world, tmp_path):
    load_for_task(str(world / "bert"), get_task("rte"), "model", tuned=False).save_pretrained(tmp_path / "headless")
    load_tokenizer(world / "bert").save_pretrained(tmp_path / "headless")
    with pytest.raises(UserError, match=r"no masked-LM head: .* `ds-distill pretrain --from"):
        multitask(
            [get_task("rte")],
            str(tmp_path / "headless"),
            tmp_path / "out",
            settings=QUICK,
            data=str(world),
            corpus=[str(world / "text.txt")],
        )


@pytest.mark.parametrize(
    ("change", "tasks", "mlm", "seed", "message"),
    [
        (
            {"hard_label_weight": 0.7},
            ["rte"],
            0.0,
            0,
            r"finetune.hard_label_weight = 0.7: multitask does not read it; leave",
        ),
        ({"epochs": 0.0}, ["rte"], 0.0, 0, r"finetune.epochs = 0.0: must be between 1e-06 and 1e"),
        ({}, [], 0.0, 0, r"--tasks is missing; give the tasks to tune on"),
        ({}, ["rte", "stsb", "rte"], 0.0, 0, r"--tasks rte stsb rte: rte is given twice; give each task once"),
        ({}, ["rte"], 1.0, 0, r"--mlm_fraction 1.0: must be a share of the steps, at least 0 and below 1"),
        ({}, ["rte"], math.nan, 0, r"--mlm_fraction nan: must be a share"),
        ({}, ["rte"], 0.0, -1, r"--seed -1: must be between 0 and"),
    ],
)
def test_mistakes_name_the_setting_the_value_and_the_remedy(change, tasks, mlm, seed, message):
    with pytest.raises(UserError, match=message):
        check_settings(replace(DEFAULTS, **change), tasks, mlm, seed)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "rte"], "--model is missing; give the folder of the masked-LM teacher"),
        (["--tasks", "rte", "--model", "M"], "--corpus is missing; give text on which masked LM is measured"),
        (["--tasks", "rt", "--model", "M", "--corpus", "x"], "--tasks rt: no such task; did you mean rte"),
        (["--tasks", "rte", "--model", "M", "--corpus", "x", "--finetune.temperature", "3"], "does not read it; leave"),
        (
            ["--tasks", "rte", "sst2", "--model", "bert", "--corpus", "text.txt", "--data", "."],
            "--data sst2: exactly one file train.* is needed",
        ),
        (["--tasks", "rte", "--model", "bert", "--corpus", "none.txt", "--data", "."], "none.txt"),
        (["--tasks", "rte", "--model", "rte", "--corpus", "text.txt", "--data", "."], "--model rte: no config.json"),
    ],
)
def test_the_command_refuses_what_it_cannot_do_before_anything_is_loaded(world, monkeypatch, capsys, words, message):
    monkeypatch.chdir(world)
    monkeypatch.setattr("ds_distill.cli.multitask.run", lambda options: pytest.fail("it began"))
    assert main(["multitask", *words, "--output", "out"]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
