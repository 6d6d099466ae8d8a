"""Run benchmarks.inference: export the models, start a process for each row, and let all of them take turns."""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertForMaskedLM, DistilBertConfig, DistilBertForMaskedLM

from benchmarks.harness.interleave import Variant
from benchmarks.harness.machine import describe
from benchmarks.inference.backends import BACKENDS, Row, make, serve
from benchmarks.inference.metrics import BASE, MIX, STUDENT, TEACHER, Measured, figures, summary
from benchmarks.inference.page import print_tables, write_card, write_report
from ds_distill.exporters.int4 import write_onnx_int4, write_openvino_int4
from ds_distill.exporters.int8 import full_range_unavailable_reason, write_onnx_int8, write_openvino_int8
from ds_distill.exporters.model import ExportModel, load_source
from ds_distill.exporters.onnx import write_onnx
from ds_distill.exporters.parity import MARGIN_NATS, get_top1, text_batches, torch_runner
from ds_distill.models.folder import resolve_model_folder
from ds_distill.utils.console import log, progress, spinner
from ds_distill.utils.errors import UserError
from ds_distill.utils.machine import cores

MIXED = 32  # number of real sequences whose lengths make the mix


def model_folders(args: argparse.Namespace, scratch: Path) -> dict[str, Path]:
    """Return the Hugging Face folder of each model by label.

    Models that are not given are created with random weights, at the sizes of BERT-base and
    DistilBERT.
    """
    torch.manual_seed(0)
    folders = {BASE: scratch / "bert-base"}
    BertForMaskedLM(BertConfig()).save_pretrained(folders[BASE])
    if args.teacher:
        folders[TEACHER] = resolve_model_folder(args.teacher, "--teacher")
    folders[STUDENT] = resolve_model_folder(args.student, "--student") if args.student else scratch / "distilbert"
    if not args.student:
        DistilBertForMaskedLM(DistilBertConfig()).save_pretrained(folders[STUDENT])
    return folders


def runnable(requested: list[str], usual: Iterable[str] = BACKENDS, option: str = "--bodies") -> list[str]:
    """Return the requested backends; if none are requested, return the usual ones that can run here.

    Backends that are left out are logged with the reason.

    Args:
        requested: The names of backends.
        usual: The names of those that are meant if none are requested.
        option: The option that requests them, for errors.

    Raises:
        UserError: If a requested backend cannot run here.
    """
    backends = requested or [name for name in usual if torch.cuda.is_available() or not BACKENDS[name].gpu]
    reasons = {}
    for name in backends:
        if BACKENDS[name].needs and importlib.util.find_spec(BACKENDS[name].needs) is None:
            reasons[name] = f"{BACKENDS[name].needs} is not installed; run {BACKENDS[name].install}"
        elif BACKENDS[name].gpu and not torch.cuda.is_available():
            reasons[name] = "torch finds no GPU on this machine"
        elif BACKENDS[name].vnni and (reason := full_range_unavailable_reason()):
            reasons[name] = reason
    for name, reason in reasons.items():
        if requested:
            raise UserError(f"{option} {name}: {reason}")
        log(f"not measured: {name}: {reason}")
    return [name for name in backends if name not in reasons]


def prepare(
    folders: dict[str, Path], head: str, backends: list[str], scratch: Path, text: list[str]
) -> dict[str, tuple[ExportModel, Path]]:
    """Export the files that the backends need; return (source, their folder) by label."""
    sources = {}
    for label, folder in folders.items():
        files = scratch / "files" / label / head
        files.mkdir(parents=True, exist_ok=True)
        source = load_source(str(folder), head, for_speed=True)
        (files / "inputs.txt").write_text(" ".join(source.inputs), encoding="utf-8")
        wanted = {BACKENDS[backend].file for backend in backends}
        with spinner(f"exporting {label}, {head}"):
            if any(wanted):
                write_onnx(source, files / "fp32.onnx")
            if "int8.onnx" in wanted:
                write_onnx_int8(files / "fp32.onnx", files / "int8.onnx", paired=True)
            if "int8_vnni.onnx" in wanted:
                write_onnx_int8(files / "fp32.onnx", files / "int8_vnni.onnx", paired=False)
            if "int4.onnx" in wanted:
                write_onnx_int4(files / "fp32.onnx", files / "int4.onnx")
            if "openvino_int4.xml" in wanted:
                write_openvino_int4(files / "fp32.onnx", files / "openvino_int4.xml")
            if "openvino.xml" in wanted:
                write_openvino_int8(files / "fp32.onnx", files / "openvino.xml", source.widths)
            if "dynamic.onnx" in wanted or "static.onnx" in wanted:
                _quantize_with_onnxruntime(source, files, wanted, text)
        sources[label] = source, files
    return sources


