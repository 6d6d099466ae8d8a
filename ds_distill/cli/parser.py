"""What the command line takes: its commands, their options, and what is said of a wrong one."""

import functools
from typing import Annotated, Any, get_type_hints

from ds_distill.config.values import Name, OutputPath, UserPath, by_name
from ds_distill.finetune.config import Tuning
from ds_distill.recipe import Data, Losses, Recipe, Student, Training
from ds_distill.tasks.registry import TASKS

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
# what a study's student may differ in, and how its fine-tunings are trained: in all tasks, or under a task's name in that one
SETTINGS = {f"{room}.{key}": hint for room, kind in ROOMS.items() for key, hint in get_type_hints(kind, include_extras=True).items()}
STUDENT = Annotated[dict[str, Any], by_name(SETTINGS, "settings")]
OF_A_TASK = get_type_hints(Tuning, include_extras=True) | {"seeds": int}
TUNING = Annotated[dict[str, Any], by_name(OF_A_TASK | dict.fromkeys(TASKS, Annotated[dict[str, Any], by_name(OF_A_TASK, "settings")]), "settings")]

INPUTS = ("txt, jsonl, csv, tsv, parquet files (.gz, .zst too), folders and patterns of them, hub data sets hf:NAME[:CONFIG][@SPLIT][#COLUMN]; "
          "FILE#COLUMN names a file's column")  # fmt: skip


@functools.cache  # a study checks many commands
def build_parser():
    from ds_distill.cli.argument_parser import Parser, RecipeFile, with_values

    parser = Parser(prog="ds-distill", allow_abbrev=False, description="Distil pretrained encoders into small ones during pretraining, on DeepSpeed.")
    commands = parser.add_subcommands(required=True)
    for name, purpose in COMMANDS.items():
        sub = Parser(description=purpose, allow_abbrev=False)
        sub.add_argument("--config", action=RecipeFile, help="any of these options from a YAML file; later arguments override it")
        sub.add_argument("--debug", action="store_true", help="show the traceback of a mistake, and the libraries' own output")
        _add_arguments(sub, name)
        output = "runs/demo" if name == "run" else None
        sub.add_argument("--output", type=OutputPath | None, default=output, help="folder for everything the command makes")
        if name not in WITHOUT_RECIPE:
            for room, kind in ROOMS.items():
                sub.add_argument(f"--{room}", type=kind, default=kind())
        commands.add_subcommand(name, with_values(sub), help=purpose)
    return parser


