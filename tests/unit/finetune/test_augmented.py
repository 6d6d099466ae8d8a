"""Test training on augmented texts: what is read of them, and that only the teacher labels them."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers.modeling_outputs import (
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from ds_distill.finetune import runs
from ds_distill.finetune.augmented import add_augmented, read_augmented
from ds_distill.finetune.config import FinetuneConfig
from ds_distill.finetune.data import encode_sets, load_data
from ds_distill.finetune.features import Collator
from ds_distill.jobs.augment import augment
from ds_distill.losses.task_distillation import labeled_rows_loss
from ds_distill.models.folder import find_model_folder
from ds_distill.tasks.catalog import get_task
from ds_distill.tasks.own_task import find_task
from ds_distill.utils.errors import UserError
from tests.tiny import save_encoder

POINT = FinetuneConfig(epochs=1, batch_size=8, max_length=24, precision="fp32")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A masked-LM model, tasks, and their augmented copies."""
    folder = tmp_path_factory.mktemp("augmented")
    save_encoder("bert", folder / "model")
    words = ["river", "town", "hills", "north", "sea", "people", "world", "machines"]
    for name in ("rte", "stsb", "squad", "ner"):
        (folder / name).mkdir()
        rows = []
        for i in range(16):
            first, second = f"the {words[i % 8]} of the town {i}", f"a {words[i % 5]} in the hills"
            if name == "squad":
                context = f"{first} and {second}"
                answers = {"text": ["hills"], "answer_start": [context.index("hills")]}
                rows.append({"id": f"paragraph {i}", "question": second, "context": context, "answers": answers})
            else:
                label = i % 2 if name == "rte" else i / 4
                rows.append({"sentence1": first, "sentence2": second, "label": label})
        for split in ("train", "validation"):
            if name == "ner":
                tagged = [
                    "\n".join(f"{word} {'B-place' if word in words else 'O'}" for word in row["sentence1"].split())
                    for row in rows
                ]
                (folder / name / f"{split.replace('validation', 'dev')}.conll").write_text("\n\n".join(tagged))
            else:
                (folder / name / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        made, task = folder / f"{name}_augmented", find_task(name, str(folder / name))
        augment(task, str(folder / "model"), made, data=str(folder / name), copies=3)
    return folder


def test_copies_that_equal_their_sources_are_reported(world, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    texts = ["the river and a town of the hills", "1 + 3", "2 + 3", "3 + 3"]  # the last three have no words to replace
    rows = [{"sentence": text, "label": number % 2} for number, text in enumerate(texts)]
    for split in ("train", "validation"):
        (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    augment(get_task("sst2"), str(world / "model"), tmp_path / "out", data=str(tmp_path / "data"), copies=2)
    assert re.search("[67] of 8 copies are equal to their sources, and are left out", capsys.readouterr().err)


@pytest.mark.parametrize("name", ["rte", "stsb", "squad", "ner"])
def test_the_rows_of_the_used_examples_are_added_without_labels(world, name):
    task = find_task(name, str(world / name))
    data = load_data(task, str(world / name))
    rows = read_augmented(world / f"{name}_augmented", data, [POINT])
    tokenizer = find_model_folder(str(world / "model"), "--model").tokenizer
    whole = replace(POINT, max_length=64)
    for point in (whole, replace(whole, augmented_copies=2, max_train_samples=10)):
        sets = encode_sets(data, tokenizer, point, 64)
        train = add_augmented(sets.train, rows, data, tokenizer, point, sets.length)
        most, copies = point.max_train_samples or 16, point.augmented_copies or 3
        wanted = [row for row in rows if int(str(row["source"]).split()[-1]) < most and row["copy"] <= copies]
        assert wanted and train.labeled == [True] * len(sets.train) + [False] * len(wanted)
        for index, row in enumerate(wanted, len(sets.train)):
            texts = [row["texts"][column] for column in task.texts]
            if task.tokens:
                assert len(texts[0]) == 6 and texts[0][-1] == str(row["source"])
                texts = [" ".join(texts[0])]
            ids = tokenizer(*texts, truncation=True, max_length=64)["input_ids"]
            assert train.inputs["input_ids"][index] == ids
        batch = Collator(tokenizer)([train[0], train[len(sets.train)]])
        assert batch["labeled"].tolist() == [True, False]


def test_labels_of_words_count_where_there_are_any():
    torch.manual_seed(0)
    logits, tags = torch.randn(3, 4, 5), torch.tensor([[-100, 1, 4, -100], [-100, 2, 0, 3], [-100, 0, -100, -100]])
    outputs, whole = TokenClassifierOutput(logits=logits), F.cross_entropy(logits.flatten(0, 1), tags.flatten())
    torch.testing.assert_close(labeled_rows_loss(outputs, {"labels": tags}, torch.tensor([True] * 3)), whole)
    loss = labeled_rows_loss(outputs, {"labels": tags}, torch.tensor([True, False, True]))
    alone = F.cross_entropy(logits[[0, 2]].flatten(0, 1), tags[[0, 2]].flatten(), reduction="sum")
    torch.testing.assert_close(loss, alone / 6)


def test_labels_count_where_there_are_any():
    torch.manual_seed(0)
    logits, numbers = torch.randn(4, 3), torch.randn(4, 1)
    labeled = torch.tensor([True, False, True, False])
    classes, values, several = torch.tensor([2, 0, 1, 0]), torch.randn(4), torch.randint(2, (4, 3)).float()
    starts, ends = torch.randn(4, 5), torch.randn(4, 5)
    places = {"start_positions": torch.tensor([1, 0, 4, 0]), "end_positions": torch.tensor([2, 0, 4, 0])}
    cases = [
        (
            SequenceClassifierOutput(logits=logits),
            {"labels": classes},
            lambda i: F.cross_entropy(logits[i], classes[i]),
        ),
        (SequenceClassifierOutput(logits=numbers), {"labels": values}, lambda i: F.mse_loss(numbers[i, 0], values[i])),
        (
            SequenceClassifierOutput(logits=logits),
            {"labels": several},
            lambda i: F.binary_cross_entropy_with_logits(logits[i], several[i]),
        ),
        (
            QuestionAnsweringModelOutput(start_logits=starts, end_logits=ends),
            places,
            lambda i: (
                (
                    F.cross_entropy(starts[i], places["start_positions"][i])
                    + F.cross_entropy(ends[i], places["end_positions"][i])
                )
                / 2
            ),
        ),
    ]
    for outputs, labels, of_row in cases:
        torch.testing.assert_close(labeled_rows_loss(outputs, labels, labeled), (of_row(0) + of_row(2)) / 4)


def test_a_student_learns_entities_from_words_that_only_the_teacher_tags(world, tmp_path):
    data, task = str(world / "ner"), find_task("ner", str(world / "ner"))
    options = {"points": [POINT], "seeds": [0], "report_to": (), "data": data}
    teacher = runs.finetune(task, str(world / "model"), tmp_path / "teacher", **options)
    options |= {"teachers": [teacher["export"]], "augmented": str(world / "ner_augmented")}
    summary = runs.finetune(task, str(world / "model"), tmp_path / "student", **options)
    result = json.loads((tmp_path / "student" / "seed=0" / "result.json").read_text())
    assert summary["examples"]["augmented"] > 16 and np.isfinite([loss for _, loss in result["losses"]]).all()


def test_a_student_learns_from_the_teacher_what_no_label_says(world, tmp_path, capsys):
    """The labels weigh nothing, and the copies are read to the last one."""
    data, options = str(world / "rte"), {"points": [POINT], "seeds": [0], "report_to": ()}
    teacher = runs.finetune(get_task("rte"), str(world / "model"), tmp_path / "teacher", data=data, **options)
    options |= {"data": data, "teachers": [teacher["export"]], "augmented": str(world / "rte_augmented")}
    summary = runs.finetune(get_task("rte"), str(world / "model"), tmp_path / "student", **options)
    rows = len((world / "rte_augmented" / "augmented.jsonl").read_text().splitlines())
    assert f"16 training examples and {rows} augmented texts, 16 to score" in capsys.readouterr().err
    steps = json.loads((tmp_path / "student" / "seed=0" / "result.json").read_text())
    assert summary["examples"]["augmented"] == rows and np.isfinite([loss for _, loss in steps["losses"]]).all()
    again = runs.finetune(get_task("rte"), str(world / "model"), tmp_path / "student", **options)
    assert again["export"] == summary["export"]
    with pytest.raises(UserError, match="holds another run .augmented was"):
        runs.finetune(get_task("rte"), str(world / "model"), tmp_path / "student", **options | {"augmented": None})
    with pytest.raises(UserError, match="was made of another task"):
        read_augmented(world / "stsb_augmented", load_data(get_task("rte"), data), [POINT])
    with pytest.raises(UserError, match="augmented.jsonl is missing"):
        read_augmented(tmp_path, load_data(get_task("rte"), data), [POINT])


def test_rows_that_were_edited_are_told_by_their_line(world, tmp_path):
    data = load_data(get_task("rte"), str(world / "rte"))
    shutil.copytree(world / "rte_augmented", tmp_path / "edited")
    first, second = (tmp_path / "edited" / "augmented.jsonl").read_text().splitlines()[:2]
    texts = {name: None for name in json.loads(first)["texts"]}
    for line in (
        "",
        "null",
        "[1]",
        "{}",
        "{",
        json.dumps(json.loads(first) | {"texts": texts}),
        first.replace("copy", "c"),
    ):
        (tmp_path / "edited" / "augmented.jsonl").write_text(f"{second}\n{line}\n")
        with pytest.raises(UserError, match="--augmented .*edited: cannot be read .*line [12] .*; write it anew"):
            read_augmented(tmp_path / "edited", data, [POINT])


@pytest.mark.parametrize("name", ["rte", "squad"])
def test_a_folder_without_a_copy_of_what_is_used_is_refused(world, name):
    data = load_data(get_task(name), str(world / name))
    rows = [
        row
        for row in read_augmented(world / f"{name}_augmented", data, [POINT])
        if str(row["source"]).split()[-1] != "0"
    ]
    tokenizer, point = find_model_folder(str(world / "model"), "--model").tokenizer, replace(POINT, max_length=64)
    sets = encode_sets(data, tokenizer, point, 64)
    with pytest.raises(
        UserError, match=r"none of its rows is a copy .* \(finetune.max_train_samples = 1, .* raise these"
    ):
        add_augmented(sets.train, rows, data, tokenizer, replace(point, max_train_samples=1), 64)


def test_more_copies_than_there_are_is_told_before_a_model_is_loaded(world, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "load_for_task", None)
    points = [replace(POINT, augmented_copies=copies) for copies in (3, 4)]
    with pytest.raises(UserError, match="augmented_copies = 4: --augmented has 3 copies of each example; give at most"):
        runs.finetune(
            get_task("rte"),
            str(world / "model"),
            tmp_path / "student",
            data=str(world / "rte"),
            points=points,
            seeds=[0],
            augmented=str(world / "rte_augmented"),
        )
