"""`prune`: makes a model faster by taking out attention heads, feed-forward columns and sublayers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ds_distill.cli import arguments
from ds_distill.config.pruning import RUNTIMES, Pruning, Runtime, Shape, Target, check_cuts, read_target
from ds_distill.config.recipe_file import setting_name
from ds_distill.config.values import UserPath
from ds_distill.data.dataset import TokenDataset
from ds_distill.data.sources import check_inputs
from ds_distill.models.folder import find_model_folder
from ds_distill.recipe import Recipe
from ds_distill.reporting.closing import format_closing, sibling, training_result
from ds_distill.reporting.tables import aligned, table
from ds_distill.utils.console import is_first
from ds_distill.utils.errors import UserError

PURPOSE = "prune a model's heads, feed-forward columns and sublayers until it is as fast as asked in a runtime"
EXAMPLES = r"""
ds-distill prune --model models/teacher --target 1.75x \
    --runtime onnxruntime --shape 1x128 --corpus text.txt \
    --output runs/pruned
ds-distill prune --model models/teacher --target 2x --runtime flops \
    --compare --tokens runs/tokens --output runs/compared
ds-distill prune --model bert-base-uncased --target 1.3x 1.6x 2x --distill \
    --training.max_tokens 500k --corpus text.txt --output runs/half
