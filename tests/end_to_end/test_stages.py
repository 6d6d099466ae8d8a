"""A run with stages: killed inside one and at the end of one, its figures by stage, and what is refused."""

import json

import pytest

from tests.end_to_end.test_resume import STEPS, Job, assert_same_run, logs, shape
from tests.start import ds_distill, wait_for

LAYERS_ONLY = "{kl: 0, mlm: 0, cosine: 0, match: [{loss: mse, layers: mapped}]}"
DIVIDED = LAYERS_ONLY.replace("mapped", "mapped, normalize: true")  # by deviations that are measured as it begins
STAGES = (
    f"[{{share: 0.25, losses: {LAYERS_ONLY}, learnable: [1], teacher_forced: true}}, "
    f"{{share: 0.25, losses: {DIVIDED}, learnable: [embeddings, 0]}}, "
    "{share: 0.5, learning_rate: 2e-4, quantize: onnx-int8}]"
)
ENDS = (10, 20, 40)
CASES = [(1, "fp32", 1), (1, "bf16", 1), (0, "fp32", 2), (2, "bf16", 2), (3, "fp32", 2)]


@pytest.mark.promise("Killed inside a stage and at the end of one, a run with stages ends bit-equal")
@pytest.mark.parametrize(
    "zero, precision, ranks", [pytest.param(*case, marks=pytest.mark.long if i else ()) for i, case in enumerate(CASES)]
)
def test_killed_inside_a_stage_and_at_its_end(world, tmp_path, zero, precision, ranks):
    options = [*shape(zero, precision), "--stages", STAGES, "--data.clean_fraction", 0.5]
    undisturbed = Job(world, tmp_path / "undisturbed", ranks, *options)
    undisturbed.finish()
    output, kills = tmp_path / "killed", 0
    for every in (7, 10):  # resumes at step 7 or so, and at 10 or 20, where a stage ends, or at 30, in the rounded one
        job = Job(world, output, ranks, *options, "--training.save_every", every)
        before = set(job.published)
        processes = job.start()
        wait_for(lambda job=job, before=before: set(job.published) - before or job.ended, *processes)
        kills += processes[0].poll() is None
        job.kill()
    job = Job(world, output, ranks, *options)
    assert kills and job.finish()["steps"] == STEPS
    assert_same_run(output, undisturbed.output)
    figures, curves = logs(output), json.loads((output / "curves.json").read_text())
    stage_of = {step: 1 + sum(step > end for end in ENDS) for step in range(1, STEPS + 1)}
    assert figures["train/stage"] == [(step, number) for step, number in stage_of.items()]
    assert [row["step"] for row in curves["stages"]] == [0, *ENDS[:-1]]
    assert [step for step, _ in figures["loss/mse"]] == list(range(1, ENDS[1] + 1))
    assert [step for step, _ in figures["loss/kl"]] == list(range(ENDS[1] + 1, STEPS + 1))
    for row in curves["history"]:
        terms = {"mse"} if row["step"] <= ENDS[1] else {"kl", "mlm", "cosine"}
        assert row.keys() == {"step", "tokens", "loss"} | terms
    # the last step of a stage, whose rate has fallen to the end, is followed by another warm-up
    rates = dict(figures["train/lr"])
    assert rates[10] == rates[20] == rates[40] == 0 and rates[30] > 0 and max(rates.values()) < 5.01e-4


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("[{share: 0.5}, {share: 0.4}]", "stages: the shares [0.5, 0.4] sum to 0.9; they must sum to 1"),
        (
            "[{share: 1, quantize: int8}]",
            "stages.quantize: int8 is not allowed; choose one of onnx-int8, onnx-int8-vnni, openvino-int8, onnx-int4; "
            "did you mean onnx-int8?",
        ),
        ("[{share: 1, losses: {kll: 1}}]", "stages.losses.kll: no such key; did you mean kl?"),
        ("[{share: 1, learnable: [7]}]", "stages[0].learnable: layer 7: the student has 2 layers, 0 to 1"),
        ("[{share: 1, losses: {match: [{loss: msee}]}}]", "stages[0].losses.match[0].loss = msee: no such loss"),
        (
            f"[{{share: 1, losses: {LAYERS_ONLY}, learnable: [head]}}]",
            "stages[0].learnable: head: the terms of this stage look at layers 0 to 1 alone and at no logits",
        ),
    ],
)
def test_a_stage_that_makes_no_sense_is_one_sentence(world, common, tmp_path, stages, message):
    done = ds_distill("distill", "--teacher", world / "teacher", *common, "--output", tmp_path, "--stages", stages)
    assert done.returncode == 2 and message in done.stderr.replace("\n", " "), done.stderr
    assert not (tmp_path / "tokens").exists()
