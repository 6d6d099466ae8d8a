"""Show for each family of encoders what its teacher is worth to a student, in minutes on a CPU.

    python -m benchmarks.analysis.family_proof --output DIR

Of each family a small model (4 layers of width 128) is pretrained on the documentation of the installed Python
packages. A student of two of its layers is distilled, and the same student is trained from the same start on the same
tokens without a teacher, at each of --seeds seeds. Text, tokens, recipe and order of batches are those of all families.
A paired comparison on held-out text says which student predicts [MASK] better, and by how much.

A family takes some five minutes of one core. What is finished stays: the same command goes on where it was stopped. The
page is written anew after each family, and the last line of standard output is JSON.
"""

import argparse
import copy
import datetime
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForMaskedLM, MPNetTokenizer, PreTrainedTokenizerBase

from benchmarks.harness.cli import amount, count, make_folder, user_errors
from benchmarks.harness.machine import describe
from ds_distill.cli.app import silence_libraries
from ds_distill.data.run_data import prepare_tokens
from ds_distill.data.tokenizer import SPECIAL_TOKENS, load_tokenizer, train_wordpiece
from ds_distill.demo import comparison
from ds_distill.demo.documentation import read_documentation
from ds_distill.demo.make_teacher import sinusoids
from ds_distill.distributed.process_group import start_distributed
from ds_distill.jobs.distill import distill
from ds_distill.jobs.pretrain import pretrain
from ds_distill.models.families import FAMILIES, get_family_by_type
from ds_distill.models.folder import find_model_folder
from ds_distill.models.loading import load_masked_lm
from ds_distill.models.saving import save_model_folder
from ds_distill.recipe import Data, Losses, Recipe, Training
from ds_distill.reporting.tables import table
from ds_distill.run_folder import RunFolder
from ds_distill.utils.console import log, progress
from ds_distill.utils.errors import UserError
from ds_distill.utils.files import read_summary, write_atomically, write_json, write_summary

