"""Test heads, data as models read it, and interrupted runs, in one process on tiny models."""

import json
import math
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from ds_distill.config.losses import Match
from ds_distill.data.tokenizer import load_tokenizer, train_wordpiece
from ds_distill.exporters.parity import SAMPLE
from ds_distill.finetune import one_run, runs
from ds_distill.finetune import trainer as trainer_module
from ds_distill.finetune.config import FinetuneConfig
from ds_distill.finetune.data import encode_sets, load_data
from ds_distill.finetune.dev_outputs import score_again
from ds_distill.finetune.features import ByLength, Collator
from ds_distill.finetune.heads import load_for_task
from ds_distill.finetune.inner_terms import InnerTerms
from ds_distill.finetune.predict import predict
from ds_distill.losses.task_distillation import temperature_kl
from ds_distill.models.families import INPUTS, get_input_names
from ds_distill.models.loading import load_masked_lm
from ds_distill.models.saving import save_model_folder
from ds_distill.models.student import build_student
from ds_distill.tasks.catalog import get_task
from ds_distill.tasks.dev_outputs import FILE, DevOutputs
from ds_distill.utils.errors import StoppedError, UserError

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """bert/ and distilbert/ are masked-LM models with one tokenizer; mnli/ and rte/ are tasks."""
    folder = tmp_path_factory.mktemp("runs")
    lines = SAMPLE.read_text().splitlines()
    torch.manual_seed(0)
    for name in ("bert", "distilbert"):
        tokenizer = train_wordpiece(lines, 300, folder / name)
        model = (
            BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **SIZES))
            if name == "bert"
            else DistilBertForMaskedLM(
                DistilBertConfig(
                    vocab_size=len(tokenizer), dim=32, hidden_dim=64, n_heads=2, n_layers=1, max_position_embeddings=64
                )
            )
        )
        model.save_pretrained(folder / name)
    words = [line.split() for line in lines if len(line.split()) > 6]
    for task, first, second, labels in (("mnli", "premise", "hypothesis", 3), ("rte", "sentence1", "sentence2", 2)):
        (folder / task).mkdir()
        for split in ("train", *get_task(task).validation):
            rows = [
                {first: " ".join(w[: 3 + i % 4]), second: " ".join(w[-3:]), "label": i % labels}
                for i, w in enumerate((words * 40)[:40])
            ]
            (folder / task / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def classifier(world, path, **config):
    torch.manual_seed(1)
    vocabulary = len(load_tokenizer(world / "bert"))
    BertForSequenceClassification(BertConfig(vocab_size=vocabulary, **SIZES, **config)).save_pretrained(path)
    return str(path)


def test_a_teachers_labels_are_put_in_the_tasks_order(world, tmp_path):
    labels = {0: "CONTRADICTION", 1: "neutral", 2: "Entailment"}
    path = classifier(world, tmp_path / "t", id2label=labels, label2id={name: i for i, name in labels.items()})
    ids = torch.arange(5, 15).view(1, -1)
    plain = BertForSequenceClassification.from_pretrained(path).eval()(ids).logits
    model = load_for_task(path, get_task("mnli"), "teacher", tuned=True).eval()
    assert torch.equal(model(ids).logits, plain[:, [2, 1, 0]]) and model.config.id2label[0] == "entailment"


@pytest.mark.parametrize(
    ("config", "task", "tuned", "words"),
    [
        (
            {"num_labels": 3},
            "rte",
            True,
            "its labels are LABEL_0, LABEL_1, LABEL_2, but those of rte are entailment, not_entailment",
        ),
        ({"num_labels": 3}, "rte", False, "give the pretrained model that it came from"),
        (
            {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}},
            "rte",
            True,
            "its labels are negative, positive",
        ),
        ({"num_labels": 2}, "stsb", False, "those of stsb are one number"),
        ({"num_labels": 2}, "squad", True, "needs a teacher that was fine-tuned on squad"),
        (
            {"num_labels": 2},
            "squad",
            False,
            "a BertForSequenceClassification, which was fine-tuned for another kind of task than squad",
        ),
        ({"num_labels": 2, "finetuning_task": "SST-2"}, "rte", True, "was fine-tuned on SST-2, not on rte"),
    ],
)
def test_a_folder_of_another_task_is_refused(world, tmp_path, config, task, tuned, words):
    with pytest.raises(UserError, match=words):
        load_for_task(classifier(world, tmp_path / "t", **config), get_task(task), "teacher", tuned=tuned)