def _add_arguments(sub, name: str) -> None:
    """What only this command takes."""
    if name in ("run", "distill", "plan", "prepare"):
        sub.add_argument("--teacher", type=UserPath | None, default=None, help="BERT, RoBERTa, XLM-R or DistilBERT masked-LM: folder or cached name"
                         + ("; its tokenizer is taken where --tokenizer is not given" if name == "prepare" else ""))  # fmt: skip
    if name == "run":
        sub.add_argument("--corpus", type=UserPath, nargs="*", default=[], help="as for prepare; none: texts found on this machine")
        sub.add_argument("--fresh", action="store_true", help="without --teacher: start over instead of going on with what is there")
        sub.add_argument("--corpus_megabytes", type=float, default=6.0, help="how much of this machine's documentation to read")
        sub.add_argument("--vocabulary", type=int, default=8192, help="tokens of the tokenizer trained on it")
        sub.add_argument("--teacher_tokens", type=int, default=1_000_000, help="tokens the small teacher is pretrained on")
    elif name not in WITHOUT_RECIPE:
        only = "as for prepare; not read here: how long an epoch is, --tokens tells" if name == "plan" else INPUTS
        sub.add_argument("--corpus", "--input", type=UserPath, nargs="+", default=[], help=only)
    if name in ("run", "pretrain"):
        sub.add_argument("--model", type=dict[str, int], default=MODEL, help="sizes of the BERT to pretrain, transformers' BertConfig")
    if name == "pretrain":
        sub.add_argument("--from", type=UserPath | None, default=None,
                         help="folder of an encoder to go on with; a trunk without a masked-LM head gets one")
    if name in ("prepare", "pretrain"):
        sub.add_argument("--tokenizer", type=UserPath | None, default=None, help="folder with the tokenizer")
    if name == "plan":
        sub.add_argument("--ranks", type=int, default=1, help="devices in all")
        sub.add_argument("--memory_gib", type=float | None, default=None, help="memory of a device; this machine's when not given. Precision and "
                         "rate are this machine's in any case: ask where there is such a device")  # fmt: skip
        sub.add_argument("--tokens_per_second", type=float | None, default=None, help="of all ranks together; measured here, briefly, when not given")
    if name in ("run", "pretrain", "distill", "evaluate", "plan"):
        sub.add_argument("--tokens", type=UserPath | None, default=None, help="folder made by prepare (instead of --corpus)")
    if name in ("run", "pretrain", "distill"):
        sub.add_argument("--heldout", type=UserPath, nargs="+", default=[], help="further held-out texts, each measured on its own along the way")
    if name in ("prepare", "evaluate", "plan"):
        sub.add_argument("--heldout", type=UserPath, nargs="+", default=[], help="a recipe's, for distill; not read here")
    if name in ("pretrain", "evaluate"):
        sub.add_argument("--teacher", type=UserPath | None, default=None, help="a recipe's, for distill; not read here")
    if name == "evaluate":
        sub.add_argument("--model", type=UserPath, nargs="+", default=[], help="Hugging Face folders")
        sub.add_argument("--untrained", action="store_true", help="also the first one's architecture with random weights")
    if name == "export":
        sub.add_argument("--run", type=UserPath | None, default=None, help="the --output folder of distill or pretrain")
        sub.add_argument("--step", type=int | None, default=None, help="optimizer step of the checkpoint; the newest when not given")
        sub.add_argument(
            "--model", type=UserPath | None, default=None, help="instead of --run, a Hugging Face folder, fine-tuned ones too; --output may be it"
        )
        sub.add_argument("--format", type=Name, nargs="+", default=["hf"], help="hf, onnx, onnx-int8, onnx-int8-vnni, openvino-int8, torch-export")
        sub.add_argument("--text", type=UserPath, nargs="+", default=[],
                         help="what formats are compared with PyTorch on; a sample of ours if not given")
        sub.add_argument("--data", type=UserPath | None, default=None,
                         help="labelled examples of a fine-tuned model: its score before and after; FILE#COLUMN or "
                         "FILE#COLUMN,COLUMN names the text")  # fmt: skip
        sub.add_argument("--encoder", action="store_true", help="formats without the head: last hidden states, for embedding servers")
    if name == "finetune":
        sub.add_argument("--task", type=Name | None, default=None, help="cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli, imdb, squad or squad_v2")
        sub.add_argument("--model", type=UserPath | None, default=None, help="Hugging Face folder of a pretrained encoder")
        sub.add_argument("--teacher", type=UserPath | None, default=None, help="folder of a teacher fine-tuned on the task: the second distillation")
        sub.add_argument("--data", type=UserPath | None, default=None, help="folder with train.* and validation.* or dev.* (jsonl, json, "
                         "tsv, csv, parquet; .gz, .zst; SQuAD's own), the hub's columns or GLUE's layout; from the hub when not given")  # fmt: skip
        sub.add_argument("--seeds", type=int, default=1, help="how many, from --first_seed on; figures are medians")
        sub.add_argument("--first_seed", type=int, default=0, help="the first of the seeds, or the only one")
        sub.add_argument("--grid", type=Name, nargs="+", default=[], help="settings to try, all combinations: lr=2e-5,5e-5 epochs=3,5; "
                         "in a file a list, ['lr=2e-5,5e-5']")  # fmt: skip
        sub.add_argument("--tuning", type=Tuning, default=Tuning(), help="how a run is trained")
    if name == "study":
        sub.add_argument("--base", type=UserPath, default="ds_configs/small_real.yaml", help="recipe of every student, from here or the checkout")
        sub.add_argument("--students", type=dict[str, STUDENT], default={"distilled": {}}, help="a name, and what differs from base")
        sub.add_argument("--teacher", type=UserPath | None, default=None, help="folder of a masked-LM teacher")
        sub.add_argument("--corpus", type=UserPath, nargs="+", default=[], help=INPUTS)
        sub.add_argument("--heldout", type=UserPath, nargs="+", default=[], help="further held-out texts")
        sub.add_argument("--data", type=UserPath | None, default=None,
                         help="folder with a folder a task, each as for finetune; from the hub when not given")
        sub.add_argument("--tasks", "--tasks+", type=Name, nargs="+", default=["rte"], help="rte sst2 …, names as for finetune")
        sub.add_argument("--seeds", type=int, default=3, help="of each fine-tuning")
        sub.add_argument("--teacher_too", type=bool, default=True, help="fine-tune the teacher as well")
        sub.add_argument("--second", "--second+", type=Name, nargs="+", default=[], help="students that are also fine-tuned with the fine-tuned "
                         "teacher")  # fmt: skip
        sub.add_argument("--tuning", type=TUNING, default={}, help="settings of the fine-tunings; a task's own under its name, "
                         "seeds among them")  # fmt: skip
        sub.add_argument("--launch", type=str, default="", help="starts each distillation: './launch.sh', 'deepspeed --hostfile HOSTS launch.sh'")
        sub.add_argument("--jobs", type=int, default=1, help="steps side by side, each with its share of the cores, or a GPU, in turn where "
                         "there are fewer; what --launch starts runs alone")  # fmt: skip
    if name == "report":
        sub.add_argument("folders", type=UserPath, nargs="+", help="--output of a study, --report of benchmarks.inference.table3 or benchmarks.inference.__main__")


def recipe_of(options) -> Recipe:
    """The recipe in parsed options."""
    return Recipe(**{room: section_of(options[room], kind) for room, kind in ROOMS.items()})


def section_of(value, kind: type):
    """A parsed section as its dataclass; the defaults where a file has nothing under its name."""
    if value is None:
        return kind()
    return value if isinstance(value, kind) else kind(**{key: vars(value)[key] for key in kind.__dataclass_fields__})


def check_command(words: list[str]) -> Recipe | None:
    """The recipe of a command as it is typed, if it has one. UserError where the command would be refused for its words or its recipe's numbers."""
    options = build_parser().parse_args(words)
    if options.subcommand in WITHOUT_RECIPE:
        return None
    recipe = recipe_of(options[options.subcommand])
    recipe.check()
    return recipe