def _quantize_with_onnxruntime(source: ExportModel, files: Path, wanted: set, text: list[str]) -> None:
    """Quantize with onnxruntime.quantization: dynamic as its documentation recommends, static calibrated on text."""
    import logging

    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self):
            batches = text_batches(source, text, sequences=16, batch=1) if source.tokenizer else []
            random = [{name: value.numpy() for name, value in source.sample().items()}]
            self.feeds = iter([batch.inputs for batch in batches] or random)

        def get_next(self):
            return next(self.feeds, None)

    logging.disable(logging.WARNING)
    if "dynamic.onnx" in wanted:
        quantize_dynamic(
            files / "fp32.onnx",
            files / "dynamic.onnx",
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
    if "static.onnx" in wanted:
        quantize_static(
            files / "fp32.onnx",
            files / "static.onnx",
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )


def reference_choices(source: ExportModel, batches: list) -> tuple[np.ndarray, np.ndarray]:
    """Return PyTorch's top-1 predictions in fp32 at all masked tokens, and which of them are clear."""
    run = torch_runner(source)
    parts = [get_top1(run(batch.inputs)[0][batch.at]) for batch in batches]
    return np.concatenate([choice for choice, _ in parts]), np.concatenate([clear for _, clear in parts])


def make_cases(args: argparse.Namespace, head: str, lengths: list[int]) -> dict[str, list[list[int]]]:
    """Return the batches of each case by name; a batch is a list of its sequences' lengths.

    `lengths` are those of real sequences, for the mix.
    """
    grid = [(batch, length) for length in args.lengths for batch in args.batches]
    if head != args.heads[0]:
        grid = [
            (batch, length)
            for batch, length in grid
            if length == 128 and batch in (min(args.batches), max(args.batches))
        ] or grid
    cases = {f"{batch} × {length}": [[length] * batch] for batch, length in grid}
    for batch in (args.batches[0], args.batches[-1]) if lengths and head == args.heads[0] else ():
        cases[f"{batch} × {MIX}"] = [lengths[i : i + batch] for i in range(0, len(lengths), batch)]
    return cases


def measure(
    rows: list[Row],
    cases: dict[str, list[list[int]]],
    args: argparse.Namespace,
    batches: dict[str, list],
    after_round: Callable[[list[Measured]], None] = lambda measurements: None,
) -> list[Measured]:
    """Measure all rows in turns.

    Args:
        rows: The rows.
        cases: The batches of each case, from `make_cases`.
        args: Its rounds, seconds and patience are read.
        batches: The texts by model for which top-1 predictions are requested.
        after_round: Called after each round with what has been measured so far.
    """
    variants, measurements = [], []
    try:
        for row in rows:
            variant = Variant(
                row.name,
                make,
                row,
                serve=serve,
                environment={"OMP_NUM_THREADS": str(row.threads), "CUDA_VISIBLE_DEVICES": ""}
                if not BACKENDS[row.backend].gpu
                else None,
            )
            variants.append(variant)
            with spinner(f"loading {row.name}"):
                try:
                    measurements.append(Measured(row, process_report=variant.ask("start")))
                except RuntimeError as error:
                    variants.remove(variant)
                    variant.stop()
                    log(f"\nnot measured: {row.name}: {str(error).strip().splitlines()[-1]}")
        with progress(args.rounds * len(measurements), f"{rows[0].head}, {rows[0].threads} threads", "turn") as bar:
            for number in range(args.rounds):
                for variant, one in zip(variants, measurements, strict=True):
                    bar.set_postfix_str(one.row.name)
                    bar.update()
                    if one.ended:
                        continue
                    time.sleep(0.1)  # the previous variant releases its cores
                    try:
                        take_turn(variant, one, cases, args)
                        if number == 0 and one.row.model in batches:
                            # Only arrays are sent: to read a Batch, the process would import this package and torch.
                            one.process_report["choices"] = variant.ask(
                                ("choices", [(batch.inputs, batch.at) for batch in batches[one.row.model]])
                            )
                    except RuntimeError as error:  # such as out of memory: its results stay, the others continue
                        one.ended = True
                        log(f"\nended: {str(error).strip().splitlines()[-1]}")
                after_round(measurements)
    finally:
        for variant in variants:
            variant.stop()
    return measurements


def take_turn(variant: Variant, one: Measured, cases: dict[str, list[list[int]]], args: argparse.Namespace) -> None:
    """Measure one row on all cases, except those that have used up their time or are too long for the model."""
    for case, batches in cases.items():
        if sum(sum(part) for part in one.latencies.get(case, [])) > args.patience:
            continue  # a slow row has used up its time
        if max(max(lengths) for lengths in batches) > one.row.positions:
            continue  # longer than the model reads
        answer = variant.ask(("time", case, batches, args.seconds))
        one.latencies.setdefault(case, []).append(answer["latencies"])
        one.joules.setdefault(case, []).append(answer["joules"])
        if "peak_bytes" not in one.process_report:  # after the first case, before larger ones
            one.process_report |= {"peak_bytes": variant.ask(("peak_bytes",)), "peak_case": case}
    variant.ask(("rest",))


def run(args: argparse.Namespace, scratch: Path) -> int:
    backends = runnable(args.backends)
    if args.text and not (args.student or args.teacher):
        raise UserError("--text needs --student or --teacher, whose tokenizer reads the text")
    if args.card and not (args.student and "encoder" in args.heads and 1 in args.batches and 128 in args.lengths):
        raise UserError(
            "--card needs the speed of a student's encoder at one sequence of 128 tokens: give --student, and keep "
            "encoder in --heads, 1 in --batches and 128 in --lengths"
        )
    folders = model_folders(args, scratch)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result = {
        "summary": {},
        "machine": describe(device),
        "date": datetime.date.today().isoformat(),
        "rounds": args.rounds,
        "clear": MARGIN_NATS,
        "student": args.student or "DistilBERT's size, random weights",
        "teacher": args.teacher,
        "not_measured_yet": list(args.heads),
        "rows": [],
    }
    for head in args.heads:
        result["rows"] += measure_head(head, args, folders, backends, scratch)
        if not result["rows"]:
            raise UserError("nothing was measured; the reasons are printed above")
        result["summary"] = summary(result["rows"])
        result["not_measured_yet"].remove(head)
        if args.report:  # after each head, so that an interruption loses only the next one
            write_report(result, args.report)
    print_tables(result)
    if args.card:
        write_card(result, folders[STUDENT])
    print(json.dumps(result | {"rows": len(result["rows"])} if args.report else result))
    return 0


def measure_head(
    head: str, args: argparse.Namespace, folders: dict[str, Path], backends: list[str], scratch: Path
) -> list[dict]:
    """Return all figures of the models with this head."""
    sources = prepare(folders, head, backends, scratch, args.text)
    lengths: list[int] = []
    batches, choices = {}, {}
    if args.text:
        reader = sources[STUDENT if args.student else TEACHER][0]
        if reader.tokenizer is None:
            raise UserError(f"--text: {reader.folder} has no tokenizer to read the text; give a folder that has one")
        read = text_batches(reader, args.text, sequences=args.sequences, length=max(args.lengths), batch=1)
        lengths = [int(batch.inputs["attention_mask"].sum()) for batch in read[:MIXED]]
    if args.text and head == "masked-lm":
        for label in (label for label, given in ((TEACHER, args.teacher), (STUDENT, args.student)) if given):
            if not sources[label][0].whole:
                log(f"{label}: the folder has no masked-LM head; it is random, so its predictions are not compared")
                continue
            batches[label] = text_batches(sources[label][0], args.text, sequences=args.sequences)
            with spinner(f"top-1 predictions of {label}, PyTorch in fp32"):
                choices[label] = reference_choices(sources[label][0], batches[label])
    entries, every = [], cores()
    counts = list(dict.fromkeys(args.threads or ([every, 1] if head == "encoder" and not args.quick else [every])))
    for threads in counts:
        cases = make_cases(args, head, lengths)
        if threads == 1 and not args.threads and len(counts) > 1:
            cases = {case: value for case, value in cases.items() if case.startswith("1 ×")}
        rows = [
            Row(label, backend, head, threads, folders[label], sources[label][1], sources[label][0].positions)
            for label in folders
            for backend in backends
        ]
        for label in folders:
            if left_out := [
                case for case, lengths in cases.items() if max(map(max, lengths)) > sources[label][0].positions
            ]:
                log(f"{label} has {sources[label][0].positions} positions: not measured: {', '.join(left_out)}")
        entries += figures(
            measure(rows, cases, args, batches if threads == max(counts) else {}), cases, sources, choices
        )
    return entries