def test_names_are_compared_as_people_write_them(world, tmp_path):
    path = classifier(world, tmp_path / "t", num_labels=2, finetuning_task="SST-2")
    assert load_for_task(path, get_task("sst2"), "teacher", tuned=True).config.finetuning_task == "sst2"


def test_weights_that_are_missing_are_not_made_up(world, tmp_path):
    path = tmp_path / "t"
    classifier(world, path, num_labels=2)
    weights = load_file(path / "model.safetensors")
    for key in ("classifier.weight", "bert.encoder.layer.0.output.dense.weight"):
        save_file(
            {name: value for name, value in weights.items() if name != key},
            path / "model.safetensors",
            metadata={"format": "pt"},
        )
        with pytest.raises(UserError, match=f"the weights lack {key}"):
            load_for_task(str(path), get_task("rte"), "teacher", tuned=True)


def test_each_model_gets_its_own_inputs(world):
    """A DistilBERT student has no token types; its BERT teacher has them, and they matter to it."""
    task, tokenizer = get_task("rte"), load_tokenizer(world / "distilbert")
    sets, collator = (
        encode_sets(load_data(task, str(world / "rte")), tokenizer, FinetuneConfig(), 64),
        Collator(tokenizer),
    )
    teacher, student = (load_for_task(str(world / name), task, "model", tuned=False) for name in ("bert", "distilbert"))
    assert get_input_names(teacher, INPUTS) == list(INPUTS) and get_input_names(student, INPUTS) == list(INPUTS[:2])
    row = sets.train[0]
    actual = predict(teacher, sets.train, collator, 8, "t")[0]
    with torch.no_grad():
        one = teacher.eval()(**{name: torch.tensor([row[name]]) for name in INPUTS}).logits[0].numpy()
        flat = teacher(**{name: torch.tensor([row[name]]) for name in INPUTS[:2]}).logits[0].numpy()
    assert 1 in row["token_type_ids"] and abs(actual - one).max() < 1e-6 < abs(flat - one).max() / 10


def test_a_model_with_one_token_type_is_given_none():
    """A RoBERTa may have a tokenizer of BERT's kind, whose pairs have a second type for which there is no embedding."""
    sizes = {
        "vocab_size": 50,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
    }
    one, two = (RobertaForSequenceClassification(RobertaConfig(**sizes, type_vocab_size=types)) for types in (1, 2))
    assert get_input_names(one, INPUTS) == list(INPUTS[:2]) and get_input_names(two, INPUTS) == list(INPUTS)


