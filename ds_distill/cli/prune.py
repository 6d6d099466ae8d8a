"""`prune`: makes a model faster by taking out attention heads, feed-forward columns and sublayers."""

from __future__ import annotations

from pathlib import Path

from ds_distill.cli import arguments
from ds_distill.config.pruning import RUNTIMES, Pruning, Runtime, Shape, Target, read_target
from ds_distill.config.values import UserPath
from ds_distill.data.dataset import TokenDataset
from ds_distill.data.sources import check_inputs
from ds_distill.models.folder import find_model_folder
from ds_distill.reporting.closing import format_closing, sibling
from ds_distill.reporting.tables import aligned, table
from ds_distill.utils.errors import UserError

PURPOSE = "prune a model's heads, feed-forward columns and sublayers until it is as fast as asked in a runtime"
EXAMPLES = r"""
ds-distill prune --model models/teacher --target 1.75x \
    --runtime onnxruntime --shape 1x128 --corpus text.txt \
    --output runs/pruned
ds-distill prune --model models/teacher --target 2x --runtime flops \
    --compare --tokens runs/tokens --output runs/compared
ds-distill prune --model bert-base-uncased --target 1.5x --uniform \
    --corpus text.txt --output runs/uniform
"""
COMMON_OPTIONS = ("model", "corpus", "target", "runtime", "shape", "uniform", "compare", "output")
LOSSES = {
    "before": "before",
    "saliency": "after: saliency, the rest corrected",
    "magnitude": "after: magnitude",
    "first": "after: the first rows stay",
}


def add_arguments(parser) -> None:
    parser.add_argument(
        "--model",
        type=UserPath | None,
        default=None,
        help="folder, or name on the Hub, of a masked-LM model or an encoder, such as a teacher",
    )
    arguments.add_corpus(parser, "text, as for distill: some of it shows what the model needs, some is held out")
    arguments.add_tokens(parser)
    parser.add_argument(
        "--target",
        type=Target | None,
        default=None,
        help="how many times as fast as the model the encoder is to be, such as 1.75x; where layers of the model were "
        "pruned before, as fast as with whole layers",
    )
    parser.add_argument(
        "--runtime",
        type=Runtime,
        default=Pruning.runtime,
        help=f"where it is to be as fast: {', '.join(RUNTIMES[:-1])}, of which times are measured on this machine; or "
        "flops, which counts operations",
    )
    parser.add_argument(
        "--shape", type=Shape, default="1x128", help="sequences x tokens of the calls that are to be as fast"
    )
    parser.add_argument(
        "--uniform",
        action="store_true",
        help="keep all layers alike, all of their heads and one width of feed-forwards, so that the folder loads as a "
        "stock class of transformers",
    )
    parser.add_argument(
        "--sequences", type=int, default=Pruning.sequences, help="how many sequences of the text are read for it"
    )
    parser.add_argument(
        "--latency_table",
        type=UserPath | None,
        default=None,
        help="file of times that were measured before; where there is none, they are measured and written there",
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="also measure the loss of the same shapes cut by magnitude, and with the first rows kept",
    )


def check(options) -> None:
    arguments.require_output(options)
    if not options.model:
        raise UserError("--model is missing; give the folder of the model that is to be pruned")
    if not options.corpus and not options.tokens:
        raise UserError("--corpus is missing; give text of the kind that the model is for, or --tokens")
    if not options.target:
        raise UserError("--target is missing; give how many times as fast the model is to be, such as 1.75x")
    if options.sequences < 1:
        raise UserError(f"--sequences {options.sequences}: must be at least 1")


def check_paths(options) -> None:
    find_model_folder(options.model, "--model").check_files()
    if options.tokens:
        TokenDataset.open(options.tokens, "train")
    else:
        check_inputs(options.corpus)
    if options.latency_table and not Path(options.latency_table).is_file():
        arguments.check_writable(Path(options.latency_table).parent, "--latency_table")
    arguments.check_writable(options.output)


def run(options) -> dict:
    from ds_distill.compression.runtimes import check_runtime
    from ds_distill.jobs.prune import prune

    check_runtime(options.runtime)
    batch, length = map(int, options.shape.split("x"))
    summary = prune(
        options.model,
        Path(options.output),
        Pruning(
            read_target(options.target, "--target"), options.runtime, batch, length, options.uniform, options.sequences
        ),
        corpus=options.corpus,
        tokens=options.tokens,
        latency_table=options.latency_table,
        compare=options.compare,
    )
    unit = "billions of operations" if options.runtime == "flops" else "ms"
    rows = [
        {
            "model": name,
            "size": f"{summary[f'parameters{key}'] / 1e6:.1f}",
            "flops": f"{summary[f'mflops_per_token{key}']:.2f}",
            "time": f"{summary[f'time{key}']:.3g}",
        }
        for name, key in (("before", "_before"), ("after", ""))
    ]
    heading = f"encoder, {options.shape} tokens, by the table ({unit})"
    columns = {"model": "model", "size": "parameters (M)", "flops": "encoder (MFLOPs per token)", "time": heading}
    print(table(rows, columns) + "\n")
    left = [{"layer": number, **layer} for number, layer in enumerate(summary["layers"])]
    print(table(left, {"layer": "layer", "heads": "heads", "feed_forward": "feed-forward columns"}))
    losses = [
        {"model": name, "loss": f"{summary[f'loss_{key}']:.4f} ± {summary[f'loss_se_{key}'] or 0:.4f}"}
        for key, name in LOSSES.items()
        if summary.get(f"loss_{key}") is not None
    ]
    if losses:
        print("\n" + table(losses, {"model": "model", "loss": "held-out masked-LM loss at [MASK] (nats)"}))
    return summary


def closing(options, summary: dict) -> str:
    distill = ["distill", "--teacher", options.model, "--student.from", summary["export"], "--tokens"]
    student = [*distill, summary["tokens"], "--output", sibling(options.output, "distilled")]
    return format_closing(
        aligned([("model", summary["export"])]), commands=[("distill it, from the model that it was cut of", student)]
    )
