"""Compare how much each trainer has learned after the same minutes on the same machine.

    python -m benchmarks.training.time_to_loss --minutes 20 --teacher DIR --corpus FILE… --heldout FILE… --output DIR

The reference implementation (in fp32, and under bf16 autocast) and the engine train the same
student. They share the teacher, the batches and the recipe (--config, by default
ds_configs/small_real.yaml). They run one after another, each alone on the machine and started as
its user would start it. The learning rate follows the clock and reaches zero at the end of the
minutes. Only training time counts, including the extra time of the first step (compiling).

At --evaluations moments of that time, the student is measured in fp32 on held-out text, by the
definitions of the reference implementation:

    mlm_loss     masked-LM loss at all selected positions, whether they show [MASK], a random token
                 or the token itself, in nats per position
    agreement    how often the top-1 prediction at such a position equals the teacher's
    kl           KL from the teacher's distribution at temperature 1, in nats per token, on every
                 eighth batch

If the comparison is interrupted, the same command on the same machine resumes it from its last measurement.
The last line of standard output is JSON. time_to_loss.md, time_to_loss.json and time_to_loss.png
are written to the output folder.
"""

import argparse
import copy
import datetime
import json
import signal
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.harness.cli import amount, count, make_folder, user_errors
from benchmarks.harness.machine import describe, on_cpu_only
from benchmarks.training.trainers import TRAINERS
from ds_distill.cli.app import silence_libraries
from ds_distill.cli.arguments import build_recipe
from ds_distill.cli.parser import build_parser
from ds_distill.data.heldout import heldout_sets
from ds_distill.data.run_data import open_run_data, prepare_run_tokens, with_prepared_settings
from ds_distill.distributed.process_group import start_distributed
from ds_distill.models.families import get_family
from ds_distill.models.intermediates import run_encoder
from ds_distill.models.loading import load_masked_lm
from ds_distill.models.student import build_student
from ds_distill.recipe import Recipe
from ds_distill.reporting.plots import time_to_loss_plot
from ds_distill.reporting.tables import table
from ds_distill.utils.console import log, progress
from ds_distill.utils.errors import UserError
from ds_distill.utils.files import write_json

FIGURES = ("mlm_loss", "kl", "agreement")
COMPARED = ("init_layers", "num_layers", "family")  # the settings of the student that all trainers take
WARM, TIMED = 2, 5
KL_EVERY = 8  # batches: KL needs both models' logits at every token; the top-1 predictions need masked tokens only


def compute_logits(model, batch, rows: torch.Tensor) -> torch.Tensor:
    """Return the logits of a masked-LM model, [rows, V], at the positions where rows [B, L] is true."""
    family = get_family(model)
    hidden, _ = run_encoder(model, batch.input_ids, batch.attention_mask, batch.cu_seqlens)
    return family.get_decoder(model)(family.mlm_transform(model, hidden[rows]))


@torch.no_grad()
def measured(student, teacher, batches, guesses: list[torch.Tensor]) -> list[float]:
    """Return [masked-LM loss, KL, agreement] as the module's docstring defines them.

    Args:
        student, teacher: fp32 models in eval mode.
        batches: The held-out batches.
        guesses: One tensor per batch with the teacher's top-1 prediction at each masked token. An
            empty list is filled in.
    """
    sums = torch.zeros(3, dtype=torch.float64)
    tokens = masked = 0
    fill = not guesses
    for number, batch in enumerate(batches):
        at = batch.labels >= 0
        if fill:
            guesses.append(compute_logits(teacher, batch, at).argmax(-1))
        z = compute_logits(student, batch, at)
        sums[0] += F.cross_entropy(z, batch.labels[at], reduction="sum").double()
        sums[2] += (z.argmax(-1) == guesses[number]).sum()
        masked += int(at.sum())
        if number % KL_EVERY == 0:
            real = torch.ones_like(at) if batch.attention_mask is None else batch.attention_mask.bool()
            z, t = (compute_logits(m, batch, real).log_softmax(-1) for m in (student, teacher))
            sums[1] += F.kl_div(z, t, reduction="sum", log_target=True).double()
            tokens += int(real.sum())
    return [float(sums[0]) / masked, float(sums[1]) / tokens, float(sums[2]) / masked]