def test_the_loss_is_the_weighted_sum(world, tmp_path):
    task, tokenizer = get_task("rte"), load_tokenizer(world / "bert")
    match = [Match("cosine", layers="last", weight=0.5)]
    settings = FinetuneConfig(
        hard_label_weight=0.3, soft_label_weight=0.6, match=match, temperature=3.0, layers_first=0.25
    )
    sets, collator = encode_sets(load_data(task, str(world / "rte")), tokenizer, settings, 64), Collator(tokenizer)
    teacher, student = (
        load_for_task(str(world / name), task, "model", tuned=False).eval() for name in ("bert", "distilbert")
    )
    sets.train.teacher = predict(teacher, sets.train, collator, 4, "")
    arguments = trainer_module.TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", remove_unused_columns=False
    )
    trainer = trainer_module.FinetuneTrainer(
        model=student,
        args=arguments,
        data_collator=collator,
        settings=settings,
        task=task,
        teacher=teacher,
        inner=InnerTerms(match, student.config, teacher.config, None, torch.device("cpu")),
    )
    trainer.state.max_steps, trainer.state.global_step = 8, 2
    batch = collator([sets.train[i] for i in range(6)])
    with torch.no_grad():
        loss = trainer.compute_loss(student, dict(batch))
        student_output = student(batch["input_ids"], batch["attention_mask"], output_hidden_states=True)
        teacher_output = teacher(**{name: batch[name] for name in INPUTS}, output_hidden_states=True)
        states = student_output.hidden_states[-1], teacher_output.hidden_states[-1]
        distance = 1 - torch.nn.functional.cosine_similarity(*states, dim=-1)
        inner = 0.5 * distance[batch["attention_mask"].bool()].mean()
        expected = (
            0.3 * torch.nn.functional.cross_entropy(student_output.logits, batch["labels"])
            + 0.6 * temperature_kl(student_output.logits, teacher_output.logits, 3.0)
            + inner
        )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    trainer.state.global_step = 1  # in the first quarter of the steps
    with torch.no_grad():
        assert trainer.compute_loss(student, dict(batch)).item() == pytest.approx(inner.item(), rel=1e-5)


def test_the_order_is_by_seed_and_epoch_and_batches_are_of_like_length():
    lengths, batch = np.random.default_rng(0).integers(5, 128, 1003), 8
    order = ByLength(lengths, batch, seed=1)
    first = list(order)
    assert sorted(first) == list(range(1003)) and list(order) == first == list(ByLength(lengths, batch, seed=1))
    assert first != list(ByLength(lengths, batch, seed=2))
    order.set_epoch(1)
    assert list(order) != first and list(order) == list(order)
    longest = [max(lengths[first[start : start + batch]]) for start in range(0, 1003, batch)]
    assert (
        sum(longest) * batch < 1.1 * sum(lengths) and len({*longest[:20]}) > 10
    )  # the batches themselves have no order
    assert sorted(ByLength([7, 7, 9], 8, seed=0)) == [0, 1, 2]


def test_a_checkpoint_is_due_by_the_clock_of_the_last_one(tmp_path, monkeypatch):
    now, stop, control = [0.0], SimpleNamespace(requested=False), SimpleNamespace
    monkeypatch.setattr(trainer_module.time, "monotonic", lambda: now[0])
    callback, arguments = trainer_module.SaveInTime(stop), SimpleNamespace(output_dir=str(tmp_path))

    def at(seconds):
        now[0], asked = seconds, control(should_save=False, should_training_stop=False)
        callback.on_step_end(arguments, None, asked)
        if asked.should_save:
            (tmp_path / f"checkpoint-{seconds}").mkdir()
            callback.on_save(arguments, SimpleNamespace(global_step=seconds), asked)
            assert [place.name for place in tmp_path.iterdir()] == [f"checkpoint-{seconds}"]
        return asked

    assert [seconds for seconds in (299, 300, 599, 601, 900, 901) if at(seconds).should_save] == [300, 601, 901]
    stop.requested = True
    assert at(902) == control(should_save=True, should_training_stop=True)


