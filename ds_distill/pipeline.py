"""The work of the commands: each function takes a recipe and paths, and returns the run's summary.

`prepare_and_…` first checks all that can be checked, then makes the tokens, which may take hours,
then does the work.
"""

import copy
import json
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import torch
from transformers import AutoConfig, AutoModelForMaskedLM, BertConfig, BertForMaskedLM, PretrainedConfig

from ds_distill.data.dataset import TokenDataset
from ds_distill.data.heldout import heldout_sets
from ds_distill.data.loader import BatchLoader, heldout_batches
from ds_distill.data.run_data import (
    make_masker,
    open_heldout,
    open_run_data,
    prepare_run_tokens,
    text_statistics,
    with_prepared_settings,
)
from ds_distill.data.tokenizer import load_tokenizer
from ds_distill.distributed.process_group import all_gather_object, broadcast_object, run_on_rank0, start_distributed
from ds_distill.estimate.estimate import choose_micro_batch
from ds_distill.estimate.flops import forward_flops_per_token
from ds_distill.exporters.huggingface import export
from ds_distill.exporters.sentence_embedding import write_sentence_transformers_files
from ds_distill.losses.objective import Objective
from ds_distill.models.families import get_family, get_family_by_type
from ds_distill.models.folder import ModelFolder, find_model_folder
from ds_distill.models.loading import load_masked_lm
from ds_distill.models.precision import teacher_dtype
from ds_distill.models.student import build_student, count_parameters, find_start, plan_student
from ds_distill.models.teacher import Teacher, weights_fingerprint
from ds_distill.preflight import checks as preflight
from ds_distill.preflight.models import check_fits_prepared_tokens, check_sizes
from ds_distill.recipe import Losses, Recipe
from ds_distill.recipe_choice import choose_losses
from ds_distill.reporting import provenance
from ds_distill.reporting.model_card import model_card
from ds_distill.reporting.plots import loss_plot
from ds_distill.reporting.run_panels import term_labels
from ds_distill.reporting.run_text import describe_device
from ds_distill.run_folder import RunFolder, locked_run_folder
from ds_distill.run_record import write_record
from ds_distill.training import checkpoint
from ds_distill.training.device import local_device, resolve_dtype
from ds_distill.training.evaluation import evaluate
from ds_distill.training.state import read_heldout_curves
from ds_distill.training.trainer import Trainer, count_steps, explain_training_memory
from ds_distill.training.weights import gather_master_weights, load_checkpoint_weights
from ds_distill.utils.console import is_first, log, log_header, log_once, progress
from ds_distill.utils.errors import UserError
from ds_distill.utils.files import StoredSummary, json_text, read_summary
from ds_distill.utils.resources import explain_disk_full


def prepare_and_distill(
    recipe: Recipe,
    teacher: str,
    output: Path,
    *,
    corpus: list[str],
    tokens: str | None,
    heldout: list[str],
    choose: bool = False,
) -> dict:
    """Collective: distill a student of `teacher` from texts or prepared tokens.

    Args:
        recipe: The recipe.
        teacher: The folder or name of the teacher.
        output: The run's folder.
        corpus: The texts.
        tokens: The folder that `prepare` has made of texts, or None.
        heldout: Further held-out texts.
        choose: Whether to take the losses that the evidence favors for as many tokens, not the recipe's.
    """
    recipe = _check_job(recipe, corpus, tokens, heldout)
    if all(all_gather_object(choose)):  # where ranks differ, they are told so later
        recipe = replace(recipe, losses=_choose_losses(recipe, output, corpus, tokens))
    preflight.fetch_model(teacher, "teacher =")
    if recipe.student.from_ is not None:
        preflight.fetch_model(recipe.student.from_, "student.from =")
    folder = find_model_folder(teacher)
    preflight.check_teacher(folder, recipe, Path(tokens) if tokens else None)
    recipe, data, held = _make_tokens(recipe, str(folder.path), output, corpus, tokens, heldout)
    return distill(recipe, folder, data, output, heldout=held)


