"""Deployable formats of a Hugging Face folder.

Each format is written, loaded by its own runtime, and compared with PyTorch on text before it is
published.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from ds_distill.exporters.format_table import FORMATS, Format, Job, get_parts
from ds_distill.exporters.model import ExportModel, load_source, read_json
from ds_distill.exporters.own_task_score import is_own_data, own_dev_set
from ds_distill.exporters.parity import Batch, compare, count_tokens, describe_texts, text_batches, torch_runner
from ds_distill.exporters.published import declare_quantized, publish_model
from ds_distill.exporters.task_score import DevSet, dev_set
from ds_distill.models.saving import follow_umask
from ds_distill.reporting.card_edits import put_section
from ds_distill.reporting.tables import table
from ds_distill.tasks.metrics import Measured
from ds_distill.utils.console import log, spinner
from ds_distill.utils.errors import UserError, did_you_mean
from ds_distill.utils.files import write_json
from ds_distill.utils.hub import split_name
from ds_distill.utils.locks import try_lock
from ds_distill.utils.memory import peak_memory

EXACT = 1e-4  # fp32 formats may differ from PyTorch by this share of the largest output: they sum in another order
SEQUENCES = 64
CALIBRATION_TOKENS = 2**14
ENOUGH = 30  # clear first choices, to tell whether a format keeps them


def resolve_formats(names: list[str], calibrate: Sequence[str] = ()) -> dict[str, Format]:
    """Return the formats of these names.

    Args:
        names: The names.
        calibrate: The texts that formats are to be calibrated on.

    Raises:
        UserError: A name is unknown, a module is missing, this machine cannot run a format, or none is calibrated.
    """
    for name in names:
        if name not in FORMATS:
            raise UserError(
                f"--format {name}: no such format{did_you_mean(name, ('hf', *FORMATS), 0.3)}; the formats are hf, "
                f"{', '.join(FORMATS)}"
            )
        missing = [module for module in FORMATS[name].needs if importlib.util.find_spec(module) is None]
        if missing:
            raise UserError(f"--format {name}: needs {', '.join(missing)}; run pip install 'ds-distill[deploy]'")
        if reason := FORMATS[name].unavailable_reason():
            raise UserError(
                f"--format {name} cannot be checked on this machine: {reason}; export it on the machine where it will "
                "run, or choose the format without -vnni"
            )
    calibrated = [name for name, format in FORMATS.items() if format.calibrated]
    if calibrate and not set(calibrated) & set(names):
        raise UserError(
            f"--calibrate {' '.join(calibrate)}: is read for {' and '.join(calibrated)} alone; give one of them with "
            "--format, or leave it out"
        )
    return {name: FORMATS[name] for name in names}


def check_sequences(sequences: int | None, text: Sequence[str]) -> None:
    """Raise UserError where a number of sequences to compare on is none, or there is no text to take them from."""
    if sequences is not None and sequences < 1:
        raise UserError(f"--sequences {sequences}: must be at least 1; give another number, or leave it out")
    if sequences is not None and not text:
        raise UserError(
            f"--sequences {sequences}: counts those of --text, which is missing; give it, or leave this out"
        )


def export_formats(
    model: str,
    names: list[str],
    output: Path,
    *,
    text: list[str],
    sequences: int | None = None,
    data: str | None = None,
    encoder: bool = False,
    calibrate: Sequence[str] = (),
) -> dict:
    """Write formats of the Hugging Face folder `model` into `output`, which may be that folder.

    A file takes its place only when its runtime has loaded it and, for an fp32 format, has returned
    PyTorch's numbers, or, for four bits, most of its clear choices.

    Args:
        model: The Hugging Face folder.
        names: The names of the formats.
        output: The folder to write into.
        text: The texts that the formats are compared on, as for prepare. If empty, this package's
            sample is used.
        sequences: How many sequences of them, of up to 128 tokens; SEQUENCES without a number.
        data: Labeled examples for a fine-tuned head, which is scored on them before and after.
        encoder: Export the model without its head.
        calibrate: The texts that int8 files of ONNX Runtime are calibrated on; none rounds weights to the nearest.

    Returns:
        The summary, with figures by format.

    Raises:
        RuntimeError: The outputs of an fp32 format differ from PyTorch's.
        UserError: A format cannot be written here, or the model does not bear its rounding.
    """
    formats = resolve_formats(names, calibrate)
    check_sequences(sequences, text)
    source = load_source(model, "encoder" if encoder else None)
    if encoder and output.resolve() == source.folder.resolve():
        raise UserError(f"--encoder: {output} is the model with its head; choose another --output for the encoder")
    batches = text_batches(source, text, sequences=SEQUENCES if sequences is None else sequences)
    calibration = _calibration_batches(source, list(calibrate)) if calibrate else []
    dev = (own_dev_set if is_own_data(source, data) else dev_set)(source, data) if data else None
    before = dev.score(torch_runner(source), "dev score, PyTorch") if dev else {}
    output.mkdir(parents=True, exist_ok=True)
    with _export_lock(output):
        # Without its head a model has another config.json. The head is checked first, so that the
        # error names the head rather than the model.
        if encoder:
            _check_head(output, source)
        publish_model(source, output, Path(split_name(model)[0] if not Path(model).is_dir() else model).name)
        _check_head(output, source)
        rows, compared = {}, describe_texts(text, batches)
        for name, row in _write_formats(source, formats, batches, output, dev, before, calibration):
            if calibrate and formats[name].calibrated:
                row["calibrated_on"] = describe_texts(list(calibrate), calibration)
            rows[name] = row
            # At once: the next format may be refused, and this one's file is in place.
            _record(output, source, name, row | {"compared_on": compared})
    return {
        "output": str(output),
        "head": source.head,
        "inputs": source.inputs,
        "compared_on": compared,
        "formats": rows,
        "peak_megabytes": round(peak_memory(torch.device("cpu")) / 1e6),
        **({"data": dev.about} if dev else {}),
    }


def _calibration_batches(source: ExportModel, texts: list[str]) -> list[Batch]:
    """Return batches of the texts that a file is calibrated on; UserError where they are too short.

    Of fewer tokens than a product has inputs, the rounding would fit what these tokens alone have in common, and the
    file may be less exact than without.
    """
    least = max(source.widths)
    enough = max(CALIBRATION_TOKENS, least)
    batches = text_batches(source, texts, sequences=enough, tokens=enough, option="--calibrate")
    if (tokens := count_tokens(batches)) < least:
        raise UserError(
            f"--calibrate {' '.join(texts)}: {tokens:,} tokens are too few for products of {least:,} inputs; give at "
            f"least {least:,} tokens of text, in documents of 12 or more, or leave it out"
        )
    return batches


@contextlib.contextmanager
def _export_lock(output: Path):
    """Allow one export at a time in a folder, since exports share its scratch and tables; UserError for a second."""
    descriptor = os.open(output, os.O_RDONLY)  # the folder itself: a lock file would be published with the export
    try:
        try_lock(descriptor, output, lambda: "another export")
        yield
    finally:
        os.close(descriptor)


def _check_head(output: Path, source: ExportModel) -> None:
    """Raise UserError where the files in `output` have another head."""
    others = {row.get("head", source.head) for row in _formats_in(output).values()} - {source.head}
    if others:
        raise UserError(
            f"{output}: contains files with the head {', '.join(others)}, but this export has the head {source.head}; "
            "choose another --output"
        )


def _write_formats(
    source: ExportModel,
    formats: dict[str, Format],
    batches: list[Batch],
    output: Path,
    dev: DevSet | None,
    before: Measured,
    calibration: list[Batch],
) -> Iterator[tuple[str, dict]]:
    """Write the files, move each into place after its comparison, and yield its name and its row of figures.

    before: PyTorch's scores on `dev`. calibration: Those of the calibration text.
    """
    partial = output / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    job = Job(source, batches, partial, calibration)
    try:
        for name, format in formats.items():
            began = time.perf_counter()
            file = partial / format.file
            file.parent.mkdir(exist_ok=True)
            with spinner(f"writing {name}"):
                format.write(job, file)
                run = format.load(file)
            seconds = time.perf_counter() - began
            figures = compare(source, run, batches, f"comparing {name}")
            if not math.isfinite(figures["max_difference"]) or (
                format.exact and figures["max_difference"] > EXACT * figures["max_output"]
            ):
                raise RuntimeError(
                    f"{name}: outputs differ from PyTorch's by up to {figures['max_difference']:.2g}, with outputs of "
                    f"up to {figures['max_output']:.2g}"
                )
            _check_agreement(name, format, figures)
            if dev:
                figures |= {f"dev_{metric}_pytorch": value for metric, value in before.items()}
                figures |= {f"dev_{metric}": value for metric, value in dev.score(run, f"dev score, {name}").items()}
                figures["scored_on"] = str(dev)
            follow_umask(file.parent)
            size = sum(part.stat().st_size for part in get_parts(file))
            row = {"file": format.file, "head": source.head, "megabytes": size / 1e6, "seconds": seconds} | figures
            del run  # OpenVINO keeps the file open
            _move_into_place(file, (output / format.file).parent)
            (output / f"example_{name.replace('-', '_')}.py").write_text(example(source, format), encoding="utf-8")
            log(f"{name}: {output / format.file}, {size / 1e6:,.1f} MB, {seconds:.0f} s")
            yield name, row
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_agreement(name: str, format: Format, figures: dict) -> None:
    """Raise UserError where a format keeps too few of PyTorch's clear first choices."""
    if figures.get("clear_positions", 0) >= ENOUGH and figures["clear_agreement"] < format.least:
        raise UserError(
            f"--format {name}: where PyTorch's top-1 prediction is clear, only {100 * figures['clear_agreement']:.0f} "
            f"% of the predictions agree with it; at least {100 * format.least:.0f} % must; train the last steps with "
            "quantize: onnx-int4, or export onnx-int8"
        )