def test_a_run_that_is_broken_off_ends_as_if_it_had_not_been(world, tmp_path, monkeypatch):
    monkeypatch.setattr(one_run, "SAVE_EVERY", 4)
    monkeypatch.setattr(trainer_module, "SAVE_SECONDS", math.inf)
    point = FinetuneConfig(  # 5 steps per epoch; the mean is of the last 10 steps, and the last 8 are rounded
        epochs=4,
        batch_size=8,
        learning_rate=1e-3,
        precision="fp32",
        average_weights=0.5,
        quantize="onnx-int8",
        quantize_share=0.4,
    )
    epochs, order, bars, progress = [], ByLength.__iter__, [], runs.progress
    monkeypatch.setattr(
        runs, "progress", lambda *given, **options: bars.append(progress(*given, **options)) or bars[-1]
    )
    monkeypatch.setattr(ByLength, "__iter__", lambda self: epochs.append(self.epoch) or order(self))

    def run(name, points):
        return runs.finetune(
            get_task("rte"),
            str(world / "distilbert"),
            tmp_path / name,
            points=points,
            seeds=[0],
            data=str(world / "rte"),
        )

    whole = run("whole", [point])
    assert sorted({*epochs}) == [0, 1, 2, 3]
    step = trainer_module.ProgressBar.on_step_end
    left = tmp_path / "broken" / "seed=0"
    with monkeypatch.context() as patch:
        patch.setattr(
            trainer_module.ProgressBar,
            "on_step_end",
            lambda self, args, state, control, **kwargs: (
                signal.raise_signal(signal.SIGTERM) if state.global_step == 6 else None,
                step(self, args, state, control, **kwargs),
            )[1],
        )
        with pytest.raises(StoppedError, match="stopped at step 6 of 20; the same command resumes from"):
            run("broken", [point])
    assert (left / "checkpoints" / "checkpoint-6" / "trainer_state.json").is_file()
    with monkeypatch.context() as patch:
        patch.setattr(
            trainer_module.ProgressBar,
            "on_step_end",
            lambda self, args, state, control, **kwargs: (
                (_ for _ in ()).throw(KeyboardInterrupt)
                if state.global_step == 14
                else step(self, args, state, control, **kwargs)
            ),
        )
        with pytest.raises(KeyboardInterrupt):
            run("broken", [point])
    assert (left / "checkpoints" / "checkpoint-12" / "trainer_state.json").is_file() and not (
        left / "result.json"
    ).exists()
    (left / "checkpoints" / "checkpoint-16").mkdir()  # as if killed while it was being written
    (left / "checkpoints" / "checkpoint-17").mkdir()
    (left / "checkpoints" / "checkpoint-17" / "trainer_state.json").touch()  # as if the disk was full
    epochs.clear()
    assert run("broken", [point])["metrics"] == whole["metrics"] and sorted({*epochs}) == [2, 3], (
        "it goes on in the middle of the third"
    )
    assert (bars[-1].initial, bars[-1].n, bars[-1].total) == (12, 20, 20), (
        "what was done before is in the bar, not in its rate"
    )
    # Killed while its checkpoints were removed, a run is done all the same.
    (left / "checkpoints" / "checkpoint-20").mkdir(parents=True)
    (left / "checkpoints" / "checkpoint-20" / "trainer_state.json").write_text("{}")
    run("broken", [point])
    assert (bars[-1].initial, bars[-1].n) == (20, 20) and not (left / "checkpoints").exists()
    weights = [load_file(tmp_path / name / "seed=0" / "model" / "model.safetensors") for name in ("whole", "broken")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())

    # With other settings, finished runs stay and unfinished ones start from the beginning.
    others = [replace(point, epochs=2, learning_rate=1e-4)]
    with pytest.raises(
        UserError,
        match=r"holds another run \(finetune.learning_rate was 0.001, is 0.0001; finetune.epochs was 4, is 2\)",
    ):
        run("broken", others)
    (left / "result.json").unlink()
    other = run("broken", others)
    assert (
        other["settings"]["learning_rate"] == 1e-4
        and json.loads((left / "settings.json").read_text())["asked"]["epochs"] == 2
    )