def prepare_and_pretrain(
    recipe: Recipe,
    model: dict | str,
    tokenizer: str,
    output: Path,
    *,
    corpus: list[str],
    tokens: str | None,
    heldout: list[str],
) -> dict:
    """Collective: do as `pretrain` does, from texts or prepared tokens.

    Args:
        recipe: The recipe.
        model: As in `pretrain`.
        tokenizer: The tokenizer that makes the tokens.
        output: The run's folder.
        corpus: The texts.
        tokens: The folder that `prepare` has made of texts, or None.
        heldout: Further held-out texts.
    """
    recipe = _check_job(recipe, corpus, tokens, heldout)
    start: dict | ModelFolder
    if not tokens and tokenizer != model:
        preflight.fetch_model(tokenizer, "--tokenizer", weights=False)
    if isinstance(model, str):
        preflight.fetch_model(model, "--from")
        start = find_model_folder(model, "--from")
        preflight.check_encoder(start, recipe, tokenizer, Path(tokens) if tokens else None)
    else:
        start = model
        preflight.check_new_model(model, recipe)
    recipe, data, held = _make_tokens(recipe, tokenizer, output, corpus, tokens, heldout)
    return pretrain(recipe, start, data, output, heldout=held)


def prepare_and_evaluate(
    recipe: Recipe,
    models: list[str],
    output: Path | None,
    folder: Path,
    *,
    corpus: list[str],
    tokens: str | None,
    untrained: bool,
) -> list[dict]:
    """Collective: do as `evaluate_folders` does, on texts or prepared tokens.

    Args:
        recipe: The recipe.
        models: The folders or names of the models.
        output: The folder that the tokens belong to, or None.
        folder: Where the tokens of the texts are put.
        corpus: The texts.
        tokens: The folder of prepared tokens, or None.
        untrained: As in `evaluate_folders`.
    """
    recipe = with_prepared_settings(recipe, Path(tokens)) if tokens else recipe
    preflight.check_texts([] if tokens else corpus, [], recipe)
    for model in models:
        preflight.fetch_model(model, "--model")
    folders = [find_model_folder(model, "--model") for model in models]
    preflight.check_evaluated(folders, recipe, Path(tokens) if tokens else None)
    if not tokens:
        folder = prepare_run_tokens(corpus, str(folders[0].path), recipe, folder, bound=output)
        recipe = with_prepared_settings(recipe, folder)
    return evaluate_folders(folders, Path(tokens or folder), recipe, untrained)


def _choose_losses(recipe: Recipe, output: Path, corpus: list[str], tokens: str | None) -> Losses:
    """Collective: return what `choose_losses` returns on the first rank, which alone needs the texts."""
    chosen: list[Losses] = []
    run_on_rank0(lambda: chosen.append(choose_losses(recipe.training, corpus=corpus, tokens=tokens, output=output)))
    return broadcast_object(chosen[0] if chosen else None)


def _check_job(recipe: Recipe, corpus: list[str], tokens: str | None, heldout: list[str]) -> Recipe:
    """Collective: check what does not depend on a model; return the recipe with the settings of prepared tokens."""
    preflight.check_machine(recipe)
    recipe = with_prepared_settings(recipe, Path(tokens)) if tokens else recipe
    preflight.check_texts([] if tokens else corpus, heldout, recipe)
    return recipe


def _make_tokens(
    recipe: Recipe, tokenizer: str, output: Path, corpus: list[str], tokens: str | None, heldout: list[str]
) -> tuple[Recipe, Path, dict[str, Path]]:
    """Collective: make the last checks, then the tokens.

    Returns the recipe with the tokens' settings, their folder and the folders of the held-out
    texts.
    """
    preflight.check_engine(recipe)
    preflight.check_output(output, recipe)
    folder = (
        Path(tokens)
        if tokens
        else prepare_run_tokens(corpus, tokenizer, recipe, RunFolder(output).tokens, bound=output)
    )
    recipe = recipe if tokens else with_prepared_settings(recipe, folder)
    return recipe, folder, heldout_sets(heldout, folder, recipe, output)


