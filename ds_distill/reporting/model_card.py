"""Model cards: the README.md of a folder that holds a model.

The YAML at its beginning has the keys that the Hugging Face Hub reads, in the form that
huggingface_hub gives them.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from ds_distill.reporting.provenance import Provenance, parse_front_matter
from ds_distill.reporting.tables import table
from ds_distill.tasks.catalog import Task
from ds_distill.utils.files import json_text

MADE_WITH = "made with ds-distill"
PIPELINES = {
    "masked-lm": "fill-mask",
    "classification": "text-classification",
    "question-answering": "question-answering",
    "token-classification": "token-classification",
    "encoder": "feature-extraction",
}
HELDOUT_POSITIONS = (
    " Those called `mask` are measured at the positions that show [MASK]; those called `mlm` at all selected "
    "positions, of which 80 % show [MASK], 10 % a random token (`random`) and 10 % the token itself (`kept`), where "
    "the answer is visible. Losses are in nats per position, accuracies are shares, `count` is the number of "
    "positions and `se` a standard error over sequences."
)
MATCHED_TERMS = (
    " They are the means over real tokens of the terms of the loss, which compare the encoder with its teacher, and of "
    "their weighted sum (`heldout_loss`); `count` is the number of tokens and `se` a standard error over sequences."
)
NO_HEAD = (
    "It returns hidden states and cannot fill a [MASK]: fine-tune it on a task, pool its states into embeddings, or "
    "give it a masked-LM head with `ds-distill pretrain --from`.\n\n"
)
# The Hub's relations are finetune, adapter, merge and quantized. A student of its teacher's layers
# that is trained further is nearest to the first; the tag "distillation" says the rest.
DERIVED, QUANTIZED = "finetune", "quantized"
# name of a figure on the Hub, by the name that a task gives it
HUB_METRICS = {"matthews": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr"}
# held-out figures for the Hub: those over [MASK] positions alone where they were measured, because
# other models are measured so
HELDOUT_FIGURES = (
    {"heldout_mask_loss": "loss", "heldout_mask_accuracy": "accuracy"},
    {"heldout_mlm_loss": "loss", "heldout_mlm_accuracy": "accuracy"},
)
FIGURE_NAMES = {"loss": "masked-LM loss (nats per token)", "accuracy": "masked-LM accuracy"}
# An example to run in the folder begins with this; `for_repository` puts the repository's name in.
THIS_FOLDER = 'name = "."  # this folder'
EXAMPLE_NAME = re.compile(r'^name = "[^"]*".*$', re.MULTILINE)
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
    "Its layers have shapes of their own, with which no stock class is built. `ds_distill.load` loads it and so does "
    "every command of ds-distill; so do these lines, without ds-distill:\n\n"
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


def model_card(
    title: str,
    summary: dict,
    recipe: dict,
    fingerprint: str,
    origin: Provenance | None = None,
    *,
    head: str = "masked-lm",
    pooler: bool = False,
    loader: str | None = None,
) -> str:
    """Return the README.md of an export: measured figures, what it was made of, recipe and data fingerprint.

    Args:
        title: The title.
        summary: The run's figures.
        recipe: The run's settings, by section or by dotted key.
        fingerprint: That of the data.
        origin: What it was made of.
        head: "masked-lm", or "encoder" for a bare encoder.
        pooler: Whether transformers adds a pooler to such an encoder unless it is told not to.
        loader: The code of `models.loader_text` for a model that is of no stock class.
    """
    origin = origin or Provenance()
    figures: dict[str, Any] = {key: value for key, value in summary.items() if isinstance(value, int | float)}
    figures = dict(sorted(figures.items(), key=lambda figure: not figure[0].startswith("heldout_mask_")))
    positions = HELDOUT_POSITIONS if "heldout_mask_loss" in figures else ""
    embeds = ["sentence-transformers"] if origin.sentence_transformers else []
    if head == "encoder":
        # terms of the loss may be small
        figures = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in figures.items()}
        kind, measured = "A bare encoder, without a masked-LM head,", "the figures above"
        positions = MATCHED_TERMS if "heldout_loss" in figures else ""
    else:
        kind, measured = "A masked language model", "the masked-LM figures above"
    return (
        front_matter(
            head,
            **provenance_entries(origin),
            tags=_tags(origin) + embeds,
            model_name=title,
            eval_results=list(_heldout_results(summary, origin.datasets)),
        )
        + f"# {title}\n\n{kind} {MADE_WITH}{_made_of(origin)}.\n\n"
        + (NO_HEAD if head == "encoder" else "")
        + _usage(head, pooler, loader)
        + "## Measured\n\n"
        + table(
            [{"figure": key, "value": value} for key, value in figures.items()], {"figure": "figure", "value": "value"}
        )
        + f"\n\nHeld-out figures refer to the held-out documents and masks of this run.{positions}\n\n"
        + _training(origin, _objective(recipe))
        + f"## Data\n\nFingerprint: `{fingerprint}`\n\n"
        + _limitations(origin, f"Nothing but {measured} was measured: no task, and no other text.")
        + "## Recipe\n\n```json\n"
        + json_text(_without_folders(recipe), indent=2)
        + "\n```\n"
    )


def task_card(
    head: str,
    task: Task,
    metrics: dict[str, float | None],
    settings: dict,
    remark: str = "",
    origin: Provenance | None = None,
    constant: dict[str, float] | None = None,
    loader: str | None = None,
) -> str:
    """Return the README.md of a fine-tuned folder: its scores on the task's dev set and its settings.

    Args:
        head: A key of PIPELINES.
        task: The task.
        metrics: The scores, as `score_model` returns them.
        settings: How it was trained.
        remark: A remark on the scores.
        origin: What it was made of.
        constant: The scores of the constant answer, see `tasks.dev_outputs`.
        loader: As in `model_card`.
    """
    origin, constant = origin or Provenance(), constant or {}
    rows = [
        {"metric": name.replace("_", " "), "value": value, "constant": constant.get(name)}
        for name, value in metrics.items()
    ]
    columns = {"metric": "on the dev set", "value": "value"} | ({"constant": "constant answer"} if constant else {})
    remark = f"{remark}\n\n" if remark else ""
    labels = ", ".join(f"{number} is `{label}`" for number, label in enumerate(task.labels))
    results = list(_task_results(head, task, metrics, origin.datasets))
    return (
        front_matter(
            head,
            **provenance_entries(origin),
            tags=_tags(origin),
            metrics=list(dict.fromkeys(result.metric_type for result in results)),
            model_name=f"A model for {task.name}",
            eval_results=results,
        )
        + f"# A model for {task.name}\n\nAn encoder fine-tuned on the task {task.name} with ds-distill"
        + f"{_made_of(origin)}.\n\n"
        + _usage(
            "pair" if len(task.texts) == 2 and not task.spans else "multi-label" if task.multi_label else head,
            loader=loader,
        )
        + (f"Its labels: {labels}.\n\n" if labels else "")
        + f"## Measured\n\n{table(rows, columns)}\n\n{remark}"
        + _training(origin)
        + _limitations(origin, f"Nothing but the scores above, on the dev set of {task.name}, was measured.")
        + "## Settings\n\n```json\n"
        + json_text(settings, indent=2)
        + "\n```\n"
    )


def provenance_entries(origin: Provenance) -> dict[str, Any]:
    """Return the entries of a card's YAML that follow from what a model was made of."""
    relation = {"base_model_relation": DERIVED} if origin.base_model else {}
    entries = {"language": origin.language, **origin.license, "base_model": origin.base_model, **relation}
    return entries | {"datasets": origin.datasets}


