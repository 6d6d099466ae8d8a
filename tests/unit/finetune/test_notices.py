"""A fine-tuning counts and reports everything that it does not read, or reads otherwise than one may expect."""

import json

import numpy as np
import pytest

from ds_distill.finetune import runs
from ds_distill.finetune.config import FinetuneConfig
from ds_distill.finetune.features import Features
from ds_distill.finetune.notices import log_scale_mismatch
from ds_distill.tasks.catalog import get_task
from tests.tiny import POSITIONS, save_encoder

QUICK = {"epochs": 1, "batch_size": 16, "precision": "fp32"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_encoder("distilbert", tmp_path_factory.mktemp("encoder"))


def write(folder, task, texts, labels=(0, 1)):
    """Write the same examples for training and for scoring."""
    folder.mkdir(exist_ok=True)
    rows = [
        {task.texts[0]: text, task.texts[-1]: text, "label": labels[i % len(labels)]} for i, text in enumerate(texts)
    ]
    for split in ("train", *task.validation):
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


def read_stderr(capsys) -> list[str]:
    return [
        line.split("\r")[-1]
        for line in capsys.readouterr().err.splitlines()
        if not line.endswith("]") and "%|" not in line.split("\r")[-1]
    ]


def test_what_is_cut_is_said_and_in_the_summary(encoder, tmp_path, capsys):
    data = write(tmp_path / "data", get_task("sst2"), ["a small village " * 30] * 5 + ["a small village"] * 35)
    summary = runs.finetune(
        get_task("sst2"),
        str(encoder),
        tmp_path / "a",
        points=[FinetuneConfig(max_length=12, **QUICK)],
        seeds=[0],
        data=data,
    )
    assert (
        summary["truncated"] == {"train": 5, "dev": 5}
        and summary["settings"]["max_length"] == 12
        and summary["unknown"] == {"train": 0, "dev": 0}
    )
    [line] = [line for line in read_stderr(capsys) if "truncated" in line]
    assert line == (
        "sst2: examples longer than 12 tokens are truncated on the right: 5 of 40 (train), 5 of 40 (dev); the model "
        f"can read {POSITIONS} tokens (raise finetune.max_length)"
    )
    point = FinetuneConfig(max_length=1024, **QUICK)
    summary = runs.finetune(get_task("sst2"), str(encoder), tmp_path / "b", points=[point], seeds=[0], data=data)
    messages = read_stderr(capsys)
    assert (
        summary["settings"]["max_length"]
        == POSITIONS
        == json.loads((tmp_path / "b/seed=0/model/config.json").read_text())["finetuning_length"]
    )
    assert (
        f"finetune.max_length = 1024: the model has only {POSITIONS} positions, so {POSITIONS} tokens of each "
        "example are read" in messages
    )
    assert any(
        "truncated on the right: 5 of 40 (train), 5 of 40 (dev)" in line and "finetune.max_length" not in line
        for line in messages
    )


def test_a_trace_is_counted_and_not_said(encoder, tmp_path, capsys):
    data = write(tmp_path / "data", get_task("sst2"), ["a small village " * 30] + ["a small village"] * 149)
    summary = runs.finetune(
        get_task("sst2"),
        str(encoder),
        tmp_path / "a",
        points=[FinetuneConfig(max_length=12, **QUICK)],
        seeds=[0],
        data=data,
    )
    assert summary["truncated"] == {"train": 1, "dev": 1} and not [
        line for line in read_stderr(capsys) if "truncated" in line
    ]


def test_text_that_the_vocabulary_does_not_hold_is_said(encoder, tmp_path, capsys):
    data = write(tmp_path / "data", get_task("sst2"), ["это село", "a small village"] * 20)
    summary = runs.finetune(
        get_task("sst2"), str(encoder), tmp_path / "a", points=[FinetuneConfig(**QUICK)], seeds=[0], data=data
    )
    assert summary["unknown"]["dev"] >= 40
    assert [
        line
        for line in read_stderr(capsys)
        if line.startswith("sst2: some tokens of the texts are unknown to the tokenizer ([UNK]): ")
    ]


def test_two_points_of_one_length_are_two_points(encoder, tmp_path):
    """Both lengths exceed what the model reads.

    Each seed of each is a run, and the summary has the length that was used.
    """
    data = write(tmp_path / "data", get_task("sst2"), ["a small village"] * 16)
    points = [FinetuneConfig(max_length=length, **QUICK) for length in (512, 1024)]
    summary = runs.finetune(get_task("sst2"), str(encoder), tmp_path / "a", points=points, seeds=[0, 1], data=data)
    assert [run["seed"] for run in summary["seeds"]] == [0, 1] and [
        point["settings"]["max_length"] for point in summary["grid"]
    ] == [POSITIONS, POSITIONS]


def test_a_score_of_nothing_is_null_in_the_summary(encoder, tmp_path):
    """Labels of a single value have no correlation; the run ends and reports that."""
    data = write(
        tmp_path / "data", get_task("stsb"), ["a small village", "a village near the coast"] * 8, labels=(2.0,)
    )
    summary = runs.finetune(
        get_task("stsb"), str(encoder), tmp_path / "a", points=[FinetuneConfig(**QUICK)], seeds=[0, 1], data=data
    )
    assert (
        summary["pearson"] is None
        and summary["metrics"] == {"pearson": None, "spearman": None}
        and summary["export"].endswith("seed=0/model")
    )
    assert json.loads((tmp_path / "a/seed=0/result.json").read_text())["metrics"] == {"pearson": None, "spearman": None}


def test_questions_whose_answer_no_span_holds_are_left_out_of_training(encoder, tmp_path, capsys):
    task, rows = get_task("squad"), []
    for i in range(12):
        context = "a small village near the coast " + ("where the road ends and the sea begins " * 9 if i < 3 else "")
        answer = context[2:250].strip() if i < 3 else "village"
        rows.append(
            {
                "id": str(i),
                "question": "where?",
                "context": context,
                "answers": {"text": [answer], "answer_start": [context.index(answer)]},
            }
        )
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    summary = runs.finetune(
        task,
        str(encoder),
        tmp_path / "a",
        points=[FinetuneConfig(max_length=48, **QUICK)],
        seeds=[0],
        data=str(tmp_path),
    )
    assert (
        summary["left_out"] == {"train": {"questions whose answer no part of the context holds": 3}}
        and summary["examples"]["dev"] == 12
    )
    assert (
        "squad: 3 of 12 training questions whose answer no part of the context holds are not trained on"
        in read_stderr(capsys)
    )


@pytest.mark.parametrize(
    ("scale", "offset", "noise", "is_said"),
    [
        (1.0, 0.0, 0.5, False),
        (1.0, 0.0, 1.0, False),
        (0.6, 1.0, 0.3, False),
        (0.9, 0.3, 0.1, False),
        (0.0, 2.5, 1.0, False),
        (0.2, 0.0, 0.05, True),
        (1.0, 2.0, 0.3, True),
        (0.2, 2.0, 0.05, True),
        (20.0, -48.0, 3.0, True),
        (0.0, 0.2, 0.0, True),
    ],
)
def test_a_teacher_of_another_scale_is_said(capsys, scale, offset, noise, is_said):
    """STS-B is learned on 0 to 5 here and on 0 to 1 elsewhere.

    A weak teacher on the same scale must not be reported.
    """
    random = np.random.default_rng(0)
    labels = random.uniform(0, 5, 200)
    scores = scale * labels + offset + noise * random.normal(size=200)
    # beside them, augmented texts with scores alike, of whose labels none is their own
    labels, scores = np.concatenate([labels, np.full(400, labels[0])]), np.tile(scores, 3)
    train = Features(
        {"input_ids": [[1]] * 600},
        {"labels": labels.tolist()},
        [np.array([score], np.float32) for score in scores],
        labeled=[True] * 200 + [False] * 400,
    )
    log_scale_mismatch("--teacher T", train)
    stderr = capsys.readouterr().err
    assert (
        "--teacher T: its scores, " in stderr
        and "another scale than the labels, 0." in stderr
        and stderr.count("\n") == 1
    ) == is_said
    assert is_said or not stderr


def test_the_card_of_the_folder_says_what_stands_beside_its_score(encoder, tmp_path):
    data = write(tmp_path / "data", get_task("sst2"), ["a small village " * 30] * 5 + ["a small village"] * 35)
    point = FinetuneConfig(max_length=12, **QUICK)
    summary = runs.finetune(get_task("sst2"), str(encoder), tmp_path / "a", points=[point], seeds=[0], data=data)
    card = (tmp_path / "a/seed=0/model/README.md").read_text()
    assert "Not read: parts of 5 truncated examples (train), parts of 5 truncated examples (dev)." in card
    assert f"{summary['accuracy']:.3f}" in card and '"length": 12' in card
    assert "| constant answer |" in card and f"| {summary['constant']['accuracy']:.3f} " in card
    data = write(tmp_path / "short", get_task("sst2"), ["a small village"] * 16)
    runs.finetune(
        get_task("sst2"), str(encoder), tmp_path / "b", points=[FinetuneConfig(**QUICK)], seeds=[0], data=data
    )
    card = (tmp_path / "b/seed=0/model/README.md").read_text()
    assert "Not read" not in card and f'"length": {POSITIONS}' in card, (
        "the length that was used, not the 0 that was asked for"
    )
