"""Test `ds-distill finetune`, `study` and `report` as a user runs them, on tiny data in the tasks' own form."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from tests.start import ROOT, Process, ds_distill

WORDS = "the small model reads what a large one wrote and keeps most of it because both see every word of text".split()
QUICK = [
    "--finetune.epochs",
    8,
    "--finetune.batch_size",
    16,
    "--finetune.learning_rate",
    3e-3,
    "--finetune.precision",
    "fp32",
]


def last_line(done) -> dict:
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def sentence(number: int) -> str:
    return " ".join(WORDS[(number * 7 + i * (1 + number % 3)) % len(WORDS)] for i in range(8))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Folders of tiny tasks.

    sst2 asks whether a certain word stands first, stsb asks the same as a number, and squad_v2 asks
    for a word of the context, or for none.
    """
    folder = tmp_path_factory.mktemp("tasks")
    for split, count in (("train", 96), ("validation", 32)):
        rows = [{"sentence": f"{'small' if i % 2 else 'large'} {sentence(i)}", "label": i % 2} for i in range(count)]
        pairs = [
            {"sentence1": row["sentence"], "sentence2": sentence(i), "label": 5.0 * row["label"]}
            for i, row in enumerate(rows)
        ]
        for task, lines in (("sst2", rows), ("stsb", pairs)):
            (folder / task).mkdir(exist_ok=True)
            (folder / task / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        qas = []
        for i in range(count // 2):
            context = sentence(i)
            answer = context.split()[2]
            answers = [{"text": answer, "answer_start": context.index(answer)}] if i % 3 else []
            question = {
                "id": f"{split}{i}",
                "question": "what word is it",
                "answers": answers,
                "is_impossible": not answers,
            }
            qas.append({"context": context, "qas": [question]})
        (folder / "squad_v2").mkdir(exist_ok=True)
        (folder / "squad_v2" / f"{split}.json").write_text(
            json.dumps({"version": "v2.0", "data": [{"title": "T", "paragraphs": qas}]})
        )
    return folder


@pytest.fixture(scope="module")
def tuned(world, tasks):
    """Return (folder, summary) of the teacher fine-tuned on sst2, with two seeds and a grid."""
    output = world / "sst2"
    done = ds_distill(
        "finetune",
        "--task",
        "sst2",
        "--model",
        world / "teacher",
        "--data",
        tasks / "sst2",
        "--output",
        output,
        "--seeds",
        2,
        "--grid",
        "lr=1e-7,3e-3",
        *QUICK,
    )
    assert "| median" in done.stdout and "| constant answer" in done.stdout
    return output, last_line(done)


def test_each_run_reports_its_losses_and_scores(tuned):
    output, _ = tuned
    runs = list(output.glob("*/result.json"))
    assert len(runs) == 4
    for file in runs:
        result = json.loads(file.read_text())
        events = EventAccumulator(str(file.parent / "tensorboard"), size_guidance={"scalars": 0}).Reload()
        losses, score = events.Scalars("loss/total"), events.Scalars("dev/accuracy")
        assert [[event.step, pytest.approx(event.value)] for event in losses] == result["losses"] != []
        assert [(event.step, event.value) for event in score] == [(48, pytest.approx(result["metrics"]["accuracy"]))]
        assert {"train/lr", "train/grad_norm", "train/epoch", "train/steps_per_second"} <= {*events.Tags()["scalars"]}


def test_seeds_and_grid_give_the_median_of_the_best(tuned):
    output, summary = tuned
    assert (
        summary["metric"] == "accuracy"
        and len(summary["seeds"]) == 2
        and summary["examples"] == {"train": 96, "dev": 32}
    )
    assert summary["settings"]["learning_rate"] == 3e-3 and summary["accuracy"] > 0.9, "a word decides: it is learnt"
    assert {point["settings"]["learning_rate"]: point["accuracy"] for point in summary["grid"]}[1e-7] < 0.8
    model = AutoModelForSequenceClassification.from_pretrained(summary["export"])
    assert model.config.id2label == {0: "negative", 1: "positive"} and model.config.finetuning_task == "sst2"
    assert json.loads((output / "summary.json").read_text())["accuracy"] == summary["accuracy"]


def test_a_plan_goes_on_run_by_run(tuned, world, tasks):
    output, summary = tuned
    results = sorted(output.glob("*/result.json"))
    assert len(results) == 4
    kept = {file: file.stat().st_mtime_ns for file in results[1:]}
    results[0].unlink()
    again = last_line(
        ds_distill(
            "finetune",
            "--task",
            "sst2",
            "--model",
            world / "teacher",
            "--data",
            tasks / "sst2",
            "--output",
            output,
            "--seeds",
            2,
            "--grid",
            "lr=1e-7,3e-3",
            *QUICK,
        )
    )
    assert {file: file.stat().st_mtime_ns for file in results[1:]} == kept and results[0].is_file()
    for key in ("accuracy", "seeds", "grid"):
        assert again[key] == summary[key], "the same run again"


def test_second_distillation_keeps_the_teachers_outputs(tuned, world, tasks):
    _, teacher = tuned
    output = world / "second"
    words = (
        "finetune",
        "--task",
        "sst2",
        "--model",
        world / "teacher",
        "--teacher",
        teacher["export"],
        "--data",
        tasks / "sst2",
        "--output",
        output,
        *QUICK,
        "--finetune.hard_label_weight",
        0.0,
        "--finetune.soft_label_weight",
        1.0,
        "--finetune.match",
        "[{loss: cosine, layers: uniform, weight: 0.1}, {loss: relation, layers: last}]",
        "--finetune.layers_first",
        0.2,
    )
    summary = last_line(ds_distill(*words))
    assert summary["accuracy"] > 0.9, "from soft targets alone"
    assert len(list((output / "teacher").glob("*.safetensors"))) == 1


def test_a_teacher_of_several_tasks_teaches_without_tasks(world, tasks, common, tmp_path):
    tuned = tmp_path / "tuned"
    done = ds_distill(
        *("multitask", "--model", world / "teacher", "--tasks", "sst2", "stsb", "squad_v2", "--data", tasks),
        *("--corpus", world / "text.txt", "--mlm_fraction", 0.25, "--output", tuned, *QUICK),
    )
    summary = last_line(done)
    assert "| sst2" in done.stdout and "| after" in done.stdout
    assert summary["tasks"]["squad_v2"]["has_answer_f1"] > 0.3, "nothing said scores 0"
    assert summary["heldout_mask_loss"] < summary["teacher_heldout_mask_loss"], "a random teacher knew no words"
    events = EventAccumulator(str(tuned / "tensorboard")).Reload().Tags()["scalars"]
    assert {"loss/total", "loss/sst2", "loss/masked-lm", "dev/sst2/accuracy"} <= {*events}
    student = last_line(ds_distill("distill", "--teacher", tuned, *common, "--output", tmp_path / "student"))
    assert student["teacher_heldout_mask_loss"] == pytest.approx(summary["heldout_mask_loss"], abs=0.5)
    assert student["heldout_mask_loss"] is not None


SQUAD = {"f1", "exact_match", "threshold", "has_answer_f1", "no_answer_f1"}


@pytest.mark.parametrize(("task", "metrics"), [("stsb", {"pearson", "spearman"}), ("squad_v2", SQUAD)])
def test_numbers_and_answers(world, tasks, tmp_path, task, metrics):
    words = (
        "finetune",
        "--task",
        task,
        "--model",
        world / "teacher",
        "--data",
        tasks / task,
        *QUICK,
        "--finetune.epochs",
        15,
    )
    exported = tmp_path / "first" / "seed=0" / "model"
    runs = [(*words, "--output", tmp_path / "first")]
    runs += [(*words, "--teacher", exported, "--output", tmp_path / "second")]
    (tmp_path / "commands.json").write_text(json.dumps([[str(word) for word in run] for run in runs]))
    done = Process("tests.end_to_end.commands_worker", tmp_path / "commands.json").wait()
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("first", "second"))
    assert set(first["metrics"]) == metrics and first["export"] == str(exported)
    learnt = "has_answer_f1" if task == "squad_v2" else first["metric"]
    assert first["metrics"][learnt] > 0.3, "nothing said scores 0"
    auto = AutoModelForQuestionAnswering if task == "squad_v2" else AutoModelForSequenceClassification
    auto.from_pretrained(first["export"])
    assert second["metrics"][learnt] > 0.3


def test_mistakes_are_one_sentence(tuned, world, tasks, tmp_path):
    _, teacher = tuned
    (tmp_path / "empty.yaml").write_text("finetune:\ngrid:\n")  # an empty key stands for its defaults
    for words, message in (
        (
            (
                "--config",
                tmp_path / "empty.yaml",
                "--task",
                "sst2",
                "--model",
                world / "teacher",
                "--data",
                tmp_path / "none",
            ),
            "there is no such folder",
        ),
        (("--task", "sst", "--model", world / "teacher", "--data", tasks / "sst2"), "did you mean sst2"),
        (("--task", "rte", "--model", world / "teacher", "--data", tasks / "sst2"), "no text in column sentence1"),
        (
            ("--task", "stsb", "--model", teacher["export"], "--data", tasks / "stsb"),
            "was fine-tuned on sst2, not on stsb",
        ),
        (
            ("--task", "sst2", "--model", world / "teacher", "--teacher", world / "teacher", "--data", tasks / "sst2"),
            "a teacher that was fine-tuned on sst2",
        ),
        (("--task", "sst2", "--model", world / "teacher", "--data", tmp_path / "none"), "there is no such folder"),
        (
            ("--task", "sst2", "--model", world / "teacher", "--data", tasks / "sst2", "--finetune.epoch", 3),
            "did you mean",
        ),
    ):
        done = ds_distill("finetune", *words, "--output", tmp_path / "out")
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr[-2000:]


def test_a_study_goes_on_and_is_reported(world, tasks, common, tmp_path):
    base = tmp_path / "base.yaml"
    base.write_text(
        "data: {sequence_length: 32, heldout_fraction: 0.05}\n"
        "training: {global_batch_size: 8, micro_batch_size: 4, max_tokens: 1280, "
        "precision: fp32, learning_rate: 1.0e-3}\n"
    )
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        f"base: {base}\nstudents:\n  without KL: {{losses.kl: 0}}\ntasks: [sst2]\nseeds: 1\n"
        "copies: 1\nvariants:\n"
        "  all levers: {student: without KL, task_distillation: true, teachers: all, augmented: true,\n"
        "    finetune: {epochs: 1, layers_first: 0.5, match: [{loss: cosine}], average_weights: 0.33}}\n"
        "finetune: {epochs: 4, batch_size: 16, learning_rate: 3.0e-3, precision: fp32}\n"
    )
    words = (
        "study",
        "--config",
        plan,
        "--teacher",
        world / "teacher",
        "--corpus",
        world / "text.txt",
        "--data",
        tasks,
        "--output",
        tmp_path / "study",
    )
    summary = last_line(ds_distill(*words, "--launch", ROOT / "launch.sh", "--jobs", 2))
    names = ["teacher", "without KL", "all levers"]
    assert [row["model"] for row in summary["rows"]] == names
    levers = json.loads((tmp_path / "study" / "tasks" / "sst2" / "all_levers" / "summary.json").read_text())
    assert levers["examples"]["augmented"] > 0 and levers["settings"]["match"][0]["loss"] == "cosine"
    assert all("sst2" in row["tasks"] for row in summary["rows"]) and summary["rows"][1]["heldout_mlm_loss"] > 0
    assert "sst2" in (tmp_path / "study" / "logs" / "sst2_without_KL.log").read_text(), (
        "side by side each speaks to a file of its own"
    )
    kept = {
        file: file.stat().st_mtime_ns
        for file in (tmp_path / "study").rglob("summary.json")
        if file.parent != tmp_path / "study"
    }
    again = last_line(ds_distill(*words))
    assert again["rows"] == summary["rows"] and {file: file.stat().st_mtime_ns for file in kept} == kept, (
        "nothing is done twice"
    )
    report = last_line(ds_distill("report", tmp_path / "study", "--output", tmp_path / "page"))
    page = (tmp_path / "page" / "report.html").read_text()
    assert (
        "DistilBERT, the paper" in page
        and "of the teacher" in page
        and "Pretraining" in report["sections"]
        and "Paired comparisons" in report["sections"]
        and "<svg" in page
    )
    assert "Other metrics of the tasks" not in report["sections"], "accuracy is all that sst2 has"
    missing = ds_distill("report", tmp_path)
    assert missing.returncode == 2 and "neither a study" in missing.stderr