def _move_into_place(file: Path, folder: Path) -> None:
    """Move a format's file into `folder`, after the files it needs, and delete what an earlier export left there."""
    folder.mkdir(exist_ok=True)
    parts = [part.name for part in get_parts(file)]
    for name in parts:
        os.replace(file.parent / name, folder / name)
    for part in get_parts(folder / file.name):
        if part.name not in parts:
            part.unlink()


def _formats_in(output: Path) -> dict[str, dict]:
    """Return the rows of earlier exports into `output` whose files still lie there."""
    file = output / "formats.json"
    rows = read_json(file) if file.is_file() else {}
    if not isinstance(rows, dict):
        raise UserError(f"{file}: not a table of formats; remove it, or choose another --output")
    return {name: row for name, row in rows.items() if name in FORMATS and (output / FORMATS[name].file).is_file()}


def _record(output: Path, source: ExportModel, name: str, row: dict) -> None:
    """Put the figures of a format beside those of the other formats in `output`, in formats.json and on the card."""
    rows = _formats_in(output) | {name: row}
    ordered = {name: rows[name] for name in FORMATS if name in rows}
    write_json(output / "formats.json", ordered)
    put_section(
        output / "README.md",
        "Formats",
        "Each format was compared with PyTorch in fp32 on text, and has an example (`example_*.py`) to run in this "
        "folder.\n\n" + formats_table(ordered),
    )
    if any("int" in name for name in ordered):
        declare_quantized(output / "README.md", source)


