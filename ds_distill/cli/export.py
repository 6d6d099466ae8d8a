"""`export`: turns a run's checkpoint into a Hugging Face folder, and either of them into formats for deployment."""

from __future__ import annotations

from pathlib import Path

from ds_distill.cli import arguments
from ds_distill.config.values import Name, UserPath
from ds_distill.data.sources import check_inputs
from ds_distill.models.folder import find_model_folder
from ds_distill.run_folder import find_model
from ds_distill.tasks.columns import named_columns
from ds_distill.utils.console import is_first
from ds_distill.utils.errors import UserError, expand_user

PURPOSE = (
    "a run's checkpoint → a Hugging Face folder; either → ONNX, int8, OpenVINO, torch.export, compared with PyTorch"
)
NO_RUN = "no run with a checkpoint; give the --output folder of distill or pretrain"


def add_arguments(parser) -> None:
    parser.add_argument("--run", type=UserPath | None, default=None, help="the --output folder of distill or pretrain")
    parser.add_argument(
        "--step", type=int | None, default=None, help="optimizer step of the checkpoint; the newest when not given"
    )
    parser.add_argument(
        "--model",
        type=UserPath | None,
        default=None,
        help="instead of --run, a Hugging Face folder, fine-tuned ones too; --output may be it",
    )
    parser.add_argument(
        "--format",
        type=Name,
        nargs="+",
        default=["hf"],
        help="hf, onnx, onnx-int8, onnx-int8-vnni, openvino-int8, torch-export",
    )
    parser.add_argument(
        "--text",
        type=UserPath,
        nargs="+",
        default=[],
        help="what formats are compared with PyTorch on; a sample of ours if not given",
    )
    parser.add_argument(
        "--data",
        type=UserPath | None,
        default=None,
        help="labelled examples of a fine-tuned model: its score before and after; FILE#COLUMN or FILE#COLUMN,COLUMN "
        "names the text",
    )
    parser.add_argument(
        "--encoder", action="store_true", help="formats without the head: last hidden states, for embedding servers"
    )


def check(options) -> None:
    if options.model and not options.output:
        options.output = str(_folder_of(options.model))
    arguments.require_output(options)
    if bool(options.run) == bool(options.model):
        raise UserError(
            "export needs one of --run, the --output folder of distill or pretrain, and --model, a Hugging Face folder"
        )
    if options.run and (options.encoder or options.data):
        option = "--encoder" if options.encoder else "--data"
        raise UserError(
            f"{option}: not with --run, whose model has a masked-LM head; give what was exported, or fine-tuned, "
            "as --model"
        )
    if options.model and options.format == ["hf"]:
        raise UserError(f"--model {options.model} is a Hugging Face folder already: give a --format")


def _folder_of(model: str) -> Path:
    """Return where `export --model` writes without --output: beside that model.

    Raises UserError for a model of the hub, because it is in a cache.
    """
    if not Path(model).is_dir():
        raise UserError(
            f"--model {model}: no such folder here; for a model of the hub's cache give --output too, a folder for "
            "what is made"
        )
    return find_model(Path(model))


def check_paths(options) -> None:
    if options.text:
        check_inputs(options.text)
    if options.model:
        find_model_folder(options.model, "--model").check_files()
    if options.data and not (file := named_columns(options.data)[0]).is_file():
        what = "a folder or a pipe; give a file with" if file.exists() else "no such file; give"
        raise UserError(f"--data {options.data}: {what} labelled examples, as for finetune")
    if options.run and not (expand_user(options.run) / "model" / "config.json").is_file():
        raise UserError(f"--run {options.run}: {NO_RUN}")
    arguments.check_writable(options.output)


def run(options) -> dict:
    from ds_distill import pipeline
    from ds_distill.data.sources import split_inputs
    from ds_distill.exporters.formats import export_formats, formats_table, resolve_formats

    output = Path(options.output)
    formats = [name for name in options.format if name != "hf"]
    resolve_formats(formats)  # a wrong name is refused before the work begins
    if options.text:
        split_inputs(options.text)  # a file that holds no text is refused before the run's model is written
    summary = pipeline.export_run(Path(options.run), output, options.step) if options.run else {}
    if formats and is_first():
        exported = export_formats(
            options.model or str(output),
            formats,
            output,
            text=options.text,
            data=options.data,
            encoder=options.encoder,
        )
        print(formats_table(exported["formats"]))
        summary |= exported
    return summary