def _export_and_summarize(
    trainer: Trainer,
    summary: dict,
    recipe: Recipe,
    tokens: Path,
    origin: provenance.Provenance,
    *,
    teacher: dict[str, dict] | None = None,
    layer_map: list[int] | None = None,
    **facts: str,
) -> dict:
    """Collective: write export, plot, record and model card of a finished run; return its summary.

    Args:
        trainer: The trainer, which has finished.
        summary: What it has measured.
        recipe: The recipe.
        tokens: The folder of prepared tokens.
        origin: What the model card tells of the model and the training.
        teacher: The teacher's held-out figures by the name of the set.
        layer_map: The teacher layer that each student layer started from.
        facts: What else to record of the run.
    """
    weights, state, folder, title = gather_master_weights(trainer.engine), trainer.state, trainer.folder, trainer.title
    summary["parameters"] = sum(x.numel() for x in weights.values())
    summary["export"] = str(folder.export)
    summary["forward_mflops_per_token"] = _forward_mflops(trainer.objective.model.config, trainer.loader.store)
    if is_first():
        curves = {"history": state.history, "heldout": state.heldout} | ({"teacher": teacher} if teacher else {})
        folder.curves.write_text(json_text(curves) + "\n", encoding="utf-8")
        losses = trainer.objective.losses
        loss_plot(
            state.history, state.heldout, folder.plot, title, labels=term_labels(losses, layer_map), teacher=teacher
        )
        if summary["tokens_per_second"] is not None or not folder.record.is_file():
            # a finished run that is started again keeps the record of its training
            precision = str(trainer.dtype).removeprefix("torch.")
            write_record(folder.path, precision=precision, layer_map=layer_map, **facts)
        summary["plot"] = str(folder.plot)
        summary |= text_statistics(tokens)
        manifest = TokenDataset.open(tokens, "heldout").manifest
        card = model_card(title, summary, recipe.as_dict(), manifest["fingerprint"], origin)
        with explain_disk_full(folder.path):
            export(
                weights,
                trainer.objective.model.cpu(),
                load_tokenizer(tokens / "tokenizer"),
                folder.export,
                card,
                kept=folder.model,
            )
    torch.distributed.barrier()
    trainer.engine.destroy()
    return summary