def run_trainer(name: str, recipe: Recipe, args: argparse.Namespace, tokens: Path, held: dict[str, Path]) -> None:
    """Run one trainer in this process and write its curve to args.output/NAME/curve.json."""
    start_distributed()
    label, make = TRAINERS[name]
    folder, t = args.output / name, recipe.training
    _, order, sets = open_run_data(tokens, recipe, 0, 1, held)
    teacher = load_masked_lm(args.teacher).eval()

    def student():
        return build_student(
            teacher,
            init_layers=recipe.student.init_layers,
            num_layers=recipe.student.num_layers,
            family=recipe.student.family,
            dropout=t.dropout,
            seed=t.seed,
        )

    limit, state = 60 * args.minutes, {"step": 0, "elapsed": 0.0, "rows": [], "tokens": 0, "masked_tokens": {}}

    def begin(pace: float):
        # The engine is told that there are many steps, so it compiles where that works; its time includes that.
        return make(
            copy.deepcopy(teacher), student(), recipe, 10**6, lambda: min(1.0, (state["elapsed"] + pace) / limit)
        )

    def take(trainer, step: int, batches, counts) -> float:
        torch.manual_seed(1_000_003 * t.seed + step)
        began = time.perf_counter()
        trainer.step(batches, counts)
        return time.perf_counter() - began

    file = folder / "pace.json"
    if not file.is_file():
        trainer = begin(0.0)
        log(f"{label}: timing its steps")
        times = [take(trainer, step, batches, counts) for step, batches, counts in order.prefetch(0, WARM + TIMED)]
        pace = statistics.median(times[WARM:])
        extra = max(0.0, times[0] - pace)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, {"seconds_per_step": pace, "first_step_extra": extra})
        del trainer
    pace = json.loads(file.read_text(encoding="utf-8"))
    trainer, judge = begin(pace["seconds_per_step"]), student().eval()
    saved = trainer.resume(folder / "checkpoint") or {}
    state |= {key: saved[key] for key in state if key in saved}  # the checkpoint also holds DeepSpeed's own keys
    begun, guesses = state["step"], {set: [] for set in sets}

    def measure() -> None:
        missing, unexpected = judge.load_state_dict(trainer.weights(), strict=False)
        if unexpected or set(missing) - set(judge.all_tied_weights_keys):
            raise RuntimeError(f"{label}: weights {unexpected} are not the student's, {missing} are missing")
        figures = {set: measured(judge, teacher, get_batches(), guesses[set]) for set, get_batches in sets.items()}
        state["rows"].append([state["elapsed"] / 60, state["step"], figures])
        # This is kept with the rows: a process that has only the curve left to write measures nothing itself.
        state["masked_tokens"] = {set: sum(map(len, predictions)) for set, predictions in guesses.items()}

    if not state["rows"]:
        measure()
    bar = progress(round(limit), label, "s", initial=round(state["elapsed"]))
    for step, batches, counts in order.prefetch(state["step"], 10**6):
        if state["elapsed"] >= limit - pace["seconds_per_step"] / 2:
            break
        seconds = take(trainer, step, batches, counts)
        # A run that resumes compiles once more, but its trainer has already paid for that.
        # The first start pays the extra time that the timing found.
        state["elapsed"] += (
            pace["seconds_per_step"] + (0 if begun else pace["first_step_extra"]) if step == begun else seconds
        )
        state["step"], state["tokens"] = step + 1, state["tokens"] + counts[0]
        bar.update(round(state["elapsed"]) - bar.n)
        over = state["elapsed"] >= limit - pace["seconds_per_step"] / 2
        if over or state["elapsed"] >= len(state["rows"]) * limit / args.evaluations:
            measure()
            bar.set_postfix(step=state["step"], mlm=f"{state['rows'][-1][2][''][0]:.3f}")
            trainer.save(folder / "checkpoint", state["step"], state)
    bar.close()
    write_json(folder / "curve.json", {**state, **pace})


def at_minute(rows: list, minute: float, set: str, figure: int) -> float:
    """Return a figure at `minute`, interpolated linearly between two measurements.

    After the last measurement, its figure is returned.
    """
    for (left, _, a), (right, _, b) in zip(rows, rows[1:], strict=False):
        if minute <= right:
            share = (minute - left) / (right - left) if right > left else 1.0
            return a[set][figure] + share * (b[set][figure] - a[set][figure])
    return rows[-1][2][set][figure]


