"""Show which layers a task needs.

    python -m benchmarks.analysis.layer_selection --task stsb --model FINETUNED --data DIR

It measures a fine-tuned model's score without each of its layers, and with every choice of as many
layers as a student would get. Nothing is trained, so this takes minutes, where a student of each
choice takes hours. The order of the choices hints at which to try as student.init_layers, but it is not
a forecast: docs/dev/log.md has the scores that students of some of them reached. If there are more
choices than --most, layers are dropped one by one, each time the layer whose loss costs the least.
The last line of standard output is JSON.
"""

import argparse
import json
import math
from collections.abc import Callable
from itertools import combinations

import torch
from torch import nn
from transformers import PreTrainedModel

from benchmarks.harness.cli import count, user_errors
from ds_distill.data.tokenizer import load_tokenizer
from ds_distill.finetune.config import FinetuneConfig
from ds_distill.finetune.data import encode_sets, load_data
from ds_distill.finetune.features import Collator
from ds_distill.finetune.heads import load_for_task
from ds_distill.finetune.trainer import score_model
from ds_distill.models.families import get_family
from ds_distill.models.folder import resolve_model_folder
from ds_distill.reporting.tables import table
from ds_distill.tasks.catalog import get_task
from ds_distill.tasks.metrics import rank
from ds_distill.utils.errors import UserError

Choice = tuple[int, ...]


class PrunedModel:
    """A model with some of its layers, whose score `measure` returns; each choice is measured once."""

    def __init__(self, model: PreTrainedModel, measure: Callable[[str], float | None]):
        owner, _, self.name = get_family(model).layers.rpartition(".")
        self.owner, self.measure, self.scores = model.get_submodule(owner), measure, dict[Choice, float | None]()
        self.layers = list(getattr(self.owner, self.name))

    def score(self, keep: Choice) -> float | None:
        """Return the score with the layers `keep` only."""
        if keep not in self.scores:
            setattr(self.owner, self.name, nn.ModuleList([self.layers[i] for i in keep]))
            self.scores[keep] = self.measure(f"layers {', '.join(map(str, keep))}")
        return self.scores[keep]


def without_each(pruned: PrunedModel, keep: Choice) -> list[tuple[float | None, Choice]]:
    """Return the scores without one layer of `keep`, in the order of the layers."""
    return [(pruned.score(rest), rest) for rest in (tuple(i for i in keep if i != out) for out in keep)]


def rank_choices(pruned: PrunedModel, count: int, most: int) -> list[tuple[float | None, Choice]]:
    """Return (score, layers) of the choices of `count` layers, best first.

    If there are more than `most` choices, only those of the last round of dropping layers one by
    one are returned.
    """
    every = tuple(range(len(pruned.layers)))
    if math.comb(len(every), count) <= most:
        scored = [(pruned.score(keep), keep) for keep in combinations(every, count)]
    else:
        keep = every
        while len(keep) > count:
            scored = without_each(pruned, keep)
            keep = max(scored, key=_ranked)[1]
    return sorted(scored, key=_ranked, reverse=True)


def _ranked(scored: tuple[float | None, Choice]) -> tuple[float, Choice]:
    return rank(scored[0]), scored[1]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.analysis.layer_selection",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--task", required=True, help="name of the task, as for ds-distill finetune")
    parser.add_argument("--model", required=True, help="folder of a teacher that is fine-tuned on the task")
    parser.add_argument(
        "--data", help="folder of the task's files, as for ds-distill finetune; loaded from the Hub when not given"
    )
    parser.add_argument("--keep", type=count, help="number of layers to keep (default: half of them)")
    parser.add_argument("--examples", type=count, default=400, help="number of dev examples to score (default 400)")
    parser.add_argument(
        "--most",
        type=count,
        default=100,
        help="measure all choices of layers if there are at most this many (default 100)",
    )
    parser.add_argument("--threads", type=count, default=2, help="CPU threads (default 2)")
    args = parser.parse_args()
    with user_errors("benchmarks.analysis.layer_selection"):
        return run(args)


def run(args: argparse.Namespace) -> int:
    torch.set_num_threads(args.threads)
    task = get_task(args.task)
    model, tokenizer = (
        load_for_task(args.model, task, "model", tuned=True).eval(),
        load_tokenizer(resolve_model_folder(args.model, "--model")),
    )
    depth = get_family(model).dims(model.config).depth
    count = depth // 2 if args.keep is None else args.keep
    if not 1 <= count < depth:
        raise UserError(f"--keep {count}: the model has {depth} layers; give a number from 1 to {depth - 1}")
    if args.examples < 2:
        raise UserError(f"--examples {args.examples}: must be at least 2")
    data = load_data(task, args.data)
    data.train = data.train[:1]  # nothing is trained
    data.dev = {split: part[: args.examples] for split, part in data.dev.items()}
    sets = encode_sets(data, tokenizer, FinetuneConfig(), get_family(model).positions(model.config))
    collator, first = Collator(tokenizer), task.metrics[0]
    pruned = PrunedModel(model, lambda what: score_model(task, model, sets, collator, 32, what)[first])
    every = tuple(range(depth))
    whole, less, choices = pruned.score(every), without_each(pruned, every), rank_choices(pruned, count, args.most)
    rows = [
        {"layers": "all", "score": whole},
        *({"layers": f"without {i}", "score": score} for i, (score, _) in enumerate(less)),
    ]
    rows += [{"layers": str(list(keep)), "score": score} for score, keep in choices]
    columns = {"layers": "layers", "score": f"{task.name}, {first}, {len(next(iter(data.dev.values())))} examples (%)"}
    print(
        table([row | {"score": None if row["score"] is None else f"{100 * row['score']:.1f}"} for row in rows], columns)
        + "\n"
    )
    print(
        json.dumps(
            {
                "task": task.name,
                "metric": first,
                "all": whole,
                "without": [score for score, _ in less],
                "choices": [{"layers": keep, "score": score} for score, keep in choices],
            }
        )
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
