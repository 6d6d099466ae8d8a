"""The scores of tags: those of whole entities, or of single words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ds_distill.tasks.metrics import Measured
from ds_distill.tasks.tagged import OUTSIDE


def tag_scores(metrics: Sequence[str], predicted: list[list[str]], gold: list[list[str]]) -> Measured:
    """Return scores of tags by name, as shares.

    f1, precision and recall are those of entities over all types, where an entity counts if its
    first word, its last word and its type are right, as in CoNLL's own script. accuracy is that of
    words. None means that there was nothing to measure.

    Args:
        metrics: The names of the metrics.
        predicted: The tags of each sentence's words.
        gold: The right ones.
    """
    if "accuracy" in metrics:
        pairs = [pair for tags in zip(predicted, gold, strict=True) for pair in zip(*tags, strict=True)]
        return {"accuracy": sum(one == other for one, other in pairs) / len(pairs) if pairs else None}
    types = sorted({tag[2:] for tags in (*predicted, *gold) for tag in tags if tag != OUTSIDE})
    if not types:
        return dict.fromkeys(metrics)
    from nervaluate import Evaluator

    strict = Evaluator(gold, predicted, tags=types, loader="list").evaluate()["overall"]["strict"]
    return {name: float(getattr(strict, name)) for name in metrics}


def count_tags(metrics: Sequence[str], predicted: list[list[str]], gold: list[list[str]]) -> np.ndarray:
    """Return for each sentence how many entities are right, predicted and there, fp64 [sentences, 3].

    Where the metric is accuracy, these are counts of words. `metric_sums.TAG_SCORES` has the scores of their sums,
    which are those of `tag_scores`.
    """
    if "accuracy" in metrics:
        pairs = list(zip(predicted, gold, strict=True))
        counts = [[sum(map(str.__eq__, *pair)), len(pair[1]), len(pair[1])] for pair in pairs]
    else:
        from nervaluate import Evaluator

        types = sorted({tag[2:] for tags in (*predicted, *gold) for tag in tags if tag != OUTSIDE})
        evaluator = Evaluator(gold, predicted, tags=types, loader="list")
        found, wanted = (
            [{(entity.label, entity.start, entity.end) for entity in sentence} for sentence in side]
            for side in (evaluator.pred, evaluator.true)
        )
        counts = [[len(own & right), len(own), len(right)] for own, right in zip(found, wanted, strict=True)]
    return np.array(counts, np.float64).reshape(-1, 3)
