"""transformers: run `pipeline` with its defaults, and call the model on its tokenizer's output."""

import torch
import transformers
from checks import call, numbers, run_checks
from transformers import AutoTokenizer, pipeline
from transformers_classes import AUTO


def load(check):
    folder, task = check["folder"], check["task"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = getattr(transformers, AUTO[task]).from_pretrained(folder)
    name = "text-classification" if task == "regression" else task
    # transformers 5 no longer has a pipeline for questions.
    pipe = pipeline(name, folder) if name in transformers.pipelines.SUPPORTED_TASKS else None

    def answer(given):
        with torch.no_grad():
            outputs = model(**call(tokenizer, given, return_tensors="pt"))
        if task == "question-answering":
            views = {"logits": numbers([outputs.start_logits, outputs.end_logits])}
        else:
            views = {"logits": numbers(outputs[0])}
        if pipe is None:
            return views
        if task == "question-answering":
            result = pipe(question=given["text"], context=given["pair"])
            return views | {"answer": result["answer"]}
        try:
            result = ask(given)
        except (RuntimeError, IndexError):  # these pipelines truncate only on request
            cut = {"tokenizer_kwargs": {"truncation": True}} if task == "fill-mask" else {"truncation": True}
            result = ask(given, **cut)
            check["notes"].append("overlong text: with truncation=True")
        if task == "feature-extraction":
            return views | {"logits": numbers(torch.tensor(result))}
        key = "token" if task == "fill-mask" else "label"
        return views | {"scores": [[row[key], row["score"]] for row in result]}

    def ask(given, **options):
        result = pipe(
            {"text": given["text"], "text_pair": given["pair"]} if "pair" in given else given["text"], **options
        )
        return [result] if isinstance(result, dict) else result

    return answer


run_checks(load, ["transformers", "torch"])
