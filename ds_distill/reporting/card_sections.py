"""The parts of which the model cards of all kinds are made.

The YAML at a card's beginning has the keys that the Hugging Face Hub reads, in the form that huggingface_hub gives
them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

from ds_distill.reporting.provenance import Provenance

MADE_WITH = "made with ds-distill"
PIPELINES = {
    "masked-lm": "fill-mask",
    "classification": "text-classification",
    "question-answering": "question-answering",
    "token-classification": "token-classification",
    "encoder": "feature-extraction",
}
NO_HEAD = (
    "It returns hidden states and cannot fill a [MASK]: fine-tune it on a task, pool its states into embeddings, or "
    "give it a masked-LM head with `ds-distill pretrain --from`.\n\n"
)
# The Hub's relations are finetune, adapter, merge and quantized. A student of its teacher's layers
# that is trained further is nearest to the first; the tag "distillation" says the rest.
DERIVED, QUANTIZED = "finetune", "quantized"
# held-out figures for the Hub: those over [MASK] positions alone where they were measured, because
# other models are measured so
HELDOUT_FIGURES = (
    {"heldout_mask_loss": "loss", "heldout_mask_accuracy": "accuracy"},
    {"heldout_mlm_loss": "loss", "heldout_mlm_accuracy": "accuracy"},
)
FIGURE_NAMES = {"loss": "masked-LM loss (nats per token)", "accuracy": "masked-LM accuracy"}
# An example to run in the folder begins with this; `for_repository` puts the repository's name in.
THIS_FOLDER = 'name = "."  # this folder'
PIPELINE = """from transformers import pipeline

{name}
pipe = pipeline("{pipeline}", model=name)
print(pipe({given}))
"""
# transformers 5 has no pipeline for this
ANSWERS = """from transformers import AutoModelForQuestionAnswering, AutoTokenizer

{name}
tokenizer, model = AutoTokenizer.from_pretrained(name), AutoModelForQuestionAnswering.from_pretrained(name)
tokens = tokenizer("Who wrote it?", "Ada wrote the first program.", return_tensors="pt")
scores = model(**tokens)
start, end = int(scores.start_logits.argmax()), int(scores.end_logits.argmax())
print(tokenizer.decode(tokens["input_ids"][0, start : end + 1]))
"""
# The encoders of some families have a pooler, which a distillation does not train; without the option transformers
# would add a random one.
STATES = """from transformers import AutoModel, AutoTokenizer

{name}
tokenizer, model = AutoTokenizer.from_pretrained(name), AutoModel.from_pretrained(name{options})
output = model(**tokenizer("A text to embed.", return_tensors="pt"))
print(output.last_hidden_state.shape)  # one text, its tokens, the hidden size
"""
# A folder of pruned layers; the example begins with the code of models.loader_text.
LOADS = (
    "Its layers have individual shapes, which no stock class of transformers can represent. Load it with "
    "`ds_distill.load` or any command of ds-distill or, without ds-distill, with these lines in transformers 5:\n\n"
)
LOADED = 'print(model(**tokenizer({given}, return_tensors="pt"))[0].shape)\n'
INPUTS = {
    "masked-lm": 'f"The capital of France is {pipe.tokenizer.mask_token}."',
    "classification": '"A text to classify."',
    "multi-label": '"A text to classify.", top_k=None',
    "token-classification": '"Ada wrote it in London.", aggregation_strategy="first"',
    "pair": '{"text": "The first text.", "text_pair": "The second text."}',
}


def front_matter(head: str, **entries: Any) -> str:
    """Return the YAML that a model card begins with.

    Args:
        head: A key of PIPELINES.
        **entries: Further entries, as huggingface_hub's ModelCardData takes them; empty ones are left
            out.
    """
    from huggingface_hub import ModelCardData

    known = {key: value for key, value in entries.items() if value}
    if "eval_results" not in known:
        known.pop("model_name", None)  # only a model-index has it
    data = ModelCardData(library_name="transformers", pipeline_tag=PIPELINES[head], **known)
    order = ["library_name", "pipeline_tag", "license", "license_name", "license_link", "language"]
    return f"---\n{data.to_yaml(original_order=order)}\n---\n\n"


def provenance_entries(origin: Provenance) -> dict[str, Any]:
    """Return the entries of a card's YAML that follow from what a model was made of."""
    relation = {"base_model_relation": DERIVED} if origin.base_model else {}
    entries = {"language": origin.language, **origin.license, "base_model": origin.base_model, **relation}
    return entries | {"datasets": origin.datasets}


def card_tags(origin: Provenance) -> list[str]:
    """Return the tags that the card of a model made of `origin` has on the Hub."""
    return ["ds-distill", *(["distillation"] if origin.distilled else [])]


def encoder_tags(origin: Provenance, loader: str | None) -> list[str]:
    """Return the tags of a model without a task's head; sentence-transformers loads it if a stock class does."""
    return [*card_tags(origin), *(["sentence-transformers"] if origin.sentence_transformers and not loader else [])]


