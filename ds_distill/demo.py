"""The built-in demo: from the text found on any machine to a distilled, exported student.

It also measures what the distillation was worth.
"""

import copy
import json
import shutil
import time
from pathlib import Path

import torch

from ds_distill import pipeline
from ds_distill.builds.fused_adam import start_build
from ds_distill.data.docstrings import embedded_documents
from ds_distill.data.readers import read
from ds_distill.data.run_data import prepare_tokens
from ds_distill.data.sources import split_inputs
from ds_distill.data.tokenizer import train_wordpiece
from ds_distill.distributed.process_group import run_on_rank0, start_distributed
from ds_distill.models.folder import find_model_folder
from ds_distill.models.loading import load_masked_lm
from ds_distill.preflight import checks as preflight
from ds_distill.recipe import Recipe
from ds_distill.reporting.tables import table
from ds_distill.run_folder import RunFolder, locked_run_folder
from ds_distill.utils.console import is_first, log, progress
from ds_distill.utils.files import write_summary

PARTS = ("tokens", "tokenizer", "teacher", "distilled", "baseline")
COLUMNS = {
    "model": "model",
    "parameters": "parameters",
    "heldout_mlm_loss": "held-out MLM loss (nats)",
    "heldout_mlm_accuracy": "accuracy",
    "tokens": "tokens trained",
    "latency_ms": "forward, 1 × 128 (ms)",
}


def run(
    recipe: Recipe,
    model: dict,
    output: Path,
    *,
    corpus: list[str],
    megabytes: float,
    vocabulary: int,
    teacher_tokens: int,
    fresh: bool,
) -> dict:
    """Collective: run the demo and return its summary.

    The steps are corpus → tokenizer → teacher → student → the same student without a teacher →
    table.
    """
    _, ranks = start_distributed()
    recipe = copy.deepcopy(recipe)
    # Nobody has chosen this recipe, so its batch is rounded up to run on any number of ranks.
    recipe.training.global_batch_size = -(-recipe.training.global_batch_size // ranks) * ranks
    preflight.check_machine(recipe)
    preflight.check_engine(recipe)
    if is_first():
        start_build()

    def erase_parts() -> None:
        for part in PARTS:
            shutil.rmtree(output / part, ignore_errors=True)
        for file in ("corpus.txt", "run.json"):
            (output / file).unlink(missing_ok=True)

    identity = recipe.identity() | {
        "corpus": corpus,
        "corpus_megabytes": megabytes,
        "vocabulary": vocabulary,
        "teacher_tokens": teacher_tokens,
    }
    identity |= {f"model.{key}": value for key, value in model.items()}
    with locked_run_folder(
        output, identity, remedy="start over there with --fresh", first=erase_parts if fresh else None
    ):
        run_on_rank0(lambda: _corpus(recipe, output, corpus, megabytes, vocabulary))
        tokens = RunFolder(output).tokens
        teaching = copy.deepcopy(recipe)
        teaching.training.max_tokens = teacher_tokens
        teacher = _run_unless_finished(
            output / "teacher", lambda folder: pipeline.pretrain(teaching, model, tokens, folder, title="teacher")
        )
        teacher_folder = find_model_folder(str(RunFolder(output / "teacher").export))
        student = _run_unless_finished(
            output / "distilled",
            lambda out: pipeline.distill(recipe, teacher_folder, tokens, out, title="student, distilled"),
        )
        plain = copy.deepcopy(recipe)
        plain.losses = recipe.losses.without_teacher()
        baseline = _run_unless_finished(
            output / "baseline",
            lambda out: pipeline.distill(plain, teacher_folder, tokens, out, title="student, no teacher"),
        )
    if not is_first():
        return {}
    start = {
        "parameters": student["parameters"],
        "heldout_mlm_loss": student["start_heldout_mlm_loss"],
        "heldout_mlm_accuracy": student["start_heldout_mlm_accuracy"],
        "tokens": 0,
    }
    times = {
        "teacher": _latency(teacher_folder.path),
        "student, distilled": _latency(RunFolder(output / "distilled").export),
    }
    rows = [
        {"model": name, "latency_ms": times.get(name)} | figures
        for name, figures in (
            ("teacher", teacher),
            ("student at start", start),
            ("student, distilled", student),
            ("student, no teacher", baseline),
        )
    ]
    print("\n" + table(rows, COLUMNS))
    losses = baseline["heldout_mlm_loss"], student["heldout_mlm_loss"]
    gain = None if None in losses else losses[0] - losses[1]
    print(
        "\nThe gain from distillation could not be measured."
        if gain is None
        else f"\nDistillation lowered the held-out loss by {gain:.3f} nats compared with training without a teacher."
        if gain > 0
        else f"\nDistillation raised the held-out loss by {-gain:.3f} nats compared with training without a teacher."
    )
    print("The text is this machine's documentation, so the results are not comparable across machines.\n")
    for label, path in (
        ("export", "distilled/export"),
        ("loss plot", "distilled/loss.png"),
        ("checkpoints", "distilled/checkpoints"),
        ("TensorBoard", "distilled/tensorboard"),
    ):
        print(f"{label + ':':13} {output / path}")
    summary = {"rows": rows, "distilled_ahead_nats": gain, "export": student["export"]}
    return summary


def _corpus(recipe: Recipe, output: Path, corpus: list[str], megabytes: float, vocabulary: int) -> None:
    if (RunFolder(output).tokens / "manifest.json").is_file():
        log(f"tokens: those in {output / 'tokens'}")
        return
    began = time.perf_counter()
    if not corpus:
        with progress(int(megabytes * 1e6), "corpus", "B") as bar:
            texts = embedded_documents(
                int(megabytes * 1e6), seed=recipe.training.seed, progress=lambda read: bar.update(read - bar.n)
            )
        corpus = [str(output / "corpus.txt")]
        Path(corpus[0]).write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    pieces = split_inputs(corpus)
    with progress(sum(piece.size for piece in pieces), "tokenizer", "B") as bar:
        tokenizer = train_wordpiece(
            (document.text for piece in pieces for document in read(piece, _bar_updater(bar))),
            vocabulary,
            output / "tokenizer",
        )
    manifest = prepare_tokens(corpus, tokenizer, RunFolder(output).tokens, recipe)
    log(
        f"corpus: {sum(manifest['documents'].values()):,} documents, {manifest['real_tokens']['train']:,} "
        f"training tokens, prepared in {time.perf_counter() - began:.0f} s"
    )


def _bar_updater(bar):
    """Return a function that shows on `bar` how much of one more piece is read."""
    start = bar.n
    return lambda read: bar.update(start + read - bar.n)


def _run_unless_finished(folder: Path, job) -> dict:
    """Run `job` and return its summary, or that of a finished part, which is not made again."""
    done = RunFolder(folder).summary
    if done.is_file() and RunFolder(folder).export.is_dir():
        log(f"{folder.name}: finished before, reused (--fresh starts over)")
        return json.loads(done.read_text(encoding="utf-8"))
    summary = job(folder)
    if is_first():
        write_summary(summary, folder)
    return summary


def _latency(folder: Path, repeats: int = 15) -> float:
    """Return the median milliseconds of one forward of 1 × 128 tokens in fp32 on the CPU."""
    model = load_masked_lm(str(folder)).eval()
    ids = torch.full((1, min(128, model.config.max_position_embeddings)), 5)
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 3):
            began = time.perf_counter()
            model(ids)
            times.append(1000 * (time.perf_counter() - began))
    return sorted(times[3:])[repeats // 2]
