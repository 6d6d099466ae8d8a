"""The demo: a student of half its teacher's depth, distilled on this machine's documentation, and what that was worth.

Its teacher comes with the project. With `FromScratch` it is trained first, with a tokenizer of its
own.
"""

import copy
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import PreTrainedModel

from ds_distill.builds.fused_adam import start_build
from ds_distill.data.readers import read
from ds_distill.data.run_data import prepare_tokens
from ds_distill.data.sources import split_inputs
from ds_distill.data.tokenizer import load_tokenizer, train_wordpiece
from ds_distill.demo import comparison, result
from ds_distill.demo.documentation import read_documentation
from ds_distill.distributed.process_group import run_on_rank0, start_distributed
from ds_distill.jobs.distill import distill
from ds_distill.jobs.pretrain import pretrain
from ds_distill.models.folder import ModelFolder, find_model_folder
from ds_distill.models.loading import load_masked_lm
from ds_distill.models.student import build_student
from ds_distill.preflight import checks as preflight
from ds_distill.recipe import Recipe
from ds_distill.reporting.run_report import Extras, write_report
from ds_distill.run_folder import RunFolder, locked_run_folder
from ds_distill.utils.console import is_first, log, progress
from ds_distill.utils.files import read_summary, write_summary

SHIPPED_TEACHER = Path(__file__).parent / "teacher"
PARTS = ("text", "tokens", "heldout", "tokenizer", "teacher", "distilled", "baseline")
TEACHER, START, DISTILLED, BASELINE = "teacher", "student at start", "student, distilled", "student, no teacher"


@dataclass(frozen=True)
class FromScratch:
    """What to train a teacher of the demo's own with.

    Attributes:
        model: Sizes of the BERT, with the names of BertConfig.
        vocabulary: Tokens of its tokenizer.
        teacher_tokens: Tokens to pretrain it on.
    """

    model: dict
    vocabulary: int
    teacher_tokens: int


def run(
    recipe: Recipe,
    output: Path,
    *,
    corpus: list[str],
    megabytes: float,
    from_scratch: FromScratch | None,
    fresh: bool,
) -> dict:
    """Collective: run the demo and return its summary.

    Args:
        recipe: The recipe of the student.
        output: The demo's folder.
        corpus: Texts; where there are none, the documentation of the installed Python packages.
        megabytes: The most of that documentation to read, in 10^6 bytes.
        from_scratch: How to train the teacher, or None for the one that comes with the project.
        fresh: Start over instead of reusing finished parts.
    """
    start_distributed()
    preflight.check_machine(recipe)
    preflight.check_engine(recipe)
    if is_first():
        start_build()

    def erase_parts() -> None:
        for part in PARTS:
            shutil.rmtree(output / part, ignore_errors=True)
        (output / "run.json").unlink(missing_ok=True)

    identity = recipe.identity() | {"corpus": corpus, "corpus_megabytes": megabytes}
    if from_scratch:
        identity |= {"vocabulary": from_scratch.vocabulary, "teacher_tokens": from_scratch.teacher_tokens}
        identity |= {f"model.{key}": value for key, value in from_scratch.model.items()}
    with locked_run_folder(
        output, identity, remedy="start over there with --fresh", first=erase_parts if fresh else None
    ):
        tokens = RunFolder(output).tokens
        heldout = tokens if corpus else RunFolder(output).heldout
        run_on_rank0(lambda: _make_tokens(recipe, output, corpus, megabytes, from_scratch))
        evaluated = {"": heldout}
        if from_scratch:
            teaching = copy.deepcopy(recipe)
            teaching.training.max_tokens, teaching.stages = from_scratch.teacher_tokens, []
            _run_unless_finished(
                output / "teacher",
                lambda folder: pretrain(teaching, from_scratch.model, tokens, folder, title=TEACHER, heldout=evaluated),
            )
            teacher = find_model_folder(str(RunFolder(output / "teacher").export))
        else:
            teacher = find_model_folder(str(SHIPPED_TEACHER))
        distilled = _run_unless_finished(
            output / "distilled",
            lambda folder: distill(recipe, [teacher], tokens, folder, title=DISTILLED, heldout=evaluated),
        )
        plain = copy.deepcopy(recipe)
        plain.losses, plain.stages = recipe.losses.without_teacher(), []
        baseline = _run_unless_finished(
            output / "baseline",
            lambda folder: distill(plain, [teacher], tokens, folder, title=BASELINE, heldout=evaluated),
        )
    if not is_first():
        return {}
    models = _load_models(recipe, teacher, output)
    trained = {DISTILLED: distilled, BASELINE: baseline}
    rows, lead = comparison.measure(models, tokens, heldout, recipe, (DISTILLED, BASELINE))
    rows = [trained.get(row["model"], {}) | row for row in rows]
    del models[START]
    answers = comparison.fill(models, load_tokenizer(tokens / "tokenizer"))
    summary = {
        "rows": rows,
        "prompts": answers,
        "distilled_ahead_nats": lead["mask_loss"],
        "distilled_ahead_nats_se": lead["mask_loss_se"],
        "distilled_ahead_accuracy": lead["mask_accuracy"],
        "distilled_ahead_accuracy_se": lead["mask_accuracy_se"],
        "export": distilled["export"],
    }
    write_report(
        {DISTILLED: output / "distilled", BASELINE: output / "baseline"},
        output,
        extras=Extras(
            title="What the demo's student keeps of its teacher",
            lead=f"{result.LEAD}\n\n{result.lead_sentence(summary)}".strip(),
            rows=rows,
            prompts=answers,
            commands=result.next_commands(output),
            latency_of=result.latency_of(rows),
        ),
    )
    result.show(summary, output)
    return summary


