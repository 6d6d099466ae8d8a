"""Test the estimate of a run for GPUs that are not here, from a config alone."""

import functools
import json
import os
import re
from types import SimpleNamespace

import pytest
import torch
from transformers import BertConfig, RobertaConfig

from ds_distill.cli import main
from ds_distill.estimate import speed
from ds_distill.estimate.corpora import parse_tokens, size_of_corpus
from ds_distill.estimate.hardware import DEVICES, H100_SMALL
from ds_distill.estimate.known_models import find_known_model
from ds_distill.estimate.plan import plan
from ds_distill.estimate.report import format_plan
from ds_distill.estimate.result import expected_result
from ds_distill.recipe import Data, Losses, Match, Recipe, Stage, Training
from ds_distill.utils.errors import UserError

BERT = find_known_model("google-bert/bert-base-uncased")


def recipe(micro_batch_size=128, **training) -> Recipe:
    return Recipe(
        data=Data(sequence_length=128),
        training=Training(**{"global_batch_size": 1024, "micro_batch_size": micro_batch_size, "epochs": 1} | training),
    )


def estimate(model=BERT, given=None, *, gpu="h100", ranks=8, epoch=None, price=None, rate=None, memory=None):
    return plan(given or recipe(), [model], None, ranks, memory, rate, gpu, epoch, price)


@functools.cache
def usual() -> dict:
    return estimate()