def distill(
    recipe: Recipe,
    teacher: ModelFolder,
    tokens: Path,
    output: Path,
    *,
    title: str = "distill",
    heldout: dict[str, Path] | None = None,
) -> dict:
    """Collective: distill a student of `teacher` on prepared tokens.

    With losses.kl and losses.cosine 0 the same student is trained without the teacher.

    Args:
        recipe: The recipe.
        teacher: The teacher.
        tokens: The folder of prepared tokens.
        output: The run's folder.
        title: The title of plot and model card.
        heldout: Folders of further held-out texts, by name, from heldout_sets.
    """
    recipe.check()
    folder = RunFolder(output)
    rank, world = start_distributed()
    device = local_device(recipe.training.device)
    dtype = resolve_dtype(recipe.training, device)
    recipe = _with_resolved_micro_batch(recipe, teacher, world)
    store, loader, held = open_run_data(tokens, recipe, rank, world, heldout or {})
    check_fits_prepared_tokens(store, teacher)
    source = load_masked_lm(teacher)
    inputs = {"data": store.manifest["fingerprint"], "teacher": weights_fingerprint(source)[:16]}
    start = None if recipe.student.from_ is None else find_start(recipe.student.from_)
    if start:
        inputs["student.from"] = weights_fingerprint(load_masked_lm(start))[:16]
    with locked_run_folder(
        output,
        recipe.identity() | inputs,
        recipe.training.resume,
        can_grow=True,
    ):
        if finished := _finished_before(folder, recipe, loader, held):
            return finished
        t = recipe.training
        student = build_student(source, **asdict(recipe.student), dropout=t.dropout, seed=t.seed)
        layer_map, _ = plan_student(source.config, **asdict(recipe.student), dropout=t.dropout)
        origin = provenance.from_model(
            teacher.path,
            start=start and provenance.name_model(start.path),
            layers=layer_map,
            base_layers=get_family(source).dims(source.config).depth,
            distilled=recipe.losses.need_teacher,
            **_circumstances(store, world),
        )
        _keep_model(student.config, tokens, folder, origin, teacher)
        objective = Objective(student, recipe.losses, world, source.config, layer_map)
        frozen = None
        teacher_figures: dict[str, float | None] = {}
        if recipe.losses.need_teacher:
            wanted = teacher_dtype(device, dtype)
            teacher_figures["parameters"] = count_parameters(source)
            teacher_figures["forward_mflops_per_token"] = _forward_mflops(source.config, store)
            frozen = Teacher(source.to(device=device, dtype=wanted))  # type: ignore[call-arg]  # as in Teacher.load
        del source
        with explain_training_memory(t):
            trainer = Trainer(objective, frozen, loader, held, recipe, folder, device, dtype, title)
            summary = trainer.fit()
            heldout_of_teacher = {} if frozen is None else _evaluate_teacher(trainer, frozen, world)
        summary["kl_tokens"] = recipe.losses.kl_tokens
        teacher_figures |= {f"heldout_{key}": value for key, value in heldout_of_teacher.get("", {}).items()}
        summary |= {f"teacher_{key}": value for key, value in teacher_figures.items()}
        return _export_and_summarize(
            trainer,
            summary,
            recipe,
            tokens,
            origin,
            teacher=heldout_of_teacher,
            layer_map=layer_map,
            teacher_folder=str(teacher.path),
        )


def _evaluate_teacher(trainer: Trainer, teacher: Teacher, world: int) -> dict[str, dict]:
    """Collective: return the teacher's figures on each held-out set, under the student's masks.

    The teacher is not of use for training afterwards.
    """
    objective = Objective(teacher.model, trainer.objective.losses.without_teacher(), world).eval()
    figures = {}
    with progress(None, "teacher's evaluation", "batch") as bar:
        for name, make_batches in trainer.heldout.items():
            batches = (batch for batch in make_batches() if bar.update() or True)
            figures[name] = evaluate(objective, batches, trainer.device)
    return figures


def _finished_before(folder: RunFolder, recipe: Recipe, loader: BatchLoader, heldout: dict) -> StoredSummary | None:
    """Collective: return the summary of a run that has nothing left to do, and say so; else None.

    Nothing is left where all steps are done, the model is exported, and every held-out set has been evaluated at the
    end.
    """
    steps = count_steps(recipe, loader)

    def look() -> StoredSummary | None:
        summary = read_summary(folder.path)
        if summary is None or summary.get("steps") != steps or not (folder.export / "config.json").is_file():
            return None
        try:
            curves = read_heldout_curves(folder.path)
            measured = all(curves[name][-1]["step"] == steps for name in heldout)
        except (OSError, ValueError, KeyError, IndexError):
            return None
        # the folder may have been moved since
        return StoredSummary(summary | {"export": str(folder.export), "plot": str(folder.plot)}) if measured else None

    summary = broadcast_object(look() if is_first() else None)
    if summary is not None:
        log(f"{folder.path}: finished before ({steps:,} of {steps:,} steps), nothing to do")
    return summary


def _check_micro_batch(recipe: Recipe) -> None:
    if recipe.training.micro_batch_size == "auto":
        raise UserError("training.micro_batch_size = auto: works with distill only; give a number")


def _forward_mflops(config: PretrainedConfig, store: TokenDataset) -> float:
    """Return the millions of operations per token of a model's forward on full sequences of the prepared tokens."""
    return round(forward_flops_per_token(config, store.manifest["sequence_length"]) / 1e6, 6)