@pytest.mark.promise("A task distillation that is killed ends as if it had not been, bit-equal, projections included")
def test_a_task_distillation_that_is_broken_off_ends_as_if_it_had_not_been(world, tmp_path, monkeypatch):
    """Its student is narrower than its teachers, of which there are two, and learns what lies inside one first."""
    monkeypatch.setattr(one_run, "SAVE_EVERY", 4)
    monkeypatch.setattr(trainer_module, "SAVE_SECONDS", math.inf)
    quick = FinetuneConfig(epochs=2, batch_size=8, learning_rate=1e-3, precision="fp32")

    def run(name, model, points, **options):
        place = {"data": str(world / "rte"), **options}
        return runs.finetune(get_task("rte"), str(model), tmp_path / name, points=points, **place)

    run("teacher", world / "bert", [quick], seeds=[0, 1])
    teachers = [str(tmp_path / "teacher" / f"seed={seed}" / "model") for seed in (0, 1)]
    narrow = build_student(load_masked_lm(str(world / "bert")), hidden_size=16, num_layers=1, dropout=0.0)
    save_model_folder(narrow, load_tokenizer(world / "bert"), tmp_path / "narrow")
    match = [Match("cosine", layers="last", weight=10.0), Match("relation", layers="last", weight=3.0)]
    point = replace(quick, match=match, layers_first=0.5, average_weights=0.5)
    whole = run("whole", tmp_path / "narrow", [point], seeds=[0], teachers=teachers)
    step = trainer_module.ProgressBar.on_step_end
    for at in (3, 7):

        def stop(self, args, state, control, at=at, **kwargs):
            if state.global_step == at:
                signal.raise_signal(signal.SIGTERM)
            step(self, args, state, control, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(trainer_module.ProgressBar, "on_step_end", stop)
            with pytest.raises(StoppedError, match=f"stopped at step {at} of 10"):
                run("broken", tmp_path / "narrow", [point], seeds=[0], teachers=teachers)
    assert run("broken", tmp_path / "narrow", [point], seeds=[0], teachers=teachers)["metrics"] == whole["metrics"]
    weights = [load_file(tmp_path / name / "seed=0" / "model" / "model.safetensors") for name in ("whole", "broken")]
    assert not any("projections" in name for name in weights[0])
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_what_a_run_answered_is_kept_and_can_be_made_again(world, tmp_path):
    """The task has two dev sets; of each, every example's answer gives the run's own score."""
    point = FinetuneConfig(epochs=1, learning_rate=1e-3, precision="fp32", max_train_samples=30)
    task, data = get_task("mnli"), str(world / "mnli")
    summary = runs.finetune(task, str(world / "bert"), tmp_path / "a", points=[point], seeds=[0], data=data)
    kept = DevOutputs.load(tmp_path / "a" / "seed=0" / FILE)
    for part, metric in (("dev", "accuracy"), ("dev_mismatched", "mismatched_accuracy")):
        right = kept.arrays[f"{part}.predicted"] == kept.arrays[f"{part}.labels"]
        assert len(right) == 40 and right.mean() == summary["metrics"][metric]
    assert summary["constant"] == {"accuracy": 14 / 40, "mismatched_accuracy": 14 / 40}
    (tmp_path / "a" / "seed=0" / FILE).unlink()
    again = score_again(tmp_path / "a" / "seed=0", load_data(task, data))
    assert again.data == kept.data and all(
        np.array_equal(again.arrays[name], kept.arrays[name]) for name in kept.arrays
    )
    assert (tmp_path / "a" / "seed=0" / FILE).is_file()
    changed = load_data(task, data)
    changed.dev["validation_matched"].labels = [(int(answer) + 1) % 3 for answer in kept.arrays["dev.predicted"]]
    with pytest.raises(UserError, match="its accuracy was .* on the files that there are now; give the data that"):
        score_again(tmp_path / "a" / "seed=0", changed)


def test_a_grid_over_what_is_read_reads_it_so(world, tmp_path, monkeypatch):
    read = []
    real = trainer_module.FinetuneTrainer
    monkeypatch.setattr(
        one_run,
        "FinetuneTrainer",
        lambda **kwargs: (
            read.append((len(kwargs["train_dataset"]), max(kwargs["train_dataset"].lengths))) or real(**kwargs)
        ),
    )
    points = [
        FinetuneConfig(epochs=1, batch_size=8, max_length=length, max_train_samples=most, precision="fp32")
        for length, most in ((8, 16), (0, 0))
    ]
    summary = runs.finetune(
        get_task("rte"), str(world / "distilbert"), tmp_path / "grid", points=points, seeds=[0], data=str(world / "rte")
    )
    assert read[0] == (16, 8) and read[1][0] == 40 and read[1][1] > 8 and len(summary["grid"]) == 2
    saved = [json.loads(file.read_text()) for file in (tmp_path / "grid").glob("*/model/tokenizer.json")]
    assert [tokenizer["truncation"] for tokenizer in saved] == [None, None], (
        "how long an example was is the run's, not the tokenizer's"
    )


def test_a_run_drops_and_attends_as_it_was_asked_to(world, tmp_path, monkeypatch):
    seen, real = [], trainer_module.FinetuneTrainer

    def note(model, **kwargs):
        block = model.bert.encoder.layer[0]
        seen.append((block.output.dropout.p, block.attention.self.dropout.p, model.config._attn_implementation))
        return real(model=model, **kwargs)

    monkeypatch.setattr(one_run, "FinetuneTrainer", note)
    settings = [("own", -1.0, "fp32"), ("none", 0.0, "bf16"), ("much", 0.3, "fp32")]
    for name, dropout, precision in settings:
        point = FinetuneConfig(epochs=1, batch_size=20, max_train_samples=20, dropout=dropout, precision=precision)
        summary = runs.finetune(
            get_task("rte"), str(world / "bert"), tmp_path / name, points=[point], seeds=[0], data=str(world / "rte")
        )
        assert summary["examples"] == {"train": 20, "dev": 40}
    assert [dropouts for *dropouts, _ in seen] == [[0.1, 0.1], [0.0, 0.0], [0.3, 0.3]]
    if not torch.cuda.is_available():
        assert [attention for *_, attention in seen] == ["sdpa", "eager", "sdpa"]
    kept = json.loads((tmp_path / "much" / "seed=0" / "model" / "config.json").read_text())
    assert (
        kept["hidden_dropout_prob"] == kept["attention_probs_dropout_prob"] == 0.3
        and "_attn_implementation" not in kept
    )


@pytest.mark.parametrize(
    "name, task, head",
    [("distilbert", "rte", "dropout"), ("distilbert", "squad", "qa_outputs"), ("bert", "rte", "dropout")],
)
def test_dropout_is_before_the_head_too(world, name, task, head):
    for dropout in (-1.0, 0.3):
        model = load_for_task(str(world / name), get_task(task), "model", tuned=False, dropout=dropout)
        rates = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
        assert hasattr(model, head) and (rates == {0.3} if dropout > 0 else rates != {0.3})


def test_the_first_examples_of_a_set_in_order_are_refused(world, tmp_path):
    rows = [json.dumps({"sentence": f"word {i}", "label": int(i >= 20)}) for i in range(40)]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows))
    with pytest.raises(
        UserError,
        match="finetune.max_train_samples = 20: none of the first 20 training examples of sst2 is labeled positive",
    ):
        runs.finetune(
            get_task("sst2"),
            str(world / "bert"),
            tmp_path / "out",
            points=[FinetuneConfig(max_train_samples=20)],
            seeds=[0],
            data=str(tmp_path),
        )


