"""What the command line takes: its commands, their options, and what is said of a wrong one."""

import difflib
import functools
import re
from typing import Any

from ds_distill.errors import UserError, did_you_mean
from ds_distill.finetune.settings import Tuning
from ds_distill.recipe import Data, Losses, Recipe, Student, Training

COMMANDS = {
    "run": "the whole road on text of this machine: tokenizer, teacher, student, baseline, table (what ./launch.sh does), or a recipe's distill",
    "prepare": "text → tokens",
    "pretrain": "masked-LM only: a new BERT, or on from any encoder, with a head if it has none: teachers",
    "distill": "train a student of a teacher",
    "plan": "before a run: parameters, memory by ZeRO stage, steps, hours, whether it fits and what to change",
    "evaluate": "held-out masked-LM loss and accuracy of Hugging Face folders, best first",
    "export": "a run's checkpoint → a Hugging Face folder; either → ONNX, int8, OpenVINO, torch.export, compared with PyTorch",
    "finetune": "an encoder on a task of GLUE, SQuAD or IMDb, several seeds, with or without a fine-tuned teacher",
    "study": "a plan of students and tasks: distils and fine-tunes each, going on where it stopped",
    "report": "studies and benchmark reports → one page, laid out as the paper's tables",
    "env": "versions, devices, and which fused kernels run here",
}
ROOMS = {"data": Data, "student": Student, "losses": Losses, "training": Training}
WITHOUT_RECIPE = ("export", "finetune", "study", "report", "env")
MODEL = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 768, "max_position_embeddings": 128}

INPUTS = ("txt, jsonl, csv, tsv, parquet files (.gz, .zst too), folders and patterns of them, hub data sets hf:NAME[:CONFIG][@SPLIT][#COLUMN]; "
          "FILE#COLUMN names a file's column")  # fmt: skip


def build_parser():
    from jsonargparse import ArgumentParser

    class Parser(ArgumentParser):
        def error(self, message, ex=None):
            raise UserError(explain(str(message), known_keys(self)))

        def parse_args(self, *arguments, **options):
            try:
                return super().parse_args(*arguments, **options)
            except RecursionError:
                raise UserError("--config: the file refers to itself or nests without end") from None
            except RuntimeError as error:
                if "changed size" not in str(error):
                    raise
                # jsonargparse goes over what it takes for a list, and changes it
                raise UserError("--config: keys stand where a list belongs: write corpus: [FILE, FILE]") from error

    parser = Parser(prog="ds-distill", allow_abbrev=False, description="Distil pretrained encoders into small ones during pretraining, on DeepSpeed.")
    commands = parser.add_subcommands(required=True)
    for name, purpose in COMMANDS.items():
        sub = Parser(description=purpose, allow_abbrev=False)
        sub.add_argument("--config", action="config", help="any of these options from a YAML file; later arguments override it")
        sub.add_argument("--debug", action="store_true", help="show the traceback of a mistake, and the libraries' own output")
        _add_arguments(sub, name)
        sub.add_argument("--output", type=str | None, default="runs/demo" if name == "run" else None, help="folder for everything the command makes")
        if name not in WITHOUT_RECIPE:
            for room, kind in ROOMS.items():
                sub.add_argument(f"--{room}", type=kind, default=kind())
        commands.add_subcommand(name, sub, help=purpose)
    return parser