def is_measured(value: float | None) -> TypeGuard[float]:
    """Return whether a figure is there and finite."""
    return value is not None and math.isfinite(value)


def heldout_results(summary: dict, datasets: list[str]) -> Iterator:
    """Yield the held-out figures of a run as EvalResults."""
    from huggingface_hub import EvalResult

    keys = next((keys for keys in HELDOUT_FIGURES if any(is_measured(summary.get(key)) for key in keys)), {})
    for key, metric in keys.items():
        if is_measured(summary.get(key)):
            yield EvalResult(
                task_type="fill-mask",
                dataset_type=datasets[0] if len(datasets) == 1 else "text",
                dataset_name="held-out documents of the training text",
                metric_type=metric,
                metric_name=FIGURE_NAMES[metric] + (", [MASK] positions" if "_mask_" in key else ""),
                metric_value=summary[key],
            )


def made_of(origin: Provenance) -> str:
    """Return the end of a card's first sentence, which names what the model was made of; empty where unknown."""
    if origin.base is None:
        return ""
    revision = f" (revision `{origin.revision}`)" if origin.revision else ""
    others = "".join(f" and `{name}`" for name in origin.further_teachers)
    return f", {'distilled from' if origin.distilled else 'made from'} `{origin.base}`{revision}{others}"


def usage_section(kind: str, pooler: bool = False, loader: str | None = None) -> str:
    """Return the section with an example to run in the folder.

    Args:
        kind: A key of PIPELINES, or "pair".
        pooler: Whether transformers adds a pooler to a bare encoder unless it is told not to.
        loader: The code of `models.loader_text` where the folder loads as no stock class.
    """
    if loader:
        code = loader.replace("{name}", THIS_FOLDER) + LOADED.format(given=_loaded_call(kind))
        return f"## Use\n\n{LOADS}```python\n{code}```\n\n"
    if kind == "encoder":
        code = STATES.format(name=THIS_FOLDER, options=", add_pooling_layer=False" if pooler else "")
    elif kind == "question-answering":
        code = ANSWERS.format(name=THIS_FOLDER)
    else:
        pipeline = PIPELINES.get(kind, PIPELINES["classification"])
        code = PIPELINE.format(name=THIS_FOLDER, pipeline=pipeline, given=INPUTS[kind])
    return f"## Use\n\n```python\n{code}```\n\n"


def _loaded_call(kind: str) -> str:
    """Return the arguments of a tokenizer for an example."""
    calls = {"pair": '"The first text.", "The second text."', "masked-lm": 'f"A {tokenizer.mask_token} text."'}
    return calls.get(kind, '"A text to read."')


def training_section(origin: Provenance, remarks: Sequence[str] = ()) -> str:
    """Return the section on how the model was made; empty where nothing is known."""
    lines = [f"- {remark}" for remark in remarks]
    if origin.base and origin.base_layers:
        role = "teacher" if origin.distilled else "model that it was made from"
        if origin.layers is not None:
            copied = ", ".join(map(str, origin.layers))
            layers = f"these of the {role}, which has {origin.base_layers}, counted from 0: {copied}"
            lines.append(f"- Its layers started from {layers}.")
        else:
            start = f"the weights of `{origin.start}`" if origin.start else "random weights"
            start += f" but for the word embeddings, which are the {role}'s" if origin.embeddings else ""
            lines.append(f"- It started from {start}; the {role} has {origin.base_layers} layers.")
    if origin.hardware:
        lines.append(f"- Hardware: {origin.hardware}.")
    if origin.versions:
        lines.append("- Versions: " + ", ".join(f"{name} {value}" for name, value in origin.versions.items()) + ".")
    return "## Training\n\n" + "\n".join(lines) + "\n\n" if lines else ""


def factors_remarks(rank: int | None) -> list[str]:
    """Return what a card says of linear layers that were trained in factors of a rank; nothing for None."""
    if rank is None:
        return []
    return [
        f"Its linear layers were trained as products of two factors of rank {rank}. This folder holds the products, "
        "which stock classes read, so that it is as large as one of whole layers; the files that `ds-distill export` "
        "makes of it hold the factors, and are smaller."
    ]


def limitations_section(origin: Provenance, measured: str) -> str:
    """Return the section on what was not measured; `measured` is a sentence on what was."""
    teachers = ", ".join(f"`{name}`" for name in (origin.base, *origin.further_teachers))
    source = f"of {teachers} and of the training text" if origin.base else "of the training text"
    return (
        f"## Limitations\n\n- It inherits the biases and gaps {source}; they were not measured.\n- {measured}\n"
        + (f"- No license is given: {_no_license(origin)}.\n" if origin.base and not origin.license else "")
        + "\n"
    )


def _no_license(origin: Provenance) -> str:
    """Return why a card names no license."""
    if origin.further_teachers:
        return "the files at hand do not name one and the same for all of its teachers"
    return f"no file of `{origin.base}` at hand names one"