def _tags(origin: Provenance) -> list[str]:
    return ["ds-distill", *(["distillation"] if origin.distilled else [])]


def _is_measured(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _heldout_results(summary: dict, datasets: list[str]) -> Iterator:
    """Yield the held-out figures of a run as EvalResults."""
    from huggingface_hub import EvalResult

    keys = next((keys for keys in HELDOUT_FIGURES if any(_is_measured(summary.get(key)) for key in keys)), {})
    for key, metric in keys.items():
        if _is_measured(summary.get(key)):
            yield EvalResult(
                task_type="fill-mask",
                dataset_type=datasets[0] if len(datasets) == 1 else "text",
                dataset_name="held-out documents of the training text",
                metric_type=metric,
                metric_name=FIGURE_NAMES[metric] + (", [MASK] positions" if "_mask_" in key else ""),
                metric_value=summary[key],
            )


def _task_results(head: str, task: Task, metrics: dict[str, float | None], datasets: list[str]) -> Iterator:
    """Yield the dev scores of a fine-tuned model as EvalResults."""
    from huggingface_hub import EvalResult

    for name, value in metrics.items():
        metric = next((known for known in task.metrics if name.endswith(known)), name)
        part = name.removesuffix(metric).rstrip("_")  # of a second dev set
        split = next((split for split in task.validation if part and split.endswith(part)), task.validation[0])
        if _is_measured(value):
            yield EvalResult(
                task_type=PIPELINES[head],
                dataset_type=task.hub[0] if datasets else task.name,
                dataset_name=task.name if datasets else f"{task.name}, local files",
                dataset_config=task.hub[1] if datasets else None,
                dataset_split=split,
                metric_type=HUB_METRICS.get(metric, metric),
                metric_name=name.replace("_", " "),
                metric_value=value,
            )


def _made_of(origin: Provenance) -> str:
    if origin.base is None:
        return ""
    revision = f" (revision `{origin.revision}`)" if origin.revision else ""
    others = "".join(f" and `{name}`" for name in origin.further_teachers)
    return f", {'distilled from' if origin.distilled else 'made from'} `{origin.base}`{revision}{others}"


def _usage(kind: str, pooler: bool = False, loader: str | None = None) -> str:
    """Return the section with an example to run in the folder; `kind` is a key of PIPELINES, or "pair"."""
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
    return {"pair": '"The first text.", "The second text."', "masked-lm": 'f"A {tokenizer.mask_token} text."'}.get(
        kind, '"A text to read."'
    )


def _objective(recipe: dict) -> list[str]:
    """Return sentences on what a run was trained to do beyond the usual; the recipe is as of `model_card`."""
    data = recipe.get("data")  # by dotted key, this is the text's fingerprint
    clean = data.get("clean_fraction") if isinstance(data, dict) else recipe.get("data.clean_fraction")
    stages = recipe.get("stages", [])
    remarks = (
        [f"{clean:.3g} of its training sequences, others in each epoch, were shown without masks."] if clean else []
    )
    if stages:
        shares = ", ".join(f"{stage['share']:.3g}" for stage in stages)
        remarks.append(
            f"It was trained in {len(stages)} stages with these shares of the steps: {shares}. See the recipe."
        )
    return remarks


def _training(origin: Provenance, remarks: Sequence[str] = ()) -> str:
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
            lines.append(f"- It started from {start}; the {role} has {origin.base_layers} layers.")
    if origin.hardware:
        lines.append(f"- Hardware: {origin.hardware}.")
    if origin.versions:
        lines.append("- Versions: " + ", ".join(f"{name} {value}" for name, value in origin.versions.items()) + ".")
    return "## Training\n\n" + "\n".join(lines) + "\n\n" if lines else ""


def _limitations(origin: Provenance, measured: str) -> str:
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


def for_repository(card: str, name: str) -> str:
    """Return a model card of this package with the repository's name as its title and in its example."""
    metadata, title = parse_front_matter(card), name.split("/")[-1]
    for entry in metadata.get("model-index") or []:
        card = card.replace(f"\n# {entry['name']}\n", f"\n# {title}\n", 1)
        entry["name"] = title
    if "model-index" not in metadata and MADE_WITH in card:
        card = re.sub(r"^# .*$", f"# {title}", card, count=1, flags=re.MULTILINE)
    card = EXAMPLE_NAME.sub(f'name = "{name}"', card, count=1)
    return set_metadata(card, **metadata) if metadata else card


def set_metadata(card: str, **entries: Any) -> str:
    """Return a model card with these entries in the YAML that it begins with, which replace those of the same names."""
    metadata = parse_front_matter(card)
    body = card[card.index("\n---\n", 4) + 5 :] if metadata else f"\n{card}"
    text = yaml.safe_dump(metadata | entries, sort_keys=False, allow_unicode=True)
    return f"---\n{text}---\n{body}"


def _without_folders(value: object) -> object:
    """Return a recipe's values fit for a published file: only the name of an absolute path."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value


def put_section(card: Path, heading: str, text: str) -> None:
    """Write the section `## heading` with `text` into the Markdown file `card`.

    It replaces the section of that name if there is one, and creates the file if there is none.
    """
    old_text = card.read_text(encoding="utf-8") if card.is_file() else ""
    section = f"## {heading}\n\n{text.strip()}\n"
    match = re.search(rf"^## {re.escape(heading)}\n.*?(?=^## |\Z)", old_text, flags=re.M | re.S)
    if match:
        new_text = (
            old_text[: match.start()] + section + ("\n" if old_text[match.end() :] else "") + old_text[match.end() :]
        )
    else:
        new_text = (old_text.rstrip("\n") + "\n\n" if old_text else "") + section
    card.write_text(new_text, encoding="utf-8")
