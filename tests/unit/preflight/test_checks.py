"""Any single mistake is reported before the corpus is prepared."""

import codecs
import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from ds_distill.cli import main
from ds_distill.cli.parser import check_command
from ds_distill.data.tokenizer import train_wordpiece
from tests.unit.models.test_teacher import FAMILIES, tiny_bert

TEXT = [
    "the small model reads what a large one wrote and keeps most of it because both see every word of the text"
] * 40
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 438011808\n"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A teacher and a text without any mistake."""
    folder = tmp_path_factory.mktemp("sound")
    (folder / "text.txt").write_text("\n\n".join(TEXT))
    tokenizer = train_wordpiece(TEXT, 200, folder / "teacher")
    tiny_bert(layers=2, vocab_size=len(tokenizer), max_position_embeddings=32).save_pretrained(folder / "teacher")
    (folder / "d.json").write_text("{}")
    return folder


@pytest.fixture
def world(sound, tmp_path):
    """A copy of the sound folder that tests may spoil."""
    return shutil.copytree(sound, tmp_path / "world")


def change_weights(teacher, change) -> None:
    weights = load_file(teacher / "model.safetensors")
    change(weights)
    save_file(
        {name: tensor.clone() for name, tensor in weights.items()},
        teacher / "model.safetensors",
        metadata={"format": "pt"},
    )


def change_config(teacher, **values) -> None:
    file = teacher / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def only_vocab_txt(teacher, change) -> None:
    tokens = sorted((index, token) for token, index in AutoTokenizer.from_pretrained(teacher).get_vocab().items())
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (teacher / file).unlink()
    (teacher / "vocab.txt").write_bytes(change("".join(f"{token}\n" for _, token in tokens).encode()))


def add_tokens(teacher, **kind) -> None:
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    tokenizer.add_tokens(["riverboat", "stonebridge"], **kind)
    tokenizer.save_pretrained(teacher)


def untie(teacher) -> None:
    words, head = "bert.embeddings.word_embeddings.weight", "cls.predictions"
    change_weights(
        teacher, lambda w: w.update({f"{head}.decoder.weight": w[words] + 1, f"{head}.decoder.bias": w[f"{head}.bias"]})
    )
    change_config(teacher, tie_word_embeddings=False)


def to_json(world, config) -> None:
    (world / "d.json").write_text(json.dumps(config))


