"""`export`: turns a run's checkpoint into a Hugging Face folder, and either of them into formats for deployment."""

from __future__ import annotations

from pathlib import Path

from ds_distill.cli import arguments, push
from ds_distill.config.values import Name, UserPath
from ds_distill.data.sources import check_inputs
from ds_distill.models.folder import find_model_folder
from ds_distill.reporting.closing import format_closing
from ds_distill.reporting.tables import aligned
from ds_distill.run_folder import folder_of_model
from ds_distill.tasks.columns import named_columns
from ds_distill.utils.console import is_first
from ds_distill.utils.errors import UserError, expand_user

PURPOSE = (
    "convert a run's checkpoint to a Hugging Face folder, or either to ONNX, int8, OpenVINO or torch.export, compared "
    "with PyTorch"
)
EXAMPLES = r"""
ds-distill export --model runs/student --format onnx-int8
ds-distill export --model runs/sst2 --format onnx openvino-int8 \
    --data sst2/dev.tsv
ds-distill export --run runs/student --step 1000 --output runs/step-1000
"""
COMMON_OPTIONS = (
    "model",
    "run",
    "step",
    "format",
    "output",
    "text",
    "sequences",
    "data",
    "encoder",
    "calibrate",
)
NO_RUN = "the folder holds no run with a checkpoint there; give the --output folder of distill or pretrain"


def add_arguments(parser) -> None:
    parser.add_argument("--run", type=UserPath | None, default=None, help="the --output folder of distill or pretrain")
    parser.add_argument(
        "--step",
        type=int | None,
        default=None,
        help="optimizer step of the checkpoint of --run to export; the newest by default",
    )
    parser.add_argument(
        "--model",
        type=UserPath | None,
        default=None,
        help="folder, or name on the Hub, of a pretrained or fine-tuned model, used instead of --run; --output may be "
        "the same folder",
    )
    parser.add_argument(
        "--format",
        type=Name,
        nargs="+",
        default=["hf"],
        help="formats to write: hf, onnx, onnx-int8, onnx-int8-vnni, onnx-int4, openvino-int8, openvino-int4, "
        "torch-export",
    )
    parser.add_argument(
        "--text",
        type=UserPath,
        nargs="+",
        default=[],
        help="text on which each format is compared with PyTorch; a built-in sample by default",
    )
    parser.add_argument(
        "--sequences",
        type=int | None,
        default=None,
        help="how many sequences of --text are compared, of up to 128 tokens; 64 by default",
    )
    parser.add_argument(
        "--data",
        type=UserPath | None,
        default=None,
        help="labeled examples for a fine-tuned model, which is scored before and after export; FILE#COLUMN or "
        "FILE#COLUMN,COLUMN selects the text; or the YAML file of a task of your own",
    )
    parser.add_argument(
        "--encoder",
        action="store_true",
        help="export the encoder without its head; it returns the last hidden states, for embedding servers",
    )
    parser.add_argument(
        "--calibrate",
        type=UserPath,
        nargs="+",
        default=[],
        help="calibration text for onnx-int8 and onnx-int8-vnni, which lowers their rounding error; use different text "
        "from that of --text. Without it, each weight is rounded to the nearest",
    )
    push.add_arguments(parser)


def check(options) -> None:
    if options.model and not options.output:
        options.output = str(folder_of_model(options.model))
    arguments.require_output(options)
    if bool(options.run) == bool(options.model):
        raise UserError(
            "export needs either --run, the --output folder of distill or pretrain, or --model, a Hugging Face folder"
        )
    if options.run and (options.encoder or options.data):
        option = "--encoder" if options.encoder else "--data"
        raise UserError(
            f"{option}: not supported with --run, whose model has a masked-LM head; give the exported or fine-tuned "
            "model as --model"
        )
    if options.model and options.step is not None:
        raise UserError(f"--step {options.step}: belongs to a run, which --model is not; give --run, or leave it out")
    if options.text and set(options.format) == {"hf"}:
        raise UserError(
            f"--text {' '.join(options.text)}: is for formats that are compared with PyTorch; give another --format "
            "than hf, or leave it out"
        )
    if options.model and set(options.format) == {"hf"}:
        raise UserError(f"--model {options.model} is already a Hugging Face folder; give another --format")


def check_paths(options) -> None:
    for texts in filter(None, (options.text, options.calibrate)):
        check_inputs(texts)
    if options.model:
        find_model_folder(options.model, "--model").check_files()
    if options.data and not (file := named_columns(options.data)[0]).is_file():
        problem = "a folder or a pipe; give a file with" if file.exists() else "no such file; give a file with"
        raise UserError(f"--data {options.data}: {problem} labeled examples, as for finetune")
    if options.run and not (expand_user(options.run) / "model" / "config.json").is_file():
        raise UserError(f"--run {options.run}: {NO_RUN}")
    arguments.check_no_run(options.output)


def run(options) -> dict:
    from ds_distill import api
    from ds_distill.data.sources import split_inputs
    from ds_distill.exporters.formats import check_sequences, formats_table, resolve_formats
    from ds_distill.jobs.export import export_run

    output = Path(options.output)
    formats = [name for name in options.format if name != "hf"]
    resolve_formats(formats, options.calibrate)  # a wrong name is refused before the work begins
    check_sequences(options.sequences, options.text)
    for texts in filter(None, (options.text, options.calibrate)):
        split_inputs(texts)  # a file that holds no text is refused before the run's model is written
    summary = export_run(Path(options.run), output, options.step) if options.run else {}
    if formats and is_first():
        exported = api.export(
            options.model or output,
            formats=formats,
            output=output,
            text=options.text,
            sequences=options.sequences,
            data=options.data,
            encoder=options.encoder,
            calibrate=options.calibrate,
        )
        print(formats_table(exported["formats"]))
        summary |= exported
    return summary


def closing(options, summary: dict) -> str:
    return format_closing(aligned([("files", options.output)]))