def _make_tokens(
    recipe: Recipe, output: Path, corpus: list[str], megabytes: float, from_scratch: FromScratch | None
) -> None:
    """Write the tokenizer's folder and the tokens of the text, unless they are there."""
    folder = RunFolder(output)
    if (folder.tokens / "manifest.json").is_file():
        log(f"tokens: those in {folder.tokens}")
        return
    began = time.perf_counter()
    training = corpus or [_write_documentation(output / "text", megabytes, recipe.training.seed)]
    if from_scratch:
        tokenizer = _train_tokenizer(training, from_scratch.vocabulary, output / "tokenizer")
    else:
        tokenizer = load_tokenizer(SHIPPED_TEACHER)
    if not corpus:
        prepare_tokens([str(output / "text" / "heldout.txt")], tokenizer, folder.heldout, recipe, 1.0)
    manifest = prepare_tokens(training, tokenizer, folder.tokens, recipe, None if corpus else 0.0)
    log(
        f"corpus: {sum(manifest['documents'].values()):,} documents, {manifest['real_tokens']['train']:,} "
        f"training tokens, prepared in {time.perf_counter() - began:.0f} s"
    )


def _write_documentation(folder: Path, megabytes: float, seed: int) -> str:
    """Write train.txt and heldout.txt to `folder`; return the path of the former."""
    size = int(megabytes * 1e6)
    with progress(size, "corpus", "B") as bar:
        text = read_documentation(size, seed, progress=lambda done: bar.update(done - bar.n))
    folder.mkdir(exist_ok=True)
    for name, documents in asdict(text).items():
        (folder / f"{name}.txt").write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return str(folder / "train.txt")


def _train_tokenizer(corpus: list[str], vocabulary: int, folder: Path):
    pieces = split_inputs(corpus)
    with progress(sum(piece.size for piece in pieces), "tokenizer", "B") as bar:
        documents = (document.text for piece in pieces for document in read(piece, _bar_updater(bar)))
        return train_wordpiece(documents, vocabulary, folder)


def _bar_updater(bar) -> Callable[[int], None]:
    """Return a function that shows on `bar` how much of one more piece is read."""
    start = bar.n
    return lambda read: bar.update(start + read - bar.n)


def _run_unless_finished(folder: Path, job: Callable[[Path], dict]) -> dict:
    """Run `job` and return its summary, or that of a finished part, which is not made again."""
    finished = read_summary(folder)
    if finished is not None and RunFolder(folder).export.is_dir():
        log(f"{folder.name}: finished before, reused (--fresh starts over)")
        return finished
    summary = job(folder)
    if is_first():
        write_summary(summary, folder)
    return summary


def _load_models(recipe: Recipe, teacher: ModelFolder, output: Path) -> dict[str, PreTrainedModel]:
    source = load_masked_lm(teacher)
    start = build_student(source, **asdict(recipe.student), dropout=0.0, seed=recipe.training.seed)
    trained = {
        name: load_masked_lm(find_model_folder(str(RunFolder(output / part).export)))
        for name, part in ((DISTILLED, "distilled"), (BASELINE, "baseline"))
    }
    return {TEACHER: source, START: start, **trained}