def verdict(curves: dict[str, dict], sets: list[str]) -> dict:
    """Compare the engine with each reference implementation.

    Returns:
        For each of them: at how many of the engine's measurements the engine is ahead on
        everything, the same count for each figure on every text, and the share of the reference's
        time after which the engine has reached the reference's last masked-LM loss.
    """
    result, engine = {}, curves["engine"]["rows"]
    for name in curves.keys() - {"engine"}:
        rows = curves[name]["rows"]
        # One row per measurement, one column per figure; a larger agreement is better, a smaller loss or KL is.
        ahead = [
            [all((b[s][i] < at_minute(rows, minute, s, i)) == (i < 2) for s in sets) for i in range(3)]
            for minute, _, b in engine[1:]
        ]
        when = {}
        for s in sets:
            last = rows[-1][2][s][0]
            minute = next(
                (m for m in (i * rows[-1][0] / 1000 for i in range(1001)) if at_minute(engine, m, s, 0) <= last), None
            )
            when[s or "corpus"] = None if minute is None else round(minute / rows[-1][0], 3)
        each = {figure: f"{sum(row[i] for row in ahead)} of {len(ahead)}" for i, figure in enumerate(FIGURES)}
        result[name] = {
            "ahead_at": f"{sum(map(all, ahead))} of {len(ahead)}",
            "ahead_by_figure": each,
            "share_of_its_time": when,
        }
    return result


