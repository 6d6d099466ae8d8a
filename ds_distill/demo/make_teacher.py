"""Train the teacher that comes with the demo: python -m ds_distill.demo.make_teacher.

The demo's users never run this; it is how ds_distill/demo/teacher was made. A run that was stopped
resumes when the same command is given again.
"""

import argparse
import copy
import math
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel

from ds_distill.data.token_files import open_manifest
from ds_distill.data.tokenizer import load_tokenizer, train_wordpiece
from ds_distill.demo import comparison
from ds_distill.demo.documentation import read_documentation
from ds_distill.models.folder import find_model_folder
from ds_distill.models.loading import load_masked_lm
from ds_distill.models.saving import save_model_folder
from ds_distill.recipe import Recipe
from ds_distill.reporting.tables import table
from ds_distill.run_folder import RunFolder
from ds_distill.utils.console import log, progress

MAX_BYTES = 10**9
SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "max_position_embeddings": 128,
    "initializer_range": 0.035,  # BERT's 0.02 · sqrt(768 / 256): with the width, attention scores shrink otherwise
}
SEED = 42


def main() -> None:
    """Read the documentation, train the tokenizer, pretrain the model, and write its folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder of unpacked Python packages")
    parser.add_argument("--output", type=Path, required=True, help="folder for text, tokenizer, run and teacher")
    parser.add_argument("--vocabulary", type=int, default=4096, help="tokens of the tokenizer (default 4096)")
    options = parser.parse_args()
    output = options.output
    make_text(options.packages, output, options.vocabulary)
    make_start(output / "tokenizer", output / "start")
    pretrain = (
        *("--config", "ds_configs/demo_teacher.yaml", "--from", output / "start"),
        *("--corpus", output / "train.txt", "--heldout", output / "heldout.txt", "--output", output / "run"),
    )
    if status := subprocess.run([sys.executable, "-m", "ds_distill", "pretrain", *map(str, pretrain)]).returncode:
        sys.exit(status)
    pack(RunFolder(output / "run"), output / "teacher")


def make_text(packages: Path, output: Path, vocabulary: int) -> None:
    """Write train.txt, heldout.txt and the tokenizer to `output`, unless they are there.

    The text is the documentation of the standard library, of the installed packages and of
    `packages`.
    """
    if (output / "tokenizer" / "tokenizer.json").is_file():
        return
    output.mkdir(parents=True, exist_ok=True)
    paths = sysconfig.get_paths()
    roots = [*dict.fromkeys(Path(paths[name]) for name in ("stdlib", "purelib", "platlib")), packages]
    with progress(None, "text", "B") as bar:
        text = read_documentation(MAX_BYTES, roots=roots, progress=lambda done: bar.update(done - bar.n))
    for name, documents in (("train", text.train), ("heldout", text.heldout)):
        (output / f"{name}.txt").write_text("\n\n".join(documents) + "\n", encoding="utf-8")
        log(f"{name}.txt: {len(documents):,} documents, {sum(map(len, documents)):,} characters")
    train_wordpiece(text.train, vocabulary, output / "tokenizer")


def make_start(tokenizer: Path, folder: Path) -> None:
    """Write the untrained model: random weights, but for positions on sinusoids of the same size.

    With random positions each pair of them must be learned before any head can look at a neighbor,
    and this small model predicts hardly more than word counts until then. Among sinusoids a step to
    the side is a linear map from the beginning (Vaswani et al. 2017, section 3.5).
    """
    if (folder / "model.safetensors").is_file():
        return
    words = load_tokenizer(tokenizer)
    torch.manual_seed(SEED)
    config = BertConfig(vocab_size=len(words), pad_token_id=words.pad_token_id, **SIZES)
    model = BertForMaskedLM(config)
    with torch.no_grad():
        positions = model.bert.embeddings.position_embeddings.weight
        positions.copy_(math.sqrt(2) * config.initializer_range * sinusoids(*positions.shape))
    save_model_folder(model, words, folder)


def sinusoids(positions: int, width: int, longest: float = 1000.0) -> Tensor:
    """Return sines and cosines of positions, [positions, width] fp32, with wavelengths from 2π to 2π · longest."""
    rates = torch.exp(-math.log(longest) * torch.arange(width // 2) / (width // 2))
    angles = torch.arange(positions)[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), 1)


def with_positions(model: PreTrainedModel, length: int) -> BertForMaskedLM:
    """Return a BERT's copy with its first `length` positions; the others have seen no text, and would be noise."""
    config = copy.deepcopy(model.config)
    config.max_position_embeddings = length
    weights, name = model.state_dict(), "bert.embeddings.position_embeddings.weight"
    copied = BertForMaskedLM(cast(BertConfig, config))
    copied.load_state_dict(weights | {name: weights[name][:length]})
    return copied


