"""sentence-transformers: load classifiers and scores of pairs as cross-encoders."""

import torch
from checks import numbers, run_checks
from sentence_transformers import CrossEncoder


def load(check):
    model = CrossEncoder(check["folder"], device="cpu")

    def answer(given):
        scores = model.predict([(given["text"], given["pair"])], activation_fn=torch.nn.Identity())
        return {"logits": numbers(torch.as_tensor(scores))}

    return answer


run_checks(load, ["sentence-transformers", "transformers"])