def _with_resolved_micro_batch(recipe: Recipe, teacher: ModelFolder | None, ranks: int) -> Recipe:
    """Collective: return the recipe with the micro-batch that these ranks run."""
    recipe, requested = copy.deepcopy(recipe), recipe.training.micro_batch_size
    t = recipe.training
    # only distill, which has a teacher, gets here with "auto"
    t.micro_batch_size = (
        choose_micro_batch(recipe, cast(ModelFolder, teacher)) if requested == "auto" else t.resolve_micro_batch(ranks)
    )
    if requested not in ("auto", t.micro_batch_size):
        line = (
            f"micro-batch: {t.micro_batch_size} sequences, not {requested}: a rank's share of the global batch is "
            f"{t.sequences_per_rank(ranks)}"
        )
        log_once(line, line)  # once for all runs of a job
    return recipe


def pretrain(
    recipe: Recipe,
    model: dict | ModelFolder,
    tokens: Path,
    output: Path,
    *,
    title: str = "pretrain",
    heldout: dict[str, Path] | None = None,
) -> dict:
    """Collective: train with masked-LM only.

    training.encoder_learning_rate applies to all but the head; 0 leaves the trunk as it is.

    Args:
        recipe: The recipe.
        model: The sizes of a BERT with random weights (BertConfig's), or the folder of an encoder
            to continue from. An encoder without a masked-LM head is given one.
        tokens: The folder of prepared tokens.
        output: The run's folder.
        title: The title of plot and model card.
        heldout: Folders of further held-out texts, by name, from heldout_sets.
    """
    recipe.check()
    _check_micro_batch(recipe)
    folder = RunFolder(output)
    rank, world = start_distributed()
    device = local_device(recipe.training.device)
    dtype = resolve_dtype(recipe.training, device)
    recipe = _with_resolved_micro_batch(recipe, None, world)
    store, loader, held = open_run_data(tokens, recipe, rank, world, heldout or {})
    t = recipe.training
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(t.seed)
        if isinstance(model, ModelFolder):
            check_fits_prepared_tokens(store, model)
            encoder = load_masked_lm(model, new_head=True, dropout=t.dropout).train()
        else:
            config = BertConfig(
                vocab_size=store.manifest["vocab_size"],
                hidden_dropout_prob=t.dropout,
                attention_probs_dropout_prob=t.dropout,
                pad_token_id=store.manifest["pad_id"],
                **model,
            )
            encoder = BertForMaskedLM(config)
            check_sizes(store, config, "the model")
    start = {"from": weights_fingerprint(encoder)[:16]} if isinstance(model, ModelFolder) else {"model": model}
    with locked_run_folder(
        output, recipe.identity() | {"data": store.manifest["fingerprint"]} | start, t.resume, can_grow=True
    ):
        if finished := _finished_before(folder, recipe, loader, held):
            return finished
        circumstances, base = _circumstances(store, world), model if isinstance(model, ModelFolder) else None
        origin = provenance.from_model(base.path, **circumstances) if base else provenance.Provenance(**circumstances)
        _keep_model(encoder.config, tokens, folder, origin, base)
        objective = Objective(encoder, recipe.losses.without_teacher(), world)
        if t.encoder_learning_rate == 0:
            objective.family.get_encoder(encoder).requires_grad_(False)
        with explain_training_memory(t):
            trainer = Trainer(objective, None, loader, held, recipe, folder, device, dtype, title)
            summary = trainer.fit()
        return _export_and_summarize(trainer, summary, recipe, tokens, origin)


def _circumstances(store: TokenDataset, ranks: int) -> dict:
    """Return what a model card tells of a training beside the model: its text, its devices and its packages."""
    return {
        "datasets": provenance.name_datasets(source["input"] for source in store.manifest["sources"]),
        "hardware": provenance.describe_hardware(ranks),
        "versions": provenance.describe_versions(),
    }