def pack(run: RunFolder, folder: Path) -> None:
    """Write the trained model in fp16 with its tokenizer and its card."""
    trained = load_masked_lm(find_model_folder(str(run.export)))
    length = open_manifest(run.tokens)["sequence_length"]
    model = with_positions(trained, length).half()
    shutil.rmtree(folder, ignore_errors=True)
    save_model_folder(model, load_tokenizer(run.tokens / "tokenizer"), folder)
    (heldout,) = (path for path in run.heldout.iterdir() if path.is_dir())
    recipe = Recipe()
    recipe.data.mlm_smoothing, recipe.training.micro_batch_size = 0.0, 32
    packed = load_masked_lm(find_model_folder(str(folder)))  # as the demo loads it
    rows, _ = comparison.measure({"this model": packed}, run.tokens, heldout, recipe)
    (folder / "README.md").write_text(card(rows, length), encoding="utf-8")
    log(f"{folder}: {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.1f} MB")


def card(rows: list[dict], length: int) -> str:
    """Return the model card with the held-out figures of comparison.measure; `length` is that of its sequences."""
    figures = [
        {
            "model": row["model"],
            "loss": f"{row['mask_loss']:.2f} ± {row['mask_loss_se']:.2f}",
            "accuracy": f"{row['mask_accuracy']:.1%} ± {100 * row['mask_accuracy_se']:.1f}",
        }
        for row in rows
    ]
    columns = {"model": "", "loss": "loss (nats)", "accuracy": "top-1 accuracy"}
    return f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: fill-mask
tags: [bert, masked-lm, documentation]
---
# A small BERT that has read the documentation of Python packages

The teacher of ds-distill's demo: {SIZES["num_hidden_layers"]} layers of {SIZES["hidden_size"]}, \
{SIZES["num_attention_heads"]} heads, {rows[1]["parameters"] / 1e6:.1f} million parameters in fp16, a lowercase \
WordPiece vocabulary, at most {length} tokens, as it was trained.

```python
from transformers import pipeline
print(pipeline("fill-mask", "ds_distill/demo/teacher")({comparison.PROMPTS[0]!r}))
```

## Training

Text: the docstrings of the Python standard library and of the packages that `requirements.txt` and
`ds_distill/demo/teacher_packages.txt` pin, all under permissive licenses; the latter names each license and the
commands that fetch the packages. Paragraphs that differ only in names and numbers count as one. One in 25 is held
out, by a hash of its words: the demo holds out the same ones on every machine, so that neither this model nor the
demo's students have read what they are measured on.

    python -m ds_distill.demo.make_teacher --packages PACKAGES --output WORK

It pretrains with `ds_configs/demo_teacher.yaml`: 30 million tokens, masked-LM loss, about an hour of one CPU core.

## Figures

At [MASK] only, {rows[1]["mask_count"]:,} predictions in held-out documentation with 15 % of the tokens masked; ± is one
standard error:

{table(figures, columns)}

## Limitations

It knows the English of Python documentation, and little else. It is made for a demo of a few minutes, not for use.
The weights are under the Apache License 2.0, as the project is.
"""


if __name__ == "__main__":
    main()
