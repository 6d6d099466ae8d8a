"""Test the inference suite: its figures from known times, and the suite itself on a tiny model."""

import json
import shutil
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from transformers import DistilBertConfig, DistilBertForMaskedLM

from benchmarks.analysis import file_agreement
from benchmarks.harness.interleave import Variant
from benchmarks.inference import energy
from benchmarks.inference.backends import BACKENDS, Row, make, make_inputs, serve
from benchmarks.inference.metrics import BASE, STUDENT, Measured, figures, summary
from benchmarks.inference.min_memory import least_megabytes
from benchmarks.inference.page import make_sections, print_tables, shown, write_report
from benchmarks.inference.suite import make_cases, measure, prepare, reference_choices, runnable
from ds_distill.data.tokenizer import train_wordpiece
from ds_distill.exporters.model import load_source
from ds_distill.exporters.parity import MARGIN_NATS, SAMPLE, text_batches
from ds_distill.utils.errors import UserError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = train_wordpiece(SAMPLE.read_text().splitlines(), 300, folder)
    torch.manual_seed(0)
    DistilBertForMaskedLM(
        DistilBertConfig(vocab_size=len(tokenizer), dim=32, hidden_dim=64, n_heads=2, n_layers=1)
    ).save_pretrained(folder)
    return folder


BACKENDS_HERE = ["eager_fp32", "onnx_fp32", "onnx_int8"]


@pytest.fixture(scope="module")
def prepared(tiny, tmp_path_factory):
    """Return what `prepare` makes for BACKENDS_HERE: a source and its files."""
    return prepare({STUDENT: tiny}, "masked-lm", BACKENDS_HERE, tmp_path_factory.mktemp("prepared"), [])


QUANTIZED = ["eager_bf16", "onnx_int4", "openvino_int8", "openvino_int4"]


@pytest.mark.parametrize("others", [[], pytest.param(QUANTIZED, marks=pytest.mark.long)], ids=["three", "all"])
def test_the_suite_measures_a_model_in_several_backends(tiny, prepared, tmp_path, capsys, others):
    args = Namespace(
        heads=["masked-lm"], batches=[1, 2], lengths=[32, 128, 1024], rounds=2, seconds=0.01, patience=100.0
    )
    backends = [*BACKENDS_HERE, *others]
    sources = prepare({STUDENT: tiny}, "masked-lm", backends, tmp_path, []) if others else prepared
    source, files = sources[STUDENT]
    batches = text_batches(source, [], sequences=8)
    choices = {STUDENT: reference_choices(source, batches)}
    cases = make_cases(args, "masked-lm", [20, 30, 25])
    assert list(cases) == [*(f"{n} × {length}" for length in (32, 128, 1024) for n in (1, 2)), "1 × mix", "2 × mix"]
    assert cases["2 × mix"] == [[20, 30], [25]]
    rows = [Row(STUDENT, backend, "masked-lm", 1, tiny, files) for backend in backends]
    entries = figures(measure(rows, cases, args, {STUDENT: batches}), cases, sources, choices)
    assert len(entries) == len(backends) * (len(cases) - 2), "1024 is more than it reads"
    for entry in entries:
        assert entry["p50_ms"] > 0 and entry["load_s"] > 0 and entry["peak_mb"] > 10 and entry["calls"] >= 2
        assert entry["p95_ms"] is None or entry["calls"] >= 20
    agreement = {entry["body"]: entry["agreement"] for entry in entries}
    assert agreement["eager_fp32"] == agreement["onnx_fp32"] == 1.0 and agreement["onnx_int8"] > 0.5
    sizes = {entry["body"]: entry["file_mb"] for entry in entries}
    assert sizes["onnx_int8"] < sizes["onnx_fp32"]
    assert not others or sizes["eager_bf16"] == sizes["eager_fp32"] / 2
    result = {
        "not_measured_yet": ["classification"],
        "student": "tiny",
        "teacher": None,
        "machine": "m",
        "date": "d",
        "rounds": 2,
        "clear": MARGIN_NATS,
        "rows": entries,
    }
    write_report(result, tmp_path / "report")
    print_tables(result)
    assert "interrupted: classification" in (tmp_path / "report" / "inference.md").read_text()
    assert (
        "masked-lm, 2 × 128 tokens" not in (output := capsys.readouterr().out)
        and "masked-lm, every shape, 1 thread" in output
    )
    assert {"inference.md", "inference.html", "inference.json", "size_latency.png"} <= {
        file.name for file in (tmp_path / "report").iterdir()
    }


