"""Compare encoders as sentence embedders, as they are, on pairs of sentences that people have scored.

    python -m benchmarks.analysis.embedding_similarity --models TEACHER STUDENT… --data TASKS/stsb

A sentence's embedding is the mean of the last hidden states of its tokens (Reimers and Gurevych
2019, section 3), and a pair's score the cosine of its two embeddings. Nothing is fine-tuned, so
there are no seeds. The correlation with people's scores is reported for each model; the first one
is what the others are compared with, by a paired bootstrap over pairs. The last line of standard
output is JSON.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness.cli import count, user_errors
from benchmarks.harness.machine import describe
from ds_distill.cli.app import silence_libraries
from ds_distill.exporters.model import load_source
from ds_distill.reporting.tables import table
from ds_distill.study.bootstrap import Estimate, estimate, resample_scores, share_of
from ds_distill.tasks.catalog import TASKS
from ds_distill.tasks.examples import load_examples
from ds_distill.tasks.metric_sums import METRIC_SUMS
from ds_distill.tasks.metrics import METRICS
from ds_distill.utils.console import progress

BATCH = 64  # sentences


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.analysis.embedding_similarity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", required=True, help="folders of encoders; the first is the reference")
    parser.add_argument("--data", required=True, help="folder of STS-B, as for ds-distill finetune --task stsb")
    parser.add_argument("--max-length", type=count, default=128, help="tokens of a sentence (default 128)")
    options = parser.parse_args()
    with user_errors("benchmarks.analysis.embedding_similarity"):
        return run(options)


def run(options: argparse.Namespace) -> int:
    """Embed the sentences with each model, and print the table."""
    silence_libraries(False)
    examples = load_examples(TASKS["stsb"], "validation", options.data)
    labels = np.asarray(examples.labels, dtype=np.float64)
    first, second = examples.texts
    cosines = {}
    for model in options.models:
        embedded = embed([*first, *second], model, options.max_length)
        cosines[model] = (embedded[: len(first)] * embedded[len(first) :]).sum(1)
    pearson = METRIC_SUMS["pearson"]
    draws = resample_scores(
        {model: [pearson.terms(values, labels)] for model, values in cosines.items()}, pearson.score, task="stsb"
    )
    reference = draws[options.models[0]]
    measured = []
    for model, values in cosines.items():
        spearman = METRICS["spearman"](values, labels)
        measured.append(
            {
                "model": model,
                "spearman": spearman and 100 * spearman,
                "pearson": estimate(100 * draws[model]),
                "difference": estimate(100 * (draws[model] - reference)),
                "share": estimate(100 * share_of(draws[model], reference)),
            }
        )
    columns = {
        "model": "model",
        "spearman": "Spearman × 100",
        "pearson": "Pearson × 100",
        "difference": "difference",
        "share": "share of the first (%)",
    }
    print(table([{name: cell(value) for name, value in row.items()} for row in measured], columns) + "\n")
    print(json.dumps({"pairs": len(labels), "models": measured, "machine": describe(torch.device("cpu"))}))
    return 0


@torch.inference_mode()
def embed(sentences: list[str], model: str, max_length: int) -> np.ndarray:
    """Return the unit-length embeddings of sentences, fp32 [sentences, H]."""
    source = load_source(model, "encoder", option="--models")
    order = sorted(range(len(sentences)), key=lambda index: len(sentences[index]))
    embedded = np.empty((len(sentences), source.model.config.hidden_size), dtype=np.float32)
    with progress(len(sentences), Path(model).name, "sentence") as bar:
        for start in range(0, len(order), BATCH):
            at = order[start : start + BATCH]
            inputs = source.tokenizer(
                [sentences[index] for index in at],
                padding=True,
                truncation=True,
                max_length=max_length,
                return_tensors="pt",
            )
            states = source.model(**inputs).last_hidden_state
            mask = inputs["attention_mask"].unsqueeze(-1)
            mean = (states * mask).sum(1) / mask.sum(1)
            embedded[at] = torch.nn.functional.normalize(mean, dim=1).numpy()
            bar.update(len(at))
    return embedded


def cell(figure: object) -> object:
    """Return a figure as a table shows it, with its interval if it has one."""
    if isinstance(figure, Estimate):
        return f"{figure.value:.1f} ({figure.low:.1f} to {figure.high:.1f})"
    return f"{figure:.1f}" if isinstance(figure, float) else figure


if __name__ == "__main__":
    raise SystemExit(main())