ANY = {  # for any command that reads such a model: the change to it, and the message
    "NaN": (
        lambda t: change_weights(t, lambda w: w["bert.encoder.layer.1.output.dense.bias"].fill_(float("nan"))),
        "NaN or infinite values in the weights bert.encoder.layer.1.output.dense.bias",
    ),
    "infinity in the embeddings": (
        lambda t: change_weights(t, lambda w: w["bert.embeddings.word_embeddings.weight"][7].fill_(float("inf"))),
        "NaN or infinite values in the weights bert.embeddings.word_embeddings.weight",
    ),
    "LFS weights": (lambda t: (t / "model.safetensors").write_text(LFS), "a Git LFS pointer"),
    "LFS config": (lambda t: (t / "config.json").write_text(LFS), "a Git LFS pointer"),
    "LFS tokenizer": (lambda t: (t / "tokenizer.json").write_text(LFS), "a Git LFS pointer"),
    "half a file": (
        lambda t: (t / "model.safetensors").write_bytes((t / "model.safetensors").read_bytes()[:9000]),
        "the weights cannot be read",
    ),
    "a shard is absent": (
        lambda t: [
            (t / "model.safetensors").rename(t / "model-00001-of-00002.safetensors"),
            (t / "model.safetensors.index.json").write_text(
                json.dumps(
                    {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
                )
            ),
        ],
        "model-00002-of-00002.safetensors, which is missing from the folder",
    ),
    "added tokens": (add_tokens, "riverboat, stonebridge were added; call model.resize_token_embeddings"),
    "added special tokens": (lambda t: add_tokens(t, special_tokens=True), "riverboat, stonebridge were added"),
    "another's tokenizer": (
        lambda t: train_wordpiece([f"other{i} words{i}" for i in range(400)], 500, t),
        "so it belongs to another model",
    ),
    "byte-order mark": (
        lambda t: only_vocab_txt(t, lambda text: codecs.BOM_UTF8 + text),
        "vocab.txt begins with a byte-order mark",
    ),
    "no [MASK]": (
        lambda t: only_vocab_txt(t, lambda text: text.replace(b"[MASK]", b"[M]")),
        "vocab.txt lacks [MASK]; put it back",
    ),
    "too few positions": (
        lambda t: tiny_bert(layers=2, vocab_size=200, max_position_embeddings=16).save_pretrained(t),
        "16 positions",
    ),
    "another width": (lambda t: change_config(t, intermediate_size=64), "disagree on the shape"),
    "a layer is absent": (
        lambda t: change_weights(t, lambda w: w.pop("bert.encoder.layer.0.output.dense.weight")),
        "lacks bert.encoder.layer.0.output.dense.weight",
    ),
    "weights of two models": (
        lambda t: change_weights(
            t, lambda w: [w.update({f"a.{name}": w[name], f"b.{name}": w.pop(name)}) for name in list(w)]
        ),
        "are not those of a BertForMaskedLM",
    ),
    "a causal model": (lambda t: change_config(t, is_decoder=True), "a causal model"),
}
TEACHERS = ANY | {
    "untied decoder": (untie, "its decoder is not tied to its word embeddings"),
    "no head": (
        lambda t: change_weights(t, lambda w: [w.pop(name) for name in list(w) if name.startswith("cls.")]),
        "no masked-LM head",
    ),
}
SETTINGS = {  # for a run: the arguments, the content of d.json, and the message
    "layers": (["--student.init_layers", "[0, 9]"], {}, "student.init_layers[1] = 9: the teacher has 2 layers, 0 to 1"),
    "depth": (["--student.num_layers", "3"], {}, "student.num_layers = 3: the teacher has 2 layers to copy"),
    "width": (
        ["--student.hidden_size", "12"],
        {},
        "student.hidden_size = 12: give a multiple of the teacher's head size",
    ),
    "length": (["--data.sequence_length", "64"], {}, "data.sequence_length = 64"),
    "precision": (["--training.precision", "fp16"], {}, "training.precision = fp16: this machine has no GPU"),
    "device": (["--training.device", "cuda"], {}, "training.device = cuda: torch finds no GPU"),
    "optimizer": (["--training.optimizer", "apex"], {}, "training.optimizer = apex"),
    "key of DeepSpeed's": (
        [],
        {"zero_optimization": {"stage": 2, "reduce_bucket_sise": 1}},
        "did you mean reduce_bucket_size?",
    ),
    "value of DeepSpeed's": (
        [],
        {"zero_optimization": {"stage": 2, "reduce_bucket_size": 0}},
        "zero_optimization.reduce_bucket_size = 0",
    ),
    "section of DeepSpeed's": ([], {"zero_optimisation": {"stage": 2}}, "did you mean zero_optimization?"),
    "DeepSpeed's start": ([], {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "nvme_path"),
    "the recipe's in DeepSpeed's": ([], {"fp16": {"enabled": True}}, "belongs to the recipe's training section"),
    "offload": (
        ["--training.optimizer", "torch"],
        {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
        "optimizer offload",
    ),
    "heldout": (["--heldout", "nowhere.txt"], {}, "nowhere.txt: no such file"),
    "empty heldout": (["--heldout", "/dev/null"], {}, "--heldout /dev/null: contains no text"),
    "corpus": (["--corpus", "nowhere.txt"], {}, "nowhere.txt: no such file"),
    "weights of sources": (["--data.weights", "[1, 2]"], {}, "data.weights = [1.0, 2.0]: must be one number"),
    "own part": (["--data.heldout_fraction", "0"], {}, "data.heldout_fraction = 0"),
}


def refused(capsys, words: str, *arguments) -> None:
    """Run the command and check that it ends with one sentence that holds `words`."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    messages = [line for line in printed.err.splitlines() if line.startswith("ds-distill: ")]
    assert len(messages) == 1 and words in messages[0] and "Traceback" not in printed.err, printed.err[-1500:]
    assert not printed.out


def common(world) -> list:
    return [
        "--corpus",
        world / "text.txt",
        "--output",
        world / "out",
        "--data.sequence_length",
        32,
        "--data.workers",
        1,
        "--training.global_batch_size",
        4,
        "--training.micro_batch_size",
        2,
        "--training.max_tokens",
        128,
        "--training.deepspeed",
        world / "d.json",
    ]


@pytest.mark.promise("Every mistake that can be found before a corpus is prepared is reported before")
@pytest.mark.parametrize("what", TEACHERS)
def test_a_teacher_is_looked_at_before_its_corpus_is_prepared(world, capsys, what):
    spoil, words = TEACHERS[what]
    spoil(world / "teacher")
    refused(capsys, words, "distill", "--teacher", world / "teacher", *common(world))
    assert not (world / "out").exists()


@pytest.mark.promise("Every mistake that can be found before a corpus is prepared is reported before")
@pytest.mark.parametrize(
    "what",
    # DeepSpeed compiles an extension for two minutes before it looks at this setting
    [pytest.param(what, marks=pytest.mark.long if what == "DeepSpeed's start" else ()) for what in SETTINGS],
)
def test_settings_are_looked_at_before_a_corpus_is_prepared(world, capsys, what):
    arguments, config, words = SETTINGS[what]
    to_json(world, config)
    refused(capsys, words, "distill", "--teacher", world / "teacher", *common(world), *arguments)
    assert not (world / "out").exists()


def test_plan_looks_at_the_deepspeed_json(world, capsys):
    to_json(world, {"zero_optimization": {"stage": 2, "reduce_bucket_sise": 1}})
    refused(capsys, "did you mean reduce_bucket_size?", "estimate", "--teacher", world / "teacher", *common(world))


@pytest.mark.promise("Every mistake that can be found before a corpus is prepared is reported before")
@pytest.mark.parametrize("what", ANY)
def test_an_encoder_to_go_on_with_and_one_to_evaluate_are_looked_at_first(world, capsys, what):
    spoil, words = ANY[what]
    spoil(world / "teacher")
    refused(capsys, words, "pretrain", "--from", world / "teacher", *common(world))
    refused(capsys, words, "evaluate", "--model", world / "teacher", *common(world))
    assert not (world / "out").exists()


def test_models_of_two_tokenizers_are_told_apart_before_a_corpus_is_prepared(sound, world, capsys):
    train_wordpiece(TEXT[:1] + [text.replace("model", "theory") for text in TEXT], 200, world / "teacher")
    refused(
        capsys,
        "its tokenizer differs from that of",
        "evaluate",
        "--model",
        sound / "teacher",
        world / "teacher",
        *common(world),
    )
    refused(
        capsys,
        "its tokenizer differs from that of",
        "pretrain",
        "--from",
        world / "teacher",
        "--tokenizer",
        sound / "teacher",
        *common(world),
    )
    assert not (world / "out").exists()


@pytest.mark.parametrize(
    "options", [["--training.micro_batch_size", "auto"], ["--training.encoder_learning_rate", "0"]]
)
def test_settings_of_a_run_alone_are_no_mistake(world, capsys, options):
    from ds_distill.preflight.checks import check_engine, check_machine

    recipe = check_command(
        [str(word) for word in ["distill", "--teacher", world / "teacher", *common(world), *options]]
    )
    check_machine(recipe)
    check_engine(recipe)


@pytest.mark.parametrize(
    "options, words",
    [
        (["--training.seed", 5], "holds another run (training.seed was 0, is 5)"),
        (["--losses.kl", 1], "holds another run (losses.kl was 5.0, is 1.0)"),
        (["--training.resume", "never"], "holds this run already"),
    ],
)
def test_another_run_in_the_folder_is_told_before_a_corpus_is_prepared(world, capsys, options, words):
    recipe = check_command([str(word) for word in ["distill", "--teacher", world / "teacher", *common(world)]])
    (world / "out").mkdir()
    (world / "out" / "run.json").write_text(json.dumps(recipe.identity() | {"data": "…", "teacher": "…"}))
    refused(capsys, words, "distill", "--teacher", world / "teacher", *common(world), *options)
    assert [file.name for file in (world / "out").iterdir()] == ["run.json"]


def test_prepare_says_what_distill_will_not_take(world, capsys):
    command = ["prepare", "--teacher", world / "teacher", *common(world)]
    for what, words in (("NaN", "NaN or infinite"), ("added tokens", "were added"), ("two", None)):
        if words:
            ANY[what][0](world / "teacher")
        else:
            shutil.rmtree(world / "teacher")
            train_wordpiece(TEXT, 200, world / "teacher")  # leaves a tokenizer alone in the folder
        assert main([str(word) for word in command]) == 0
        messages = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: teacher")]
        assert (
            len(messages) == 1
            and (words or "no config.json") in messages[0]
            and "distill will refuse this teacher" in messages[0]
        )


def test_a_random_start_asks_for_no_tied_decoder(world, capsys):
    untie(world / "teacher")
    arguments = [
        "--student.init_layers",
        "random",
        "--training.optimizer",
        "torch",
        "--training.precision",
        "fp32",
        "--training.compile",
        "off",
    ]
    assert main([str(word) for word in ["distill", "--teacher", world / "teacher", *common(world), *arguments]]) == 0, (
        capsys.readouterr().err[-2000:]
    )


def test_a_vocabulary_that_lacks_a_line_is_said_even_where_it_fits(world, capsys):
    """[MASK] is counted at the end, and every other token by the number before its own."""
    only_vocab_txt(world / "teacher", lambda text: text.replace(b"[MASK]\n", b""))
    main([str(word) for word in ["evaluate", "--model", world / "teacher", *common(world)]])
    assert (
        "warning: --model" in (stderr := capsys.readouterr().err)
        and "vocab.txt lacks [MASK], so the tokenizer appends it as token" in stderr
    )


@pytest.mark.parametrize("make", FAMILIES)
def test_each_family_passes(world, capsys, make):
    from ds_distill.models.families import get_family
    from ds_distill.models.folder import find_model_folder
    from ds_distill.preflight.checks import check_teachers
    from ds_distill.recipe import Data, Recipe
    from ds_distill.utils.errors import UserError

    model = make()
    model.save_pretrained(world / "teacher")
    change_config(world / "teacher", vocab_size=model.config.vocab_size)
    train_wordpiece(TEXT[:1], 200, world / "small")
    for file in (world / "small").iterdir():
        shutil.copy(file, world / "teacher")
    assert len(AutoTokenizer.from_pretrained(world / "teacher")) <= model.config.vocab_size
    teachers, recipe = [find_model_folder(str(world / "teacher"))], Recipe(data=Data(sequence_length=16))
    check_teachers(teachers, recipe)
    recipe.training.gradient_checkpointing = True
    if not get_family(model).recomputes:
        with pytest.raises(UserError, match="gradient_checkpointing = true: transformers cannot recompute the layers"):
            check_teachers(teachers, recipe)
