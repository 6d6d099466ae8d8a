"""Test what the benchmarks compute from their measurements, and that variants are processes of their own."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.analysis.layer_selection import PrunedModel, rank_choices, without_each
from benchmarks.harness.interleave import Variant, ratio, run_interleaved
from benchmarks.reference.closed_form import worst
from benchmarks.training.scaling import bytes_moved
from benchmarks.training.time_to_loss import at_minute, compute_logits, refuse_another, verdict
from ds_distill.data.batch import Batch
from ds_distill.models.families import get_family
from ds_distill.utils.errors import UserError
from tests.unit.benchmarks.variant_worker import make
from tests.unit.models.test_teacher import padding_mask, tiny_bert, tiny_distilbert, tiny_modernbert, tiny_mpnet, tokens

ROOT = Path(__file__).parents[3]


def test_variants_are_processes_with_an_environment_of_their_own():
    setting = SimpleNamespace(threads=1, seconds=0.25, broken=False)
    variant = Variant("two", make, setting, ranks=2, environment={"PAGES": "small"})
    try:
        run_interleaved([variant], 3)
        assert variant.seconds == [0.25] * 3 and variant.description == {
            "rank": "0",
            "world": "2",
            "pages": "small",
            "pid": variant.processes[0].pid,
        }
        assert variant.description["pid"] != os.getpid() and "PAGES" not in os.environ
    finally:
        variant.stop()
    assert not any(process.is_alive() for process in variant.processes)


@pytest.mark.parametrize(
    "broken, raised, message",
    [
        pytest.param(
            *(ValueError("no such shape"), RuntimeError, "odd: Traceback(?s:.*)no such shape"), marks=pytest.mark.long
        ),
        (UserError("give another"), UserError, "odd: give another$"),
    ],
)
def test_a_variant_that_fails_is_named_with_its_reason(broken, raised, message):
    variant = Variant("odd", make, SimpleNamespace(threads=1, broken=broken))
    try:
        with pytest.raises(raised, match=message):
            run_interleaved([variant], 1)
    finally:
        variant.stop()


def test_a_variant_that_is_killed_is_said_to_be():
    variant = Variant("large", make, SimpleNamespace(threads=1, seconds=0.25, broken=False))
    try:
        variant.processes[0].kill()
        variant.processes[0].join()
        for _ in range(2):  # the broken link shows at the first answer or the next question
            with pytest.raises(
                RuntimeError, match="large: its process has ended .killed, probably because memory ran out"
            ):
                variant.ask("step")
    finally:
        variant.stop()


def test_ratios_are_within_a_round():
    assert ratio([2.0, 4.0, 60.0], [1.0, 2.0, 20.0]) == 2.0
    assert ratio([6.0], [1.0, 2.0, 3.0]) == 3.0


def test_a_nan_is_the_worst_of_errors():
    assert worst(iter((1e-6, 3e-6, 2e-6))) == 3e-6
    assert all(not worst(errors) <= 1.0 for errors in ((1e-6, float("nan")), (float("nan"), 1e-6)))


def test_bytes_that_a_rank_sends():
    assert bytes_moved(100, 0, 4, 1) == 0  # a single rank sends nothing
    assert bytes_moved(100, 0, 4, 2) == 400  # half of the gradients one way, half of the sums back
    assert bytes_moved(100, 1, 2, 4) == 0.75 * (2 * 400 + 200)


def test_the_comparison_is_read_off_its_curves():
    rows = lambda *figures: [[minute, 0, {"": [loss, loss, 1 - loss / 10]}] for minute, loss in figures]  # noqa: E731
    plain, engine = rows((0, 9.0), (10, 7.0), (20, 5.0)), rows((0, 9.0), (5, 6.0), (10, 4.0), (20, 3.0))
    assert at_minute(plain, 15, "", 0) == 6.0 and at_minute(plain, 25, "", 0) == 5.0
    comparison = verdict({"plain": {"rows": plain}, "engine": {"rows": engine}}, [""])
    assert comparison["plain"]["ahead_at"] == "3 of 3" and comparison["plain"]["ahead_by_figure"] == dict.fromkeys(
        ("mlm_loss", "kl", "agreement"), "3 of 3"
    )
    # 5.0 is between 6.0 at 5 and 4.0 at 10: 7.5 of 20.
    assert comparison["plain"]["share_of_its_time"] == {"corpus": 0.375}
    slower = verdict({"plain": {"rows": engine}, "engine": {"rows": plain}}, [""])
    assert slower["plain"]["ahead_at"] == "0 of 2" and slower["plain"]["share_of_its_time"] == {"corpus": None}


def test_a_comparison_goes_on_only_where_its_minutes_compare():
    settings, here = (
        {"minutes": 20, "corpus": ["a.txt"]},
        {"machine": "a Xeon", "threads": 2, "torch": "2.11", "deepspeed": "0.18"},
    )
    now = lambda **other: {**settings, "on": here | other}  # noqa: E731
    refuse_another(Path("R"), now(), now())
    with pytest.raises(
        UserError,
        match="R holds a comparison under other conditions .threads 2, here 4; torch 2.11, here 2.12"
        ".*choose another --output",
    ):
        refuse_another(Path("R"), now(), now(threads=4, torch="2.12"))
    with pytest.raises(UserError, match="machine not recorded, here a Xeon"):
        refuse_another(Path("R"), dict(settings), now())
    with pytest.raises(UserError, match="holds a comparison with other options"):
        refuse_another(Path("R"), now(), now() | {"minutes": 1})


def test_the_benchmarks_of_the_step_need_neither_datasets_nor_an_argument_parser():
    """A minimal GPU machine has torch, transformers and a DeepSpeed wheel."""
    code = (
        "import sys\nsys.modules |= dict.fromkeys(('datasets', 'jsonargparse', 'pyarrow'))\n"
        "import benchmarks.gpu.suite, benchmarks.gpu.checks, benchmarks.training.step, "
        "benchmarks.training.vocab_loss, benchmarks.training.scaling, benchmarks.training.checkpoint, "
        "benchmarks.training.relations"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("tiny", [tiny_bert, tiny_distilbert])
def test_the_layers_that_a_score_needs(tiny):
    """The score adds up what each layer that the model runs through is worth, according to `worth`."""
    model, worth, runs = tiny(4), [1.0, 8.0, 2.0, 4.0], []
    values = {id(layer): worth[i] for i, layer in enumerate(get_family(model).get_layers(model))}

    def measure(what):
        passed = []
        hooks = [
            layer.register_forward_hook(lambda layer, *_: passed.append(values[id(layer)]))
            for layer in get_family(model).get_layers(model)
        ]
        model(torch.arange(5, 15).view(1, -1))
        [hook.remove() for hook in hooks]
        runs.append(what)
        return sum(passed)

    cut = PrunedModel(model, measure)
    assert cut.score((0, 1, 2, 3)) == 15 and without_each(cut, (0, 1, 2, 3)) == [
        (14, (1, 2, 3)),
        (7, (0, 2, 3)),
        (13, (0, 1, 3)),
        (11, (0, 1, 2)),
    ]
    assert rank_choices(cut, 2, 100)[:2] == [(12, (1, 3)), (10, (1, 2))] and len(rank_choices(cut, 2, 100)) == 6
    assert rank_choices(cut, 2, 5) == [(12, (1, 3)), (10, (1, 2)), (6, (2, 3))], "without the first, and then of three"
    assert len(runs) == len(set(runs)) == 1 + 4 + 6 and runs[0] == "layers 0, 1, 2, 3"


@pytest.mark.parametrize("make_model", [tiny_bert, tiny_modernbert, tiny_mpnet])
def test_a_comparison_over_time_computes_the_models_own_logits(make_model):
    """Of documents that are contexts of their own too, whatever mask the family takes for that."""
    model, ids, real = make_model(), tokens().clamp(min=5), padding_mask()
    with torch.no_grad():
        expected = model(ids, attention_mask=real.long()).logits[real]
        given = compute_logits(model, Batch(ids, ids, real), real)
        assert (given - expected).abs().max() <= 1e-5 * expected.abs().max()
        half = ids.shape[1] // 2
        documents = (torch.arange(ids.shape[1]) >= half).long().expand_as(ids)
        every = torch.ones_like(real)
        apart = compute_logits(model, Batch(ids, ids, None, documents), every).view(*ids.shape, -1)[:, :half]
        alone = compute_logits(model, Batch(ids[:, :half], ids, None), every[:, :half]).view(*apart.shape)
    assert (apart - alone).abs().max() <= 1e-5 * alone.abs().max()