LAYERS, WIDTH, HEADS, FEED_FORWARD, VOCABULARY, LENGTH = 4, 128, 4, 512, 1024, 32
POSITIONS = 130  # 128 and the two before the first of a family that counts from its padding
INITIALIZER = 0.049  # BERT's 0.02 · sqrt(768 / 128): with the width, attention scores shrink otherwise
DEBERTA = {
    "type_vocab_size": 0,
    "position_biased_input": False,
    "relative_attention": True,
    "position_buckets": 16,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
}
OTHER_SIZES: dict[str, dict[str, Any]] = {
    "deberta-v2": DEBERTA,
    "electra": {"embedding_size": WIDTH // 2},
    "modernbert": {"local_attention": LENGTH // 2},  # so that a local layer does not see all of a sequence
    **{name: {"type_vocab_size": 1} for name in ("camembert", "roberta", "xlm-roberta")},
}
DISTILLED, PLAIN = "distilled", "without a teacher"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.analysis.family_proof",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of texts, tokens and runs; it is resumed")
    parser.add_argument(
        "--families", nargs="+", choices=FAMILIES, default=list(FAMILIES), help="model types (default all)"
    )
    parser.add_argument("--seeds", type=count, default=3, help="seeds per family (default 3)")
    parser.add_argument("--teacher-tokens", type=count, default=800_000, help="tokens per teacher (default 800,000)")
    parser.add_argument("--student-tokens", type=count, default=150_000, help="per student (default 150,000)")
    parser.add_argument("--megabytes", type=amount, default=8, help="text, in 10^6 bytes (default 8)")
    parser.add_argument("--page", type=Path, default=Path("docs/results/families.md"), help="the page that is written")
    options = parser.parse_args()
    with user_errors("benchmarks.analysis.family_proof"):
        return run(options)


def run(options: argparse.Namespace) -> int:
    """Run what is not finished of each family, and write the page."""
    silence_libraries(False)
    make_folder("--output", options.output)
    make_folder("--page", options.page.parent)
    sizes = {key: getattr(options, key) for key in ("teacher_tokens", "student_tokens", "megabytes")}
    asked = options.output / "asked.json"
    if asked.is_file() and json.loads(asked.read_text(encoding="utf-8")) != sizes:
        raise UserError(f"{options.output}: holds runs of other sizes than {sizes}; choose another --output")
    write_json(asked, sizes)
    start_distributed()
    write_text(options.output, options.megabytes)
    rows: list[dict] = []
    for name in options.families:
        rows += run_family(name, options.output, options)
        write_atomically(options.page, page(rows, options))
    print(json.dumps({"page": str(options.page), "ahead": f"{sum(row['ahead'] for row in rows)} of {len(rows)}"}))
    return 0


def write_text(folder: Path, megabytes: float) -> None:
    """Write train.txt, heldout.txt and a WordPiece vocabulary of the former to `folder`, unless they are there."""
    if (folder / "tokenizer" / "tokenizer.json").is_file():
        return
    size = int(megabytes * 1e6)
    with progress(size, "text", "B") as bar:
        text = read_documentation(size, progress=lambda done: bar.update(done - bar.n))
    for name, documents in asdict(text).items():
        (folder / f"{name}.txt").write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    train_wordpiece(text.train, VOCABULARY, folder / "tokenizer")


def recipe_of(tokens: int, seed: int) -> Recipe:
    """Return the recipe of teachers and students; it is that of the demo, with shorter sequences."""
    return Recipe(
        data=Data(sequence_length=LENGTH, mlm_probability=0.2, mlm_smoothing=0.0, workers=1),
        losses=Losses(kl=5.0, kl_tokens="masked", mlm=2.0, cosine=200.0, temperature=1.0),
        training=Training(
            global_batch_size=32,
            micro_batch_size=32,
            max_tokens=tokens,
            learning_rate=2e-3,
            dropout=0.0,
            seed=seed,
            device="cpu",
            precision="fp32",
            optimizer="torch",
            compile="off",
            eval_every=0,
            save_every=0,
        ),
    )


def write_start(name: str, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a small model of a family with random weights and its tokenizer to `folder`.

    Position embeddings are sinusoids, as those of the demo's teacher: with random ones a model of this size predicts
    hardly more than word counts for long.
    """
    family = get_family_by_type(name)
    names, ids = family.names, {}
    if name == "modernbert":  # whose own are those of a larger vocabulary
        ids = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
        ids |= {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
    shape = {names.depth: LAYERS, names.heads: HEADS, names.width: WIDTH, names.feed_forward: FEED_FORWARD}
    config = AutoConfig.for_model(
        name,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=POSITIONS,
        initializer_range=INITIALIZER,
        **shape | ids | OTHER_SIZES.get(name, {}),
    )
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("position_embeddings.weight"):
                parameter.copy_(math.sqrt(2) * INITIALIZER * sinusoids(*parameter.shape))
    save_model_folder(model, tokenizer, folder)


def tokenizer_of(name: str, shared: Path, folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a family: the same pieces for all, with MPNet's special tokens for MPNet.

    MPNet takes the id 1 for padding, whatever its config says.
    """
    if name != "mpnet":
        return load_tokenizer(shared)
    ids = load_tokenizer(shared).get_vocab()
    pieces = ["<s>", "<pad>", "</s>", "[UNK]", *sorted(ids.keys() - set(SPECIAL_TOKENS), key=ids.__getitem__), "<mask>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    MPNetTokenizer(vocab=vocabulary, model_max_length=512).save_pretrained(folder)
    return load_tokenizer(folder)


def run_family(name: str, output: Path, options: argparse.Namespace) -> list[dict]:
    """Pretrain a family's teacher and train its students where that is not done; return a row for each seed."""
    folder = output / name
    log(f"{name}: a teacher of {options.teacher_tokens:,} tokens, {options.seeds} × 2 students of half its depth")
    recipe = recipe_of(options.teacher_tokens, 0)
    tokens, heldout, start = folder / "tokens", folder / "heldout", folder / "start"
    if not (start / "model.safetensors").is_file():
        tokenizer = tokenizer_of(name, output / "tokenizer", folder / "tokenizer")
        prepare_tokens([str(output / "heldout.txt")], tokenizer, heldout, recipe, 1.0)
        prepare_tokens([str(output / "train.txt")], tokenizer, tokens, recipe, 0.0)
        write_start(name, tokenizer, start)
    sets = {"": heldout}
    title = f"{name} teacher"
    finish(
        folder / "teacher",
        lambda at: pretrain(recipe, find_model_folder(str(start)), tokens, at, title=title, heldout=sets),
    )
    teacher = find_model_folder(str(RunFolder(folder / "teacher").export))
    rows = []
    for seed in range(options.seeds):
        file = folder / f"seed={seed}.json"
        if not file.is_file():
            taught = recipe_of(options.student_tokens, seed)
            plain = copy.deepcopy(taught)
            plain.losses = taught.losses.without_teacher()
            models = {"teacher": load_masked_lm(teacher)}
            for kind, own in ((DISTILLED, taught), (PLAIN, plain)):
                run_at = folder / f"{kind.partition(' ')[0]} seed={seed}"
                title = f"{name} {kind}, seed {seed}"
                finish(run_at, partial(distill, own, [teacher], tokens, title=title, heldout=sets))
                models[kind] = load_masked_lm(find_model_folder(str(RunFolder(run_at).export)))
            measured, lead = comparison.measure(models, tokens, heldout, taught, (DISTILLED, PLAIN))
            losses = {row["model"]: row["mask_loss"] for row in measured}
            write_json(file, {"losses": losses, "lead": lead["mask_loss"], "lead_se": lead["mask_loss_se"]})
        rows.append(row_of(name, seed, json.loads(file.read_text(encoding="utf-8"))))
    return rows


def finish(folder: Path, job: Callable[[Path], dict]) -> None:
    """Run `job` on a folder, or go on with it, unless it is done."""
    if read_summary(folder) is None:
        write_summary(job(folder), folder)


def row_of(name: str, seed: int, result: dict) -> dict:
    """Return a row of the page's table for one seed of a family."""
    losses, lead, error = result["losses"], result["lead"], result["lead_se"]
    columns = {"counts": losses[comparison.WORD_COUNTS], "teacher": losses["teacher"]}
    columns |= {DISTILLED: losses[DISTILLED], PLAIN: losses[PLAIN]}
    return {"family": name, "seed": seed, **columns, "lead": f"{lead:.3f} ± {error:.3f}", "ahead": lead > 0}


def page(rows: list[dict], options: argparse.Namespace) -> str:
    """Return the page: what was done, one row per family and seed, and who is ahead where."""
    columns = {"family": "family", "seed": "seed", "counts": "word counts", "teacher": "teacher"}
    columns |= {DISTILLED: "student, distilled", PLAIN: "student, no teacher", "lead": "lead"}
    verdicts = []
    for name in dict.fromkeys(row["family"] for row in rows):
        of_family = [row["ahead"] for row in rows if row["family"] == name]
        verdicts.append(f"{name} {sum(of_family)} of {len(of_family)}")
    threads = torch.get_num_threads()
    used = f"{threads} thread{'s' if threads > 1 else ''}"
    where = f"{describe(torch.device('cpu'))}, {used}, {datetime.date.today().isoformat()}"
    return f"""# What a teacher is worth, family by family

Question: does a student of half its teacher's depth learn more with the teacher than without, in each family?

```
python -m benchmarks.analysis.family_proof --output DIR
```

Each teacher has {LAYERS} layers of width {WIDTH}, {HEADS} heads and a vocabulary of {VOCABULARY:,}, and is pretrained
on {options.teacher_tokens:,} tokens of the documentation of Python packages. Its students start from the same two of
its layers and read the same {options.student_tokens:,} tokens in the same order under the same masks, once with the
losses of the demo's recipe and once with masked LM alone. Losses are of held-out text, in nats per [MASK]; "word
counts" expects each token as often as it occurs. The lead of the distilled student compares the same guesses of both,
with the standard error of that. {where}.

{table(rows, columns)}

**The distilled student is ahead at these seeds:** {", ".join(verdicts)}.

What this cannot show: how much a teacher is worth at real sizes. These teachers have read few tokens. Where attention
knows relative positions from the start (DeBERTa, ModernBERT) they have learned from context by then, and leads are
large; the others know little beyond word counts, so that there is little to learn from them, and a student may be as
good as its teacher. The page says that each family's way from a teacher to its student works and pays.
"""


if __name__ == "__main__":
    raise SystemExit(main())