def test_the_answer_is_one_sentence_then_a_table_and_the_sources(capsys):
    words = "--teacher google-bert/bert-base-uncased --gpu h100 --ranks 8 --corpus wikipedia+bookcorpus"
    assert main(["estimate", *words.split(), "--training.epochs", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    summary, printed = json.loads(lines[-1]), "\n".join(lines[:-1])
    assert " ".join(printed.split()).startswith(f"{summary['sentence']} teacher 109,514,298 parameters ")
    assert re.fullmatch(
        r"Estimate: distilling google-bert/bert-base-uncased on 8 × H100 SXM 80 GB fits at ZeRO stage \d with "
        r"micro-batches of \d+ × 128 tokens, which need [\d.]+ of 74.5 GiB per device, and 15.9 billion tokens "
        r"\(3 epochs of English Wikipedia and BookCorpus\) take about [\d.]+ hours \(extrapolated\) and cost about "
        r"\$[\d.]+ at \$3.00 per device and hour\.",
        summary["sentence"],
    ), summary["sentence"]
    assert summary["tokens"] == 15_900_000_000
    assert summary["steps"] == -(-summary["tokens"] // summary["tokens_per_step"])
    assert summary["dollars"] == pytest.approx(8 * summary["hours"] * 3.0, rel=0.01)
    assert H100_SMALL.report in printed and "seonglae/wikipedia_token" in printed and "mercatus-ai.com" in printed


def test_a_config_alone_suffices(capsys, tmp_path):
    BertConfig(num_hidden_layers=4, architectures=["BertForMaskedLM"]).save_pretrained(tmp_path)
    for teacher in (tmp_path, tmp_path / "config.json"):
        assert main(["estimate", "--teacher", str(teacher), "--gpu", "a100", "--tokens", "1B"]) == 0
        summary = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert summary["tokens"] == 3 * 10**9 and summary["expected_student"]["retention"] is None
        assert "(extrapolated)" in summary["sentence"] and "scaled to the peak (312 of 989.4" in summary["rate_is"]


def test_an_unknown_teacher_is_answered_with_the_known_ones(capsys):
    assert main("estimate --teacher bert-bas-uncased --gpu h100".split()) == 2
    said = capsys.readouterr().err
    assert "google-bert/bert-base-uncased" in said and "hf download bert-bas-uncased config.json" in said


def test_the_measured_case_has_the_measured_rate_and_no_other_claims_to():
    one = estimate(given=recipe(global_batch_size=128), ranks=1)
    assert one["tokens_per_second"] == pytest.approx(H100_SMALL.tokens_per_second, rel=1e-3)
    assert one["rate_kind"] == "estimated"
    assert usual()["rate_kind"] == estimate(gpu="h200", ranks=1)["rate_kind"] == "extrapolated"
    eight = usual()
    assert eight["tokens_per_second"] == pytest.approx(8 * one["tokens_per_second"], rel=1e-3)
    assert any("several GPUs was not measured" in note for note in eight["notes"])


def test_rows_that_only_fill_up_the_shares_of_some_ranks_take_their_time():
    equal, seven = estimate(given=recipe(global_batch_size=1036, micro_batch_size=74), ranks=7), estimate(ranks=7)
    assert seven["micro_batch_size"] == 74
    assert seven["tokens_per_second"] == pytest.approx(equal["tokens_per_second"] * 1024 / 1036, rel=1e-3)
    assert any("7 ranks cannot have equal shares" in note and "1.2% of the computed" in note for note in seven["notes"])
    assert not any("equal shares" in note for note in equal["notes"])


def test_a_price_and_a_rate_can_be_given():
    given = estimate(epoch=parse_tokens("1B"), price=2.0, rate=1e6)
    assert given["dollars"] == pytest.approx(1e9 / 1e6 / 3600 * 8 * 2, rel=0.01)
    assert given["price_is"] == given["rate_kind"] == "given"
    assert (
        "1 billion tokens take about 17 minutes (at the given rate) and cost about $4.44 at $2.00" in given["sentence"]
    )
    here = estimate(gpu=None, ranks=1, rate=1e6, memory=64)
    assert here["dollars"] is None and "$" not in format_plan(here)


def test_what_does_not_fit_says_what_to_change_and_promises_no_hours():
    small = estimate(given=recipe(1024, global_batch_size=8192), gpu="t4", epoch=size_of_corpus(["wikipedia"]))
    size = re.search(
        r"on 8 × T4 does not fit at ZeRO stage 1 with .* of 14.9 GiB .*; use training.micro_batch_size = (\d+)\.$",
        small["sentence"],
    )
    assert size and " hours" not in small["sentence"]
    assert small["precision"] == "float16"
    fits = estimate(given=recipe(int(size[1]), global_batch_size=8192), gpu="t4")
    assert fits["advice"] == "fits" and " fits at ZeRO stage 1" in fits["sentence"]
    nothing = estimate(memory=0.5)["sentence"]
    assert "of 0.5 GiB per device; lower data.sequence_length" in nothing and "lower data.sequence_length" in nothing


def test_a_run_that_no_rate_covers_is_refused():
    for training, message in (
        ({"precision": "fp32"}, "training.precision = fp32 with --gpu: no rate of it is known on T4"),
        ({"precision": "bf16"}, "training.precision = bf16 with --gpu: no rate of it is known on T4"),
        ({"device": "cpu"}, "training.device = cpu with --gpu"),
    ):
        with pytest.raises(UserError, match=message):
            estimate(given=recipe(**training), gpu="t4")


def test_a_share_of_the_teacher_is_told_only_where_a_result_supports_it():
    def share(teacher, layers, **options):
        student = type(teacher)(**teacher.to_dict() | {"num_hidden_layers": layers})
        return expected_result(teacher, student, 1, **options)["retention"]

    small = BertConfig(num_hidden_layers=6, hidden_size=384, num_attention_heads=12, intermediate_size=1536)
    assert share(BertConfig(), 6)["basis"] == "published" and "Sanh et al. 2019" in share(BertConfig(), 6)["source"]
    assert share(small, 3)["basis"] == "measured" and share(small, 3)["share_of_teachers_score"] == 0.944
    assert share(BertConfig(), 3) is share(small, 2) is share(RobertaConfig(), 6) is None
    assert share(BertConfig(), 6, uses_teacher=False) is None
    without = recipe()
    without.losses = Losses(kl=0.0, cosine=0.0)
    assert "quality: unknown" in format_plan(estimate(given=without))


def test_every_device_states_its_source_and_price():
    assert all(device.source and device.price_source and device.price > 0 for device in DEVICES.values())


def test_where_more_gpus_stop_paying_is_told_in_eighty_columns(capsys):
    words = "--teacher google-bert/bert-base-uncased --gpu h100 --corpus wikipedia+bookcorpus --config distilbert_base"
    assert main(["estimate", *words.split(), "--ranks", "64"]) == 0
    *printed, last = capsys.readouterr().out.splitlines()
    scaling = json.loads(last)["scaling"]
    assert scaling["verdict"] in " ".join(printed) and re.match(
        r"Adding devices is worthwhile up to \d+: with \d+, ", scaling["verdict"]
    )
    start = next(number for number, line in enumerate(printed) if line.startswith("A step on more devices"))
    end = next(number for number, line in enumerate(printed) if line.startswith("What to expect"))
    assert max(map(len, printed[start:end])) <= 80 and "sends 40 GB/s" in printed[start]
    row = next(row for row in scaling["rows"] if row["devices"] == 64)
    assert json.loads(last)["tokens_per_second"] == pytest.approx(row["tokens_per_second"], rel=1e-3)
    assert json.loads(last)["hours"] == pytest.approx(row["hours"], rel=1e-2)
    assert "less the exchange of gradients and weights at 40 GB/s" in json.loads(last)["rate_is"]


def test_one_node_is_not_charged_for_the_network_and_a_slow_network_serves_fewer():
    eight, sixteen = estimate(ranks=8), estimate(ranks=16)
    assert "not counted" in " ".join(eight["notes"]) and "not counted" not in " ".join(sixteen["notes"])
    assert sixteen["tokens_per_second"] < 2 * eight["tokens_per_second"]
    slow = plan(recipe(), [BERT], None, 16, None, None, "h100", network=4.0)
    assert slow["tokens_per_second"] < sixteen["tokens_per_second"]
    assert len(slow["scaling"]["rows"]) < len(sixteen["scaling"]["rows"])
    with pytest.raises(UserError, match="--network -1: must be above 0"):
        plan(recipe(), [BERT], None, 16, None, None, "h100", network=-1)


def test_zero_3_for_a_small_student_is_said_not_to_pay():
    notes = {stage: " ".join(estimate(given=recipe(deepspeed=f"zero{stage}"))["notes"]) for stage in (1, 3)}
    assert "ZeRO 3 does not pay here" in notes[3] and "ZeRO 3" not in notes[1]


def test_stages_and_clean_sequences_are_counted_and_told():
    layers_only = {"kl": 0.0, "mlm": 0.0, "cosine": 0.0, "match": [Match("mse")]}
    half, staged = recipe(max_tokens=10**9), recipe(max_tokens=10**9)
    half.data.clean_fraction = 0.5
    staged.stages = [Stage(0.5, layers_only, [0]), Stage(0.5)]
    whole, half_clean, in_stages = (estimate(given=given) for given in (recipe(max_tokens=10**9), half, staged))
    # the heads run on half of the sequences, or on all in half of the steps
    assert half_clean["mflops_per_token"] == in_stages["mflops_per_token"] < 0.9 * whole["mflops_per_token"]
    assert half_clean["tokens_per_second"] == in_stages["tokens_per_second"] > whole["tokens_per_second"]
    first, second = in_stages["run_stages"]
    assert first.startswith("0.5 of the steps, steps 1 to 3,8") and "1 × mse; trains layer 0" in first
    shown = " ".join(format_plan(in_stages).split())
    assert f"stage 2 {second}" in shown and whole["run_stages"] == []


def test_a_gpu_projects_all_positions_and_so_does_its_usual():
    """Only a CPU leaves out rows that no loss needs."""
    masked = Recipe(data=recipe().data, training=recipe().training, losses=Losses(kl_tokens="masked"))
    assert estimate(given=masked)["mflops_per_token"] == usual()["mflops_per_token"]
    assert estimate(given=masked)["tokens_per_second"] == usual()["tokens_per_second"]


@pytest.mark.parametrize("others, said", [(0.0, False), (0.1, False), (0.5, True)])
def test_a_rate_that_was_measured_on_a_busy_machine_says_so(monkeypatch, others, said):
    clock = iter([100.0, 103.0])
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    used = iter([50.0, 50.0 + 3 * others * (os.cpu_count() or 1)])
    monkeypatch.setattr(speed, "seconds_of_others", lambda: next(used))
    estimator = SimpleNamespace(
        recipe=recipe(), device=torch.device("cpu"), length=128, measure_rate=lambda sequences, tokens: 500.0
    )
    found = speed.find_speed(estimator, None, 4, 1, None, None)
    assert found.tokens_per_second == 500 and found.kind == "measured"
    assert any("other processes used" in note for note in found.notes) == said
