"""The job of exporting a run's checkpoint."""

from pathlib import Path

from transformers import AutoConfig

from ds_distill.data.tokenizer import load_tokenizer
from ds_distill.distributed.process_group import run_on_rank0
from ds_distill.exporters.huggingface import export
from ds_distill.jobs.run_files import describe_head
from ds_distill.models.student import count_parameters
from ds_distill.reporting import provenance
from ds_distill.reporting.model_card import model_card
from ds_distill.run_folder import RunFolder, run_in
from ds_distill.training import checkpoint
from ds_distill.training.weights import load_checkpoint_weights, trained_class
from ds_distill.utils.errors import UserError


def export_run(run: Path, output: Path, step: int | None) -> dict:
    """Write the Hugging Face folder of a run's checkpoint, from any ZeRO stage and number of ranks.

    Args:
        run: The run's folder.
        output: The folder to write.
        step: The checkpoint's step, or None for the newest.

    Raises:
        UserError: The run has no checkpoint, or none of this step.
    """
    folder = RunFolder(run)
    checkpoints = checkpoint.list_checkpoints(folder.checkpoints)
    identity = run_in(run, "restore it from a copy") if checkpoints and folder.has_model() else None
    if identity is None:
        raise UserError(f"--run {run}: no run with a checkpoint there; give the --output folder of distill or pretrain")
    step = max(checkpoints) if step is None else step
    if step not in checkpoints:
        raise UserError(f"--step {step}: {run} has checkpoints of steps {', '.join(map(str, sorted(checkpoints)))}")
    model = trained_class(checkpoints[step], AutoConfig.from_pretrained(folder.model))
    weights = load_checkpoint_weights(checkpoints[step], model)
    summary = {"step": step, "parameters": count_parameters(model), "export": str(output)}
    card = model_card(
        f"{run.resolve().name}, step {step}",
        {k: v for k, v in summary.items() if k != "export"},
        identity,
        identity.get("data", ""),
        provenance.read(folder.provenance),
        **describe_head(model),
    )
    run_on_rank0(lambda: export(weights, model, load_tokenizer(folder.model), output, card, kept=folder.model))
    return summary