def test_a_backend_that_cannot_run_here_is_refused_when_asked_for():
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--bodies gpu_fp16: torch finds no GPU on this machine"):
            runnable(["eager_fp32", "gpu_fp16"])
    assert "eager_fp32" in runnable([]) and all(
        torch.cuda.is_available() or not BACKENDS[name].gpu for name in runnable([])
    )


def test_figures_from_known_times(tmp_path):
    def measured(model, backend, *rounds):
        return Measured(
            Row(model, backend, "encoder", 2, tmp_path, tmp_path),
            {"1 × 128": list(rounds)},
            {"1 × 128": [None] * len(rounds)},
            {"load_seconds": 1.0, "peak_bytes": 5e6, "peak_case": "1 × 128"},
        )

    measurements = [
        measured(BASE, "eager_fp32", [4.0, 4.0], [8.0, 8.0]),
        measured(STUDENT, "eager_fp32", [2.0, 2.0], [2.0, 2.0]),
        measured(STUDENT, "openvino_int8", [0.5] * 30, [1.0] * 30),
    ]
    (tmp_path / "openvino.bin").write_bytes(b"0" * 2_000_000)
    (tmp_path / "openvino.xml").write_bytes(b"")
    source = type("", (), {"model": torch.nn.Linear(10, 10, bias=False)})()
    entries = figures(measurements, {"1 × 128": [[128]]}, {BASE: (source, tmp_path), STUDENT: (source, tmp_path)}, {})
    eager, eight = entries[1], entries[2]
    assert eager["vs_base_eager_rounds"] == 2 and shown(eager)["vs_base_eager"] == "3.00 (of 2)"
    assert (
        eager["vs_base_eager"] == 3.0 and eager["p50_ms"] == 2000 and eager["p95_ms"] is None
    )  # the rounds are 2 and 4 times as fast
    assert (
        eight["vs_base_eager"] == 8.0
        and eight["file_mb"] == 2.0
        and eight["p95_ms"] == 1000
        and eight["p99_ms"] is None
    )
    assert eight["sequences_s"] == 1 / 0.75 and "vs_base_same_body" not in eight and eager["vs_base_same_body"] == 3.0
    assert summary(entries) == {
        "batch_1_vs_base_same_body": {"eager_fp32": 3.0},
        "batch_1_best_int8": "openvino_int8",
        "batch_1_best_int8_vs_base_eager": 8.0,
    }
    for cases in (("1 × 128", "32 × 128"), ("1 × 32", "32 × 32")):  # with and without the case used for sizes
        sizes = make_sections({"rows": [entry | {"case": case} for case in cases for entry in entries]}, None)[-2]
        assert sizes.heading.startswith("Size") and [row["body"] for row in sizes.rows] == [
            BACKENDS[entry["body"]].label for entry in entries
        ]


def test_padding_is_not_counted_as_tokens():
    inputs = make_inputs([3, 5])
    assert (
        inputs["input_ids"].shape == (2, 5)
        and inputs["attention_mask"].sum() == 8
        and (inputs["input_ids"][0, 3:] == 0).all()
    )


def test_energy_is_the_counters_or_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    energy._counters.cache_clear()
    assert energy.joules(False) is None
    for number, name in enumerate(
        ("package-0", "psys", "package-0")
    ):  # psys counts the package again, and so does a part of a package
        package = tmp_path / ("intel-rapl:0:0" if number == 2 else f"intel-rapl:{number}")
        package.mkdir()
        (package / "name").write_text(f"{name if number < 2 else 'core'}\n")
        (package / "max_energy_range_uj").write_text("1000000\n")
        (package / "energy_uj").write_text("900000\n")
    energy._counters.cache_clear()
    before = energy.joules(False)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("100000\n")  # the counter has wrapped around
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("950000\n")
    assert energy.joules(False) - before == pytest.approx(0.2)
    energy._counters.cache_clear()