"""
COMMON_OPTIONS = ("model", "corpus", "target", "runtime", "shape", "uniform", "compare", "output")
# the settings of a training that a cut alone reads: which tokens are masked, how much is evaluated, and on what
READ_WITHOUT_TRAINING = ("training.seed", "training.eval_max_sequences", "training.device")
TRAINING_SECTIONS = ("training", "losses", "student")
READ_IN_TRAINING = ("data.weights", "data.clean_fraction")  # of the data
LOSSES = {
    "before": "before",
    "saliency": "after: saliency, the rest corrected",
    "magnitude": "after: magnitude",
    "first": "after: the first rows stay",
}


def add_arguments(parser) -> None:
    arguments.add_model(parser)
    arguments.add_corpus(parser, "text, as for distill: some of it shows what the model needs, some is held out")
    arguments.add_tokens(parser)
    parser.add_argument(
        "--target",
        type=Target,
        nargs="+",
        default=[],
        help="target speedup of the encoder over that of --model, such as 1.75x. If layers of that model were pruned "
        "before, the speedup is relative to unpruned layers. With --distill, several speedups in rising order make "
        "several cuts",
    )
    parser.add_argument(
        "--runtime",
        type=Runtime,
        default=Pruning.runtime,
        help=f"runtime in which --target must be reached: {', '.join(RUNTIMES[:-1])}, each timed on this machine; or "
        "flops, which counts operations instead",
    )
    parser.add_argument(
        "--shape", type=Shape, default="1x128", help="input shape at which --target must be reached, sequences x tokens"
    )
    parser.add_argument(
        "--uniform",
        action="store_true",
        help="keep all layers alike, all of their heads and one width of feed-forwards, so that the folder loads as a "
        "stock class of transformers",
    )
    parser.add_argument(
        "--hidden_size",
        type=int | None,
        default=None,
        help="first cut the width to this multiple of the head size, with as many heads in each layer; --target then "
        "says how many times as fast as that model",
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
        help="also measure the loss of two other cuts to the same shapes: by magnitude, and keeping the first rows",
    )

    parser.add_argument(
        "--distill",
        action="store_true",
        help="distill the model after each cut from the whole one, as distill does with the settings below",
    )
    arguments.add_unread_heldout(parser)
    arguments.add_unread_teacher(parser)
    arguments.add_recipe(parser)


def check(options) -> None:
    arguments.require_output(options)
    if not options.model:
        raise UserError("--model is missing; give the folder of the model that is to be pruned")
    if not options.corpus and not options.tokens:
        raise UserError("--corpus is missing; give text of the kind that the model is for, or --tokens")
    arguments.check_one_text(options)
    for name in ("heldout", "teacher"):
        if name in options.typed:
            raise UserError(f"--{name}: not read by prune, which takes it only from a recipe for distill; leave it out")
    check_cuts(_cuts(options), distilled=options.distill, compare=options.compare)
    for name in ("latency_table", "runtime", "shape"):
        if name in options.typed and not options.target:
            raise UserError(f"--{name}: is for cuts of --target, which is missing; give it, or leave --{name} out")
    recipe = arguments.check_recipe(options)
    for name, value in _changed_settings(recipe, "student").items():
        if name != "student.freeze_positions":
            raise UserError(f"{name} = {value}: the student is the pruned model; leave it out, or use distill")
    if not options.distill:
        _check_nothing_for_training(recipe, options)


def _changed_settings(recipe: Recipe, *sections: str) -> dict[str, Any]:
    """Return the settings of some sections that differ from the defaults, by their dotted names."""
    return {
        f"{name}.{setting_name(key)}": value
        for name in sections
        for key, value in vars(getattr(recipe, name)).items()
        if value != getattr(arguments.SECTIONS[name](), key)
    }


def _check_nothing_for_training(recipe: Recipe, options) -> None:
    """Raise UserError for a setting of a training that was not asked for.

    A recipe file may be one for a training, so only what is typed beside it counts.
    """
    changed = _changed_settings(recipe, *TRAINING_SECTIONS)
    changed |= {name: value for name, value in _changed_settings(recipe, "data").items() if name in READ_IN_TRAINING}
    changed |= {"stages": recipe.stages} if recipe.stages else {}
    typed = [name for name in options.typed if name.partition(".")[0] in (*TRAINING_SECTIONS, "stages")]
    typed += [name for name in options.typed if name in READ_IN_TRAINING]
    given = [
        name for name in ([*changed, *typed] if options.config is None else typed) if name not in READ_WITHOUT_TRAINING
    ]
    if given:
        value = None if options.config is not None else changed.get(given[0])  # a file after it may change the value
        shown = f" = {value}" if isinstance(value, str | float | int) else ""
        raise UserError(f"{given[0]}{shown}: nothing is trained without --distill; add --distill, or leave it out")


def _cuts(options) -> list[Pruning]:
    """Return how to prune, one cut after the other; without a target the width alone is cut."""
    batch, length = map(int, options.shape.split("x"))
    speeds = [read_target(target, "--target") for target in options.target] or [1.0]
    return [
        Pruning(speed, options.runtime, batch, length, options.uniform, options.sequences, options.hidden_size)
        for speed in speeds
    ]


def check_paths(options) -> None:
    find_model_folder(options.model, "--model").check_files()
    if options.tokens:
        TokenDataset.open(options.tokens, "train")
    else:
        check_inputs(options.corpus)
    if options.latency_table and not Path(options.latency_table).parent.is_dir():
        raise UserError(
            f"--latency_table {options.latency_table}: its folder does not exist; make it, or correct the path"
        )
    arguments.check_writable(options.output)


def run(options) -> dict:
    from ds_distill import api
    from ds_distill.compression.runtimes import check_runtime

    if options.target:
        check_runtime(options.runtime)
    recipe = arguments.build_recipe(options)
    summary = api.prune(
        options.model,
        _cuts(options),
        output=options.output,
        recipe=recipe,
        corpus=options.corpus,
        tokens=options.tokens,
        latency_table=options.latency_table,
        compare=options.compare,
        distill=options.distill,
        choose_losses=arguments.leaves_losses_open(options, recipe),
    )
    if is_first():
        for cut in summary.get("cuts", [summary]):
            _print_cut(cut, options)
    return summary


def _print_cut(summary: dict, options) -> None:
    """Print the tables of one cut."""
    rows = [
        {
            "model": name,
            "size": f"{summary[f'parameters{key}'] / 1e6:.1f}",
            "flops": f"{summary[f'mflops_per_token{key}']:.2f}",
            "cost": f"{summary[f'cost{key}']:.3g}" if f"cost{key}" in summary else "not measured",
            "measured": f"{summary[f'measured_ms{key}']:.3g}" if f"measured_ms{key}" in summary else "",
        }
        for name, key in (("before", "_before"), ("after", ""))
    ]
    heading = f"encoder, {options.shape} tokens, by the table ({summary['unit']})"
    columns = {"model": "model", "size": "parameters (M)", "flops": "encoder (MFLOPs per token)", "cost": heading}
    if "measured_ms" in summary:
        columns["measured"] = "measured (ms)"
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


def closing(options, summary: dict) -> str:
    if options.distill:
        tune = ["finetune", "--task", "sst2", "--model", options.output, "--output", sibling(options.output, "sst2")]
        convert = ["export", "--model", options.output, "--format", "onnx-int8"]
        return format_closing(
            *training_result(summary, options.output),
            commands=[("fine-tune it on SST-2 of the Hub", tune), ("convert it for deployment", convert)],
        )
    distill = ["distill", "--teacher", options.model, "--student.from", summary["export"], "--tokens"]
    student = [*distill, summary["tokens"], "--output", sibling(options.output, "distilled")]
    return format_closing(
        aligned([("model", summary["export"])]), commands=[("distill it from the unpruned model", student)]
    )