def test_a_folder_that_was_moved_names_its_model_where_it_is(world, tmp_path):
    def run(output):
        point = FinetuneConfig(epochs=1, batch_size=20, max_train_samples=20, precision="fp32")
        return runs.finetune(
            get_task("rte"), str(world / "bert"), output, points=[point], seeds=[0], data=str(world / "rte")
        )

    assert run(tmp_path / "first")["seeds"][0]["number_format"] == "fp32"
    (tmp_path / "first").rename(tmp_path / "second")
    assert run(tmp_path / "second")["export"] == str(tmp_path / "second" / "seed=0" / "model")


def test_outputs_that_are_no_numbers_are_said(world, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "predict", lambda *_: [np.array([np.nan, 0.0], dtype=np.float32)] * 40)
    with pytest.raises(
        UserError, match=r"seed 0: the model has diverged \(its outputs are not finite\); lower finetune.learning_rate"
    ):
        runs.finetune(
            get_task("rte"),
            str(world / "bert"),
            tmp_path,
            points=[FinetuneConfig(epochs=1, batch_size=20, max_train_samples=20, precision="fp32")],
            seeds=[0],
            data=str(world / "rte"),
        )


def test_a_teacher_of_another_vocabulary_is_refused(world, tmp_path):
    classifier(world, tmp_path / "t", num_labels=2)
    train_wordpiece(SAMPLE.read_text().splitlines(), 200, tmp_path / "t")
    with pytest.raises(UserError, match="its tokenizer differs from the student's"):
        runs.finetune(
            get_task("rte"),
            str(world / "distilbert"),
            tmp_path / "out",
            points=[FinetuneConfig()],
            seeds=[0],
            teachers=[str(tmp_path / "t")],
            data=str(world / "rte"),
        )