def test_the_least_memory_is_found():
    row = Row("m", "onnx_fp32", "encoder", 1, Path(), Path())
    limits = []

    def tries(row, length, megabytes):
        limits.append(megabytes)
        return megabytes >= 203

    assert least_megabytes(row, 32, tries=tries) == 208 and len(limits) < 12
    assert least_megabytes(row, 32, most=100, tries=tries) is None


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize("backend", ["onnx_fp32", pytest.param("openvino_fp32", marks=pytest.mark.long)])
def test_rest_gives_memory_back(tiny, prepared, tmp_path, backend):
    """A real process runs a large batch and must release its memory, since all rows are in memory at once."""
    known = backend in BACKENDS_HERE
    sources = prepared if known else prepare({STUDENT: tiny}, "masked-lm", [backend], tmp_path, [])
    row = Row(STUDENT, backend, "masked-lm", 1, tiny, sources[STUDENT][1])
    variant = Variant("rests", make, row, serve=serve)
    try:
        variant.ask("start")

        def resident() -> int:
            return int(
                next(
                    line
                    for line in Path(f"/proc/{variant.processes[0].pid}/status").read_text().splitlines()
                    if "VmRSS" in line
                ).split()[1]
            )

        variant.ask(("time", "small", [[16]], 0.0))
        before = resident()
        variant.ask(("time", "large", [[512] * 128], 0.0))
        variant.ask(("rest",))
        peak = variant.ask(("peak_bytes",)) / 1024
        assert peak - before > 100_000 and resident() - before < (peak - before) / 3
    finally:
        variant.stop()


def test_a_memory_limit_holds(tiny, prepared):
    """In a real process, what cannot fit does not run, and what has room does."""
    row = Row(STUDENT, "onnx_fp32", "masked-lm", 1, tiny, prepared[STUDENT][1])
    from benchmarks.inference.min_memory import runs_within

    assert runs_within(row, 16, 1024) and not runs_within(row, 16, 8)


def test_rounding_is_what_int8_would_do(tiny):
    """Rounding equals integer arithmetic by hand, and a tied embedding keeps its values."""
    from benchmarks.analysis.quantization_error import asymmetric, grouped, rounded, symmetric

    x = torch.tensor([[1.0, -0.5, 0.251, 0.0], [0.0, 2.01, 4.0, 1.0]])  # no ties
    assert torch.allclose(
        symmetric(x, -1), torch.tensor([[127, -64, 32, 0], [0, 64, 127, 32]]) * x.abs().amax(-1, keepdim=True) / 127
    )
    assert torch.allclose(asymmetric(x, -1)[1], torch.tensor([0, 128, 255, 64]) * 4 / 255)
    assert asymmetric(x, -1)[0, 3] == 0 and (grouped(x, 2)[0, 2:] - x[0, 2:]).abs().max() < 1e-6
    model = load_source(str(tiny), "masked-lm").model
    before = model.get_input_embeddings().weight.clone()
    rounded(model, "per column", "per token")
    assert torch.equal(model.get_input_embeddings().weight, before) and not torch.equal(
        model.get_output_embeddings().weight, before
    )
    assert model(torch.ones(1, 4, dtype=torch.long)).logits.isfinite().all()


def test_a_file_is_compared_with_the_model_that_is_named(tiny, prepared, tmp_path, monkeypatch, capsys):
    torch.manual_seed(1)
    other = shutil.copytree(tiny, tmp_path / "other")
    DistilBertForMaskedLM(DistilBertConfig.from_pretrained(tiny)).save_pretrained(other)
    (other / "onnx").mkdir()
    shutil.copyfile(prepared[STUDENT][1] / "fp32.onnx", other / "onnx" / "model.onnx")  # of tiny
    words = ["--reference", str(tiny), "--model", str(other), "--format", "onnx", "--sequences", "8"]
    monkeypatch.setattr(sys, "argv", ["file_agreement", *words])
    assert file_agreement.main() == 0
    own, file = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert (
        file["file"] == "onnx" and file["agreement"] == 1 and file["loss"] == pytest.approx(file["loss_pytorch"], 1e-5)
    )
    assert own["agreement"] < 0.5 and own["positions"] == file["positions"]
    monkeypatch.setattr(sys, "argv", ["file_agreement", *words[:5], "onnx-int8"])
    with pytest.raises(SystemExit):
        file_agreement.main()
    assert "model_quantized.onnx is missing; run ds-distill export first" in capsys.readouterr().err
