"""The header of a run: what it trains, on what and for how long, known before the first step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ds_distill.models.families import get_family
from ds_distill.models.student import count_parameters
from ds_distill.reporting.run_panels import term_labels
from ds_distill.reporting.run_text import describe_device, describe_model, millions
from ds_distill.utils.articles import counted

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ds_distill.training.trainer import Trainer


def overview(trainer: Trainer) -> dict[str, str]:
    """Return the lines of a run's header by their labels."""
    loader, done = trainer.loader, trainer.state.step
    manifest = loader.store.manifest
    teachers = trainer.teacher.models if trainer.teacher else ()
    lines_of_models = {"teacher": _describe(teachers[0])} if teachers else {}
    if len(teachers) > 1:
        weights = trainer.objective.losses.weights_of_teachers(len(teachers))
        lines_of_models = {
            f"teacher {number}": f"{_describe(model)}; weight {weight:.3g}"
            for number, (model, weight) in enumerate(zip(teachers, weights, strict=True), 1)
        }
    lines_of_models["student" if teachers else "model"] = _describe(trainer.objective.model)
    precision = _name(trainer.dtype)
    if teachers and (frozen := _name(next(teachers[0].parameters()).dtype)) != precision:
        precision += f" (teacher {frozen})"
    documents, tokens = manifest["documents"], manifest["real_tokens"]
    length = manifest["sequence_length"]
    lines = manifest["mode"] == "lines"  # shorter sequences than the others, which are full
    mean = tokens["train"] / max(1, manifest["blocks"]["train"]) if lines else length
    steps, batch = trainer.total_steps, loader.global_batch_size
    epochs = steps / loader.steps_per_epoch
    clean = trainer.recipe.data.clean_fraction
    labels = term_labels(trainer.objective.losses, clean_fraction=clean)
    return {
        **lines_of_models,
        "device": f"{describe_device(trainer.device, loader.world_size)}, {precision}, "
        f"ZeRO stage {trainer.engine.deepspeed.zero_optimization_stage()}",
        "text": f"{documents['train']:,} documents, {millions(tokens['train'])} tokens"
        # the held-out text may be another one, of which these tokens do not tell
        + (
            f"; held out: {documents['heldout']:,} documents, {millions(tokens['heldout'])} tokens"
            if documents["heldout"]
            else ""
        ),
        "steps": f"{steps:,}, each on {batch:,} sequences of {'up to ' * lines}{length} tokens; "
        f"{millions(steps * batch * mean)} tokens, {epochs:.2g} epochs"
        + (f"; {clean:.0%} of the sequences without masks" if clean else "")
        + (f"; resuming at step {done:,}" if done else ""),
        **(_describe_stages(trainer) if trainer.stages else {"loss": labels["loss"].title} if "loss" in labels else {}),
        "ETA": f"{counted(steps - done, 'step')} to go; the time is known after the first few"
        if done < steps
        else "all steps done",
        "output": str(trainer.folder.path),
    }


def _describe(model: PreTrainedModel) -> str:
    """Return a model in words: what its config says, and what of that runs."""
    family = get_family(model)
    text, layers = describe_model(model.config, count_parameters(model)), family.count_layers(model)
    if layers < family.dims(model.config).depth:
        text += f" up to layer {layers - 1}, the highest that is compared"
    return text + ("" if family.has_head(model) else ", without a masked-LM head")


def _describe_stages(trainer: Trainer) -> dict[str, str]:
    spans = trainer.stages.spans if trainer.stages else []
    return {f"stage {span.number}": span.describe() for span in spans}


def _name(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