def conditions() -> dict:
    """Return the conditions that the trainers' minutes must share to be comparable."""
    return {
        "machine": describe(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "deepspeed": version("deepspeed"),
    }


def refuse_another(folder: Path, kept: dict, now: dict) -> None:
    """Raise a UserError if `folder` holds a comparison with other options, or one measured under other conditions."""
    before, here = kept.pop("on", {}), now.pop("on")
    if kept != now:
        raise UserError(
            f"{folder} holds a comparison with other options (--minutes, --teacher, --corpus, recipe, …); choose "
            "another --output"
        )
    if other := [
        f"{name} {before.get(name, 'not recorded')}, here {value}"
        for name, value in here.items()
        if before.get(name) != value
    ]:
        raise UserError(
            f"{folder} holds a comparison under other conditions ({'; '.join(other)}), which is not comparable; "
            "choose another --output"
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.time_to_loss",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=amount, default=20, help="minutes of training per trainer (default 20)")
    parser.add_argument("--teacher", required=True, help="folder of a masked-LM model")
    parser.add_argument("--corpus", nargs="+", required=True, help="text, as for ds-distill prepare")
    parser.add_argument("--heldout", nargs="*", default=[], help="additional held-out texts")
    parser.add_argument(
        "--config", default="ds_configs/small_real.yaml", help="recipe (default ds_configs/small_real.yaml)"
    )
    parser.add_argument("--evaluations", type=count, default=20, help="measurements per trainer (default 20)")
    parser.add_argument(
        "--blocks", type=count, default=512, help="held-out blocks per measurement and text (default 512)"
    )
    parser.add_argument("--output", type=Path, required=True, help="output folder; a comparison in it is resumed")
    parser.add_argument(
        "--trainers", nargs="+", choices=TRAINERS, default=list(TRAINERS), help="trainers to run (default all)"
    )
    parser.add_argument("--trainer", choices=TRAINERS, help=argparse.SUPPRESS)  # runs one trainer in its own process
    args = parser.parse_args()
    with user_errors("benchmarks.training.time_to_loss"):
        return run(args)


def run(args: argparse.Namespace) -> int:
    """Run the trainers one after another and write the report; return the exit status.

    With --trainer, run only that trainer in this process.
    """
    silence_libraries(False)
    on_cpu_only()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the trainer too, as Ctrl-C does
    options = build_parser().parse_args(
        ["distill", "--config", args.config, "--output", str(args.output), "--teacher", args.teacher]
    )["distill"]
    recipe = build_recipe(options)
    recipe.check()
    if recipe.data.mode != "packed" or not recipe.data.attend_across_documents:
        raise UserError(
            "the comparison needs packed batches whose documents attend to each other; set data.mode = packed and "
            "data.attend_across_documents = true"
        )
    if recipe.training.micro_batch_size == "auto":
        raise UserError("training.micro_batch_size = auto: the comparison needs a number")
    default, student = vars(Recipe().student), vars(recipe.student)
    unknown = [f"student.{name}" for name in student if name not in COMPARED and student[name] != default[name]]
    others = {"losses.match": recipe.losses.match, "stages": recipe.stages}
    others["data.clean_fraction"] = recipe.data.clean_fraction
    unknown += [key for key, given in others.items() if given]
    if unknown:
        raise UserError(f"{', '.join(unknown)}: the reference implementation has nothing of the kind; leave it out")
    make_folder("--output", args.output)
    recipe.training.device, recipe.training.eval_max_sequences = "cpu", args.blocks
    settings = {
        "minutes": args.minutes,
        "evaluations": args.evaluations,
        "blocks": args.blocks,
        "recipe": recipe.as_dict(),
        "teacher": args.teacher,
        "corpus": args.corpus,
        "heldout": args.heldout,
    }
    file, here = args.output / "asked.json", conditions()
    if file.is_file():
        refuse_another(
            args.output, json.loads(file.read_text(encoding="utf-8")), json.loads(json.dumps({**settings, "on": here}))
        )
    if not args.trainer:
        start_distributed()
    tokens = (
        prepare_run_tokens(args.corpus, args.teacher, recipe, args.output / "tokens")
        if not args.trainer
        else args.output / "tokens"
    )
    recipe = with_prepared_settings(recipe, tokens)
    if args.trainer:
        names = json.loads((args.output / "heldout.json").read_text(encoding="utf-8"))
        run_trainer(args.trainer, recipe, args, tokens, {name: Path(path) for name, path in names.items()})
        return 0
    held = heldout_sets(args.heldout, tokens, recipe, args.output)
    write_json(args.output / "heldout.json", {name: str(path) for name, path in held.items()})
    write_json(file, {**settings, "on": here})
    curves = {}
    for name in args.trainers:
        curve = args.output / name / "curve.json"
        if not curve.is_file():
            status = subprocess.run(
                [sys.executable, "-m", "benchmarks.training.time_to_loss", *sys.argv[1:], "--trainer", name]
            ).returncode
            if status:
                return status
        curves[name] = json.loads(curve.read_text(encoding="utf-8"))
    sets = list(next(iter(curves.values()))["rows"][0][2])
    rows = [
        {
            "trainer": TRAINERS[name][0],
            "steps": c["step"],
            "tokens": c["tokens"],
            "minutes": c["elapsed"] / 60,
            "s/step": c["seconds_per_step"],
            "first": c["first_step_extra"],
            **{f"{s}/{f}": c["rows"][-1][2][s][i] for s in sets for i, f in enumerate(FIGURES)},
        }
        for name, c in curves.items()
    ]
    columns = {
        "trainer": "",
        "steps": "steps",
        "tokens": "tokens",
        "minutes": "minutes",
        "s/step": "s per step",
        "first": "extra time of the first step (s)",
    }
    result = {
        "minutes": args.minutes,
        "blocks": args.blocks,
        "trainers": rows,
        **here,
        "date": datetime.date.today().isoformat(),
    }
    masked = ", ".join(f"{count:,}" for count in next(iter(curves.values()))["masked_tokens"].values())
    lines = [
        f"{args.minutes:g} minutes of training each, alone on the machine; {masked} selected positions per text; "
        f"{result['machine']}, {result['threads']} threads, DeepSpeed {result['deepspeed']}, {result['date']}",
        table(rows, columns | {f"{s}/{f}": f"{s or 'corpus'}: {f}" for s in sets for f in FIGURES}),
    ]
    if "engine" in curves:
        result["engine_against"] = verdict(curves, sets)
        for name, comparison in result["engine_against"].items():
            when = ", ".join(
                f"{s} {'not reached' if share is None else f'{100 * share:.0f} %'}"
                for s, share in comparison["share_of_its_time"].items()
            )
            each = ", ".join(f"{figure} {count}" for figure, count in comparison["ahead_by_figure"].items())
            lines.append(
                f"engine compared with {TRAINERS[name][0]}: ahead in every metric at {comparison['ahead_at']} "
                f"measurements ({each}); share of the time in which the engine reaches the other's last masked-LM "
                f"loss: {when}"
            )
    print("\n" + "\n\n".join(lines) + "\n")
    print(json.dumps(result | {"plot": str(args.output / "time_to_loss.png")}), flush=True)
    (args.output / "time_to_loss.md").write_text(
        "# Time to loss\n\n" + "\n\n".join([*lines, "![figures over minutes](time_to_loss.png)"]) + "\n",
        encoding="utf-8",
    )
    time_to_loss_plot({TRAINERS[name][0]: c["rows"] for name, c in curves.items()}, args.output / "time_to_loss.png")
    write_json(args.output / "time_to_loss.json", result | {"curves": curves})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