def _keep_model(
    config, tokens: Path, folder: RunFolder, origin: provenance.Provenance, base: ModelFolder | None
) -> None:
    """Collective: save config and tokenizer beside the checkpoints, so that `export` needs only the run's folder.

    So is what the model card tells, and the files of sentence-transformers where `base`, the model
    that this one is made of, has them.
    """

    def keep() -> None:
        if not folder.has_model():
            shutil.copytree(tokens / "tokenizer", folder.model, dirs_exist_ok=True)
            if base and origin.sentence_transformers:
                family = get_family_by_type(config.model_type)
                write_sentence_transformers_files(
                    base.path, family.dims(config).width, family.positions(config), folder.model
                )
            config.save_pretrained(folder.model)
        provenance.write(origin, folder.provenance)

    run_on_rank0(keep)


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
    if not checkpoints or not folder.has_model():
        raise UserError(f"--run {run}: no run with a checkpoint there; give the --output folder of distill or pretrain")
    step = max(checkpoints) if step is None else step
    if step not in checkpoints:
        raise UserError(f"--step {step}: {run} has checkpoints of steps {', '.join(map(str, sorted(checkpoints)))}")
    model = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(folder.model))
    weights = load_checkpoint_weights(checkpoints[step], model)
    identity = json.loads(folder.identity.read_text(encoding="utf-8"))
    summary = {"step": step, "parameters": count_parameters(model), "export": str(output)}
    card = model_card(
        f"{run.resolve().name}, step {step}",
        {k: v for k, v in summary.items() if k != "export"},
        identity,
        identity.get("data", ""),
        provenance.read(folder.provenance),
    )
    run_on_rank0(lambda: export(weights, model, load_tokenizer(folder.model), output, card, kept=folder.model))
    return summary


def evaluate_folders(models: list[ModelFolder], tokens: Path, recipe: Recipe, untrained: bool) -> list[dict]:
    """Return the held-out figures of masked-LM folders on the prepared tokens, lowest loss at [MASK] first.

    Args:
        models: The models.
        tokens: The folder of prepared tokens.
        recipe: The recipe.
        untrained: Also measure the first one's architecture with random weights. Its loss is that
            of a model that has learned nothing.
    """
    _check_micro_batch(recipe)
    _, world = start_distributed()
    device = local_device(recipe.training.device)
    heldout, train_store = open_heldout(tokens), TokenDataset.open(tokens, "train")
    masker, t = make_masker(train_store, recipe), recipe.training
    document_masking = not recipe.data.attend_across_documents
    size = cast(int, t.micro_batch_size)  # "auto" has been refused
    candidates: list[tuple[str, ModelFolder, bool]] = [(folder.name, folder, False) for folder in models]
    candidates += [(f"{models[0].name}, untrained", models[0], True)] if untrained else []
    sequences = min(t.eval_max_sequences, len(heldout))
    log_header(
        {
            "models": ", ".join(name for name, _, _ in candidates),
            "device": f"{describe_device(device, world)}, fp32",
            "text": f"{sequences:,} held-out sequences of up to {heldout.manifest['sequence_length']} tokens",
        }
    )
    rows = []
    for name, folder, random_weights in candidates:
        check_fits_prepared_tokens(train_store, folder)
        network = load_masked_lm(folder)
        if random_weights:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(t.seed)
                network = type(network)(network.config)
        count = -(-sequences // size)
        with progress(count, "untrained" if random_weights else name, "batch") as bar:
            batches = (
                batch
                for batch in heldout_batches(heldout, masker, size, t.eval_max_sequences, document_masking)
                if bar.update() or True
            )
            figures = evaluate(Objective(network, recipe.losses.without_teacher(), world).to(device), batches, device)
        row = {"model": name, "parameters": count_parameters(network)}
        rows.append(row | {f"heldout_{key}": value for key, value in figures.items()})
    return sorted(rows, key=lambda row: math.inf if row["heldout_mask_loss"] is None else row["heldout_mask_loss"])