def test_what_batches_leave_behind_is_given_back(monkeypatch):
    given = []
    monkeypatch.setattr(trainer_module, "trim_heap", lambda: given.append(at))
    bar = trainer_module.ProgressBar(SimpleNamespace(update=lambda: None))
    for at in range(1, 101):
        bar.on_step_end(None, SimpleNamespace(global_step=at, log_history=[]), None)
    assert given == [25, 50, 75, 100]


@pytest.mark.parametrize(
    ("names", "task", "order"),
    [
        (["POSITIVE", "NEGATIVE"], "sst2", [1, 0]),
        (["pos", "neg"], "sst2", [1, 0]),
        (["LABEL_1", "LABEL_0"], "sst2", [1, 0]),
        (["1", "0"], "sst2", [1, 0]),
        (["Positiv", "Negativ"], "sst2", [1, 0]),
        (["True", "False"], "mrpc", [1, 0]),
        (["NOT EQUIVALENT", "Equivalent"], "mrpc", [0, 1]),
        (["neutral", "contradiction", "entailment"], "mnli", [2, 0, 1]),
        (["LABEL_1", "LABEL_2"], "rte", [0, 1]),
        (["2", "3", "1"], "mnli", [2, 0, 1]),
        (["ENTAILMENT", "not entailment"], "wnli", [1, 0]),
    ],
)
def test_a_head_is_put_in_order_whatever_its_labels_look_like(world, tmp_path, names, task, order):
    path = classifier(
        world, tmp_path / "t", id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}
    )
    ids = torch.arange(5, 15).view(1, -1)
    plain = BertForSequenceClassification.from_pretrained(path).eval()(ids).logits
    model = load_for_task(path, get_task(task), "teacher", tuned=True).eval()
    assert torch.allclose(model(ids).logits, plain[:, order], atol=1e-7, rtol=0) and list(
        model.config.id2label.values()
    ) == list(get_task(task).labels)


@pytest.mark.parametrize(
    ("names", "task"),
    [
        (["否定的", "肯定的"], "sst2"),
        (["négatif", "positif"], "sst2"),
        (["positive", "Positive"], "sst2"),
        (["1", "5"], "sst2"),
        (["True", "False"], "rte"),
        (["a", "b"], "rte"),
        (["yes", "entailment"], "rte"),
    ],
)
def test_a_head_whose_labels_are_not_certain_is_refused(world, tmp_path, names, task):
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    path = classifier(world, tmp_path / "t", **labels)
    with pytest.raises(UserError, match=f"its labels are {', '.join(names)}, but those of {task} are"):
        load_for_task(path, get_task(task), "teacher", tuned=True)