def _add_arguments(sub, name: str) -> None:
    """What only this command takes."""
    if name in ("run", "distill", "plan", "prepare"):
        sub.add_argument("--teacher", type=str | None, default=None, help="BERT, RoBERTa, XLM-R or DistilBERT masked-LM: folder or cached name"
                         + ("; its tokenizer is taken where --tokenizer is not given" if name == "prepare" else ""))  # fmt: skip
    if name == "run":
        sub.add_argument("--corpus", type=str, nargs="*", default=[], help="as for prepare; none: texts found on this machine")
        sub.add_argument("--fresh", action="store_true", help="without --teacher: start over instead of going on with what is there")
        sub.add_argument("--corpus_megabytes", type=float, default=6.0, help="how much of this machine's documentation to read")
        sub.add_argument("--vocabulary", type=int, default=8192, help="tokens of the tokenizer trained on it")
        sub.add_argument("--teacher_tokens", type=int, default=1_000_000, help="tokens the small teacher is pretrained on")
    elif name not in WITHOUT_RECIPE:
        only = "as for prepare; not read here: how long an epoch is, --tokens tells" if name == "plan" else INPUTS
        sub.add_argument("--corpus", "--input", type=str, nargs="+", default=[], help=only)
    if name in ("run", "pretrain"):
        sub.add_argument("--model", type=dict[str, int], default=MODEL, help="sizes of the BERT to pretrain, transformers' BertConfig")
    if name == "pretrain":
        sub.add_argument("--from", type=str | None, default=None, help="folder of an encoder to go on with; a trunk without a masked-LM head gets one")
    if name in ("prepare", "pretrain"):
        sub.add_argument("--tokenizer", type=str | None, default=None, help="folder with the tokenizer")
    if name == "plan":
        sub.add_argument("--ranks", type=int, default=1, help="devices in all")
        sub.add_argument("--memory_gib", type=float | None, default=None, help="memory of a device; this machine's when not given. Precision and "
                         "rate are this machine's in any case: ask where there is such a device")  # fmt: skip
        sub.add_argument("--tokens_per_second", type=float | None, default=None, help="of all ranks together; measured here, briefly, when not given")
    if name in ("run", "pretrain", "distill", "evaluate", "plan"):
        sub.add_argument("--tokens", type=str | None, default=None, help="folder made by prepare (instead of --corpus)")
    if name in ("run", "pretrain", "distill"):
        sub.add_argument("--heldout", type=str, nargs="+", default=[], help="further held-out texts, each measured on its own along the way")
    if name in ("prepare", "evaluate", "plan"):
        sub.add_argument("--heldout", type=str, nargs="+", default=[], help="a recipe's, for distill; not read here")
    if name in ("pretrain", "evaluate"):
        sub.add_argument("--teacher", type=str | None, default=None, help="a recipe's, for distill; not read here")
    if name == "evaluate":
        sub.add_argument("--model", type=str, nargs="+", default=[], help="Hugging Face folders")
        sub.add_argument("--untrained", action="store_true", help="also the first one's architecture with random weights")
    if name == "export":
        sub.add_argument("--run", type=str | None, default=None, help="the --output folder of distill or pretrain")
        sub.add_argument("--step", type=int | None, default=None, help="optimizer step of the checkpoint; the newest when not given")
        sub.add_argument(
            "--model", type=str | None, default=None, help="instead of --run, a Hugging Face folder, fine-tuned ones too; --output may be it"
        )
        sub.add_argument("--format", type=str, nargs="+", default=["hf"], help="hf, onnx, onnx-int8, onnx-int8-vnni, openvino-int8, torch-export")
        sub.add_argument("--text", type=str, nargs="+", default=[], help="what formats are compared with PyTorch on; a sample of ours if not given")
        sub.add_argument("--data", type=str | None, default=None, help="labelled examples of a fine-tuned model: its score before and after")
        sub.add_argument("--encoder", action="store_true", help="formats without the head: last hidden states, for embedding servers")
    if name == "finetune":
        sub.add_argument("--task", type=str | None, default=None, help="cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli, imdb, squad or squad_v2")
        sub.add_argument("--model", type=str | None, default=None, help="Hugging Face folder of a pretrained encoder")
        sub.add_argument("--teacher", type=str | None, default=None, help="folder of a teacher fine-tuned on the task: the second distillation")
        sub.add_argument("--data", type=str | None, default=None, help="folder with train.* and validation.* or dev.* (jsonl, json, "
                         "tsv, csv, parquet; .gz, .zst; SQuAD's own), the hub's columns or GLUE's layout; from the hub when not given")  # fmt: skip
        sub.add_argument("--seeds", type=int, default=1, help="how many, from 0 on; figures are medians")
        sub.add_argument("--grid", type=str, nargs="+", default=[], help="settings to try, all combinations: lr=2e-5,5e-5 epochs=3,5; "
                         "in a file a list, ['lr=2e-5,5e-5']")  # fmt: skip
        sub.add_argument("--tuning", type=Tuning, default=Tuning(), help="how a run is trained")
    if name == "study":
        sub.add_argument("--base", type=str, default="ds_configs/small_real.yaml", help="recipe of every student, from here or the checkout")
        sub.add_argument("--students", type=dict[str, dict[str, Any]], default={"distilled": {}}, help="a name, and what differs from base")
        sub.add_argument("--teacher", type=str | None, default=None, help="folder of a masked-LM teacher")
        sub.add_argument("--corpus", type=str, nargs="+", default=[], help=INPUTS)
        sub.add_argument("--heldout", type=str, nargs="+", default=[], help="further held-out texts")
        sub.add_argument("--data", type=str | None, default=None, help="folder with a folder a task, each as for finetune; from the hub when not given")
        sub.add_argument("--tasks", type=list[str], default=["rte"], help="'[rte, sst2]', names as for finetune")
        sub.add_argument("--seeds", type=int, default=3, help="of each fine-tuning")
        sub.add_argument("--teacher_too", type=bool, default=True, help="fine-tune the teacher as well")
        sub.add_argument("--second", type=list[str], default=[], help="'[distilled]': students that are also fine-tuned with the fine-tuned "
                         "teacher")  # fmt: skip
        sub.add_argument("--tuning", type=dict[str, Any], default={}, help="settings of the fine-tunings; a task's own under its name, "
                         "seeds among them")  # fmt: skip
        sub.add_argument("--launch", type=str, default="", help="starts each distillation: './launch.sh', 'deepspeed --hostfile HOSTS launch.sh'")
        sub.add_argument("--jobs", type=int, default=1, help="steps side by side, each with its share of the cores, or a GPU, in turn where "
                         "there are fewer; what --launch starts runs alone")  # fmt: skip
    if name == "report":
        sub.add_argument("folders", type=str, nargs="+", help="--output of a study, --report of benchmarks.table3 or benchmarks.inference")