def example(source: ExportModel, format: Format) -> str:
    """Return three lines of Python that use the file, to be run in the folder."""
    module = format.example.split(".")[0]
    words = (
        f"the capital of france is {source.reader.mask_token}." if source.head == "masked-lm" else "a text to look at"
    )
    kind = "pt" if module == "torch" else "np"
    # in a folder that another program has written
    surplus = "token_type_ids" in source.reader.model_input_names and "token_type_ids" not in source.inputs
    types = ", return_token_type_ids=False" if surplus else ""
    first = {"encoder": "last_hidden_state", "question-answering": "start_logits"}.get(source.head, "logits")
    call = format.example.format(file=format.file, first=first)
    labels = "transformers.AutoConfig.from_pretrained('.').id2label"
    config = source.model.config
    one_of_several = len(config.id2label or {}) > 1 and config.problem_type != "multi_label_classification"
    shown = {
        "masked-lm": f"tokenizer.decode({call}[x['input_ids'] == tokenizer.mask_token_id].argmax(-1))",
        "question-answering": f"{call}.argmax(-1)",
        "token-classification": f"[{labels}[int(number)] for number in {call}.argmax(-1)[0]]",
        "classification": f"{labels}[int({call}.argmax())]" if one_of_several else call,
    }.get(source.head, call)
    return (
        f"import {module}, transformers; tokenizer = transformers.AutoTokenizer.from_pretrained('.')\n"
        f'x = tokenizer("{words}", return_tensors="{kind}"{types})\n'
        f"print({shown})\n"
    )


COLUMNS = {
    "format": "format",
    "runtime": "runtime",
    "file": "file",
    "megabytes": "MB",
    "max_difference": "max difference",
    "max_output": "largest output",
    "agreement": "top-1 agreement",
    "positions": "compared",
    "clear_agreement": "agreement where clear",
    "loss_pytorch": "loss, PyTorch",
    "loss": "loss",
    "compared_on": "compared on",
    "calibrated_on": "calibrated on",
}


def formats_table(rows: dict[str, dict]) -> str:
    """Return a table of the formats and of how far each is from PyTorch in fp32."""
    lines = []
    for name, row in rows.items():
        line = {"format": name, "runtime": FORMATS[name].runtime} | row
        line |= {key: f"{row[key]:.2g}" for key in ("max_difference", "max_output") if key in row}
        lines.append(line | {key: f"{100 * row[key]:.2f} %" for key in ("agreement", "clear_agreement") if key in row})
    scores = {
        key: f"dev {key.removeprefix('dev_').replace('_pytorch', ', PyTorch')}"
        for line in lines
        for key in line
        if key.startswith("dev_")
    }
    headings = COLUMNS | scores | {"scored_on": "dev scores on"}
    return table(lines, {key: heading for key, heading in headings.items() if any(key in line for line in lines)})
