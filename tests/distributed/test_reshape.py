"""A run resumes at another ZeRO stage, number of ranks and accumulation as if nothing had changed."""

import json

import pytest

from ds_distill.builds.fused_adam import build_optimizer
from tests.start import run_ranks


def run_cases(world: int, folder, cases: list[str]) -> dict[str, dict]:
    output = run_ranks(world, "tests.distributed.reshape_worker", folder, *cases)
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert len(rows) == len(cases)
    return {row["case"]: row for row in rows}


@pytest.mark.promise(
    "Saved at one shape, a run resumes at another: ZeRO 1, 2, 3, number of ranks, accumulation; "
    "losses within 1e-5 (fp32)"
)
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.long)])
def test_another_shape_goes_on_alike(tmp_path, record_property, every):
    folder = tmp_path / "lr=1+[2]"  # a glob pattern would misread this path
    around = [(1, 2), (2, 3), (3, 1)]
    fp32, bf16 = ([(a, b) for a in (1, 2, 3) for b in (1, 2, 3)], around) if every else (around, [(1, 3)])
    loads = [
        f"load {to} {dtype} {stage}-{dtype}-2"
        for dtype, pairs in (("float32", fp32), ("bfloat16", bf16))
        for stage, to in pairs
    ]
    to_more = [(0, 0), (1, 1), (2, 3), (3, 2)] if every else [(0, 0), (3, 2)]  # from bf16's stage 1 besides
    back = [f"load {to} float32 {stage}-float32-1" for stage, to in to_more] + ["load 2 bfloat16 1-bfloat16-1"]
    rows = run_cases(
        2,
        folder,
        [f"train {stage} float32" for stage in range(4)]
        + [f"train {stage} bfloat16" for stage in ((1, 2, 3) if every else (1,))],
    )
    rows |= run_cases(
        1,
        folder,
        ["load 0 float32 0-float32-2", *loads, *(f"train {stage} float32" for stage, _ in to_more), "train 1 bfloat16"],
    )
    rows |= run_cases(2, folder, back)
    went_on = {key: row for key, row in rows.items() if "→" in key}
    assert len(went_on) == 1 + len(loads) + len(back)
    record_property("changes of shape", len(went_on))
    for key, row in went_on.items():
        origin = rows[key.split(" → ")[0]]
        tolerance = 1e-5 if "float32" in key else 2e-2
        assert row["losses"] == pytest.approx(origin["losses"], rel=tolerance), key
        assert (
            row["rates"] == origin["rates"]
            and len(set(row["rates"])) == 2
            and row["decays"] == origin["decays"] == [0.0, 0.1]
        ), key


@pytest.mark.promise(
    "Any number of ranks resumes any global batch: equal batches and masks, losses within 1e-5 (fp32, no dropout)"
)
@pytest.mark.parametrize("stages", [(2,), pytest.param((1, 2, 3), marks=pytest.mark.long)])
def test_four_three_and_two_ranks_train_alike(tmp_path, record_property, stages):
    """Three ranks cannot have equal shares of eight sequences."""
    rows = run_cases(4, tmp_path, [f"train {stage} float32" for stage in stages])
    rows |= run_cases(3, tmp_path, [f"relay {stage} float32 {stage}-float32-4" for stage in stages])
    rows |= run_cases(2, tmp_path, [f"load {stage} float32 {stage}-float32-3" for stage in stages])
    for stage in stages:
        four, three, two = (
            rows[f"{before}{stage}-float32-{ranks}"]
            for ranks, before in ((4, ""), (3, f"{stage}-float32-4 → "), (2, f"{stage}-float32-3 → "))
        )
        assert three["losses"] == pytest.approx(four["losses"], rel=1e-5)
        assert two["losses"] == pytest.approx(four["losses"][1:], rel=1e-5)
        assert len(set(four["batches"])) == 5 and three["batches"] == four["batches"][2:]
        assert two["batches"] == four["batches"][3:]
    record_property("changes of the number of ranks", 2 * len(stages))


def test_a_longer_run_goes_on_at_the_rates_of_its_own_schedule(tmp_path):
    stages = (0, 2, 3)
    cases = [f"train {stage} float32" for stage in stages] + [f"longer {s} float32 {s}-float32-1" for s in stages]
    rows = run_cases(1, tmp_path, [*cases, "longer 3 float32 2-float32-1"])
    longer = {key: row for key, row in rows.items() if "→" in key}
    assert len(longer) == 4
    for row in longer.values():
        assert row["factors"] == pytest.approx([row["factor"]] * row["groups"], rel=1e-12) and row["groups"] > 2
        assert row["next"] > 0


@pytest.mark.parametrize(
    ("stage", "dtype", "before", "now"),
    [
        (0, "bfloat16", "auto", "torch"),
        (0, "float32", "torch", "auto"),
        (1, "bfloat16", "torch", "auto"),
    ],
)
def test_an_optimizer_that_cannot_go_on_with_anothers_state_says_so(tmp_path, stage, dtype, before, now):
    if reason := build_optimizer():
        pytest.skip(f"DeepSpeed's FusedAdam: {reason}")
    wrote = "deepspeed" if before == "auto" else before
    rows = run_cases(
        1, tmp_path, [f"train/{before} {stage} {dtype}", f"refuse/{now} {stage} {dtype} {stage}-{dtype}-1"]
    )
    assert (
        f"was written with {wrote}'s optimizer" in rows["refused"]["refused"]
        and f"training.optimizer = {wrote}" in rows["refused"]["refused"]
    )


def test_torchs_optimizer_goes_on_with_deepspeeds_state(tmp_path):
    """This is the case of a cluster node without a compiler."""
    rows = run_cases(1, tmp_path, ["train 1 float32", "load/torch 1 float32 1-float32-1"])
    assert rows["1-float32-1 → 1-float32-1"]["losses"] == pytest.approx(rows["1-float32-1"]["losses"], rel=1e-5)