def known_keys(parser) -> list[str]:
    """All option names of a parser, its subcommands included, without dashes."""
    keys = []
    for action in parser._actions:
        keys += [option.removeprefix("--") for option in action.option_strings if option.startswith("--")]
    return keys


def explain(message: str, keys: list[str]) -> str:
    """A parser's message in one line, with the nearest known key where one is unknown."""
    message = " ".join(line.strip() for line in message.splitlines() if line.strip())
    unknown = re.search(r"nrecognized arguments: --?([\w.]+)", message) or re.search(r"does not accept option '([\w.]+)'", message)
    if unknown:
        every = keys + [f"{room}.{key}" for room, kind in ROOMS.items() for key in kind.__dataclass_fields__]
        near = did_you_mean(unknown[1], every) or did_you_mean(unknown[1].split(".")[-1], [key.split(".")[-1] for key in every], 0.5)
        return f"{unknown[1]}: no such key{near} (--help lists all)"
    wrong = re.match(r'Parser key "([\w.]+)": (.*)', message)
    if wrong:
        return f"{wrong[1]}: {wrong[2]}"
    choice = re.search(r"invalid choice: '(\w+)'", message)
    near = difflib.get_close_matches(choice[1], COMMANDS, n=1) if choice else []
    return f"{choice[1]}: no such command; did you mean {near[0]}?" if near else message


def recipe_of(options) -> Recipe:
    """The recipe in parsed options."""
    return Recipe(**{room: section_of(options[room], kind) for room, kind in ROOMS.items()})


def section_of(value, kind: type):
    """A parsed section as its dataclass; the defaults where a file has nothing under its name."""
    if value is None:
        return kind()
    return value if isinstance(value, kind) else kind(**vars(value))


_parser = functools.cache(build_parser)  # a study checks many


def check_command(words: list[str]) -> None:
    """UserError where a command, as typed, would be refused for its words or its recipe's numbers."""
    options = _parser().parse_args(words)
    if options.subcommand not in WITHOUT_RECIPE:
        recipe_of(options[options.subcommand]).check()
