import json
import os
import sys
from pathlib import Path

import pytest
import yaml

from ds_distill import __version__, api
from ds_distill.cli import app as cli
from ds_distill.cli.argument_parser import known_keys
from ds_distill.cli.arguments import build_recipe
from ds_distill.cli.commands import COMMANDS
from ds_distill.cli.parser import build_parser
from ds_distill.config.unknown_keys import OTHER_NAMES, unknown_key_message
from ds_distill.recipe import Training
from ds_distill.run_folder import find_model, folder_of_model
from ds_distill.utils.errors import UserError
from tests import patience
from tests.start import ROOT


def test_run_without_a_recipe_takes_the_embedded_default(monkeypatch):
    seen = {}
    monkeypatch.setattr(cli.COMMANDS["run"], "run", lambda options: seen.update(options=options) or {})
    monkeypatch.setattr(cli, "write_summary", lambda summary, folder: None)
    assert cli.main(["run", "--training.seed", "3", "--debug"]) == 0
    demo = yaml.safe_load((ROOT / "ds_configs" / "demo.yaml").read_text())
    assert (
        seen["options"].corpus_megabytes == demo["corpus_megabytes"]
        and seen["options"].data.sequence_length == demo["data"]["sequence_length"]
    )
    assert seen["options"].training.seed == 3
    assert cli.main(["run", "--from-scratch", "--debug"]) == 0
    demo = yaml.safe_load((ROOT / "ds_configs" / "demo_from_scratch.yaml").read_text())
    assert seen["options"].vocabulary == demo["vocabulary"]


def test_device_cpu_hides_the_gpus_before_torch_is_loaded(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    seen = {}
    monkeypatch.setattr(cli, "silence_libraries", lambda debug: seen.update(os.environ))
    monkeypatch.setattr(cli.COMMANDS["run"], "run", lambda options: {})
    assert cli.main(["run", "--training.device", "cpu", "--output", ""]) == 2, "an output is asked for first"
    assert not seen
    monkeypatch.setattr(cli, "write_summary", lambda summary, folder: None)
    assert cli.main(["run", "--training.device", "cpu"]) == 0
    assert seen["CUDA_VISIBLE_DEVICES"] == "" and seen["DS_ACCELERATOR"] == "cpu"


def test_a_section_with_nothing_under_it_has_the_defaults(tmp_path, monkeypatch):
    (tmp_path / "recipe.yaml").write_text("training:\nlosses:\n  kl: 3\n")
    seen = {}
    monkeypatch.setattr(cli.COMMANDS["distill"], "run", lambda options: seen.update(recipe=build_recipe(options)) or {})
    monkeypatch.setattr(cli.COMMANDS["distill"], "check", lambda options: None)
    monkeypatch.setattr(cli.COMMANDS["distill"], "check_paths", lambda options: None)
    monkeypatch.setattr(cli, "write_summary", lambda summary, folder: None)
    assert cli.main(["distill", "--config", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path)]) == 0
    assert seen["recipe"].losses.kl == 3 and seen["recipe"].training == Training()


@pytest.mark.parametrize(
    "given, words",
    [
        (["--training.seed", "-1"], "training.seed = -1: must be between 0"),
        (["--data.weights", "[.nan, 1]"], "data.weights[0] = nan: must be between 0"),
        (["--training.deepspeed", "commas.json"], "training.deepspeed = commas.json: not valid JSON"),
        (["--training.deepspeed", "list.json"], "training.deepspeed = list.json: must be a JSON object"),
        (
            ["--training.deepspeed", "null.json"],
            "training.deepspeed = null.json: must be a JSON object, and so must zero_optimization",
        ),
        (
            ["--training.deepspeed", "auto.json"],
            'training.deepspeed = auto.json: zero_optimization.stage = "auto": must be 0, 1, 2 or 3',
        ),
        (["--training.betas", "[0.9, 1.0]"], "training.betas[1] = 1.0: must be between 0 and 0.99999"),
        (["--training.eps", "0"], "training.eps = 0.0: must be between 1e-15"),
        (["--data.mlm_smoothing", ".nan"], "data.mlm_smoothing = nan: must be between 0 and 5"),
        (["--config", "latin.yaml"], "--config: not UTF-8 text"),
    ],
)
def test_what_would_end_in_a_traceback_is_one_sentence(tmp_path, monkeypatch, capsys, given, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "commas.json").write_text('{"zero_optimization": {"stage": 1,}}')
    for name, text in (
        ("list", "[1]"),
        ("null", '{"zero_optimization": null}'),
        ("auto", '{"zero_optimization": {"stage": "auto"}}'),
    ):
        (tmp_path / f"{name}.json").write_text(text)
    (tmp_path / "latin.yaml").write_bytes("# größer\ntraining: {}\n".encode("latin-1"))
    assert cli.main(["distill", "--teacher", "T", "--corpus", "x", "--output", "out", *given]) == 2
    messages = capsys.readouterr().err.splitlines()
    assert f"ds-distill: {words}" in messages[-1]


def test_prepare_takes_a_recipe_with_a_teacher():
    options = (
        build_parser()
        .parse_args(["prepare", "--config", str(ROOT / "ds_configs" / "distilbert_base.yaml"), "--output", "tokens"])
        .prepare
    )
    assert options.teacher and options.corpus and not options.tokenizer and options.data.sequence_length == 512


@pytest.mark.parametrize(
    "command, words",
    [
        ("finetune", "finished work is kept, and the same command resumes from there"),
        ("trim", "the same command starts over"),
    ],
)
def test_ctrl_c_is_one_sentence(monkeypatch, capsys, tmp_path, command, words):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.COMMANDS[command], "run", interrupted)
    monkeypatch.setattr(cli.COMMANDS[command], "check", lambda options: None)
    monkeypatch.setattr(cli.COMMANDS[command], "check_paths", lambda options: None)
    assert cli.main([command, "--output", str(tmp_path)]) == 130
    assert capsys.readouterr().err.endswith(f"ds-distill: interrupted; {words}\n")
    assert cli.RESUMED < cli.COMMANDS.keys()


def said_by(capsys, *words) -> str:
    """Return the sentence with which a refused command ends."""
    assert cli.main(list(words)) == 2
    out, err = capsys.readouterr()
    last = err.strip().splitlines()[-1]
    assert last.startswith("ds-distill: ") and not out
    return last.removeprefix("ds-distill: ")


@pytest.mark.parametrize(
    "error, status",
    [
        ("[x/pair.cc:552] Connection closed by peer [10.0.0.2]:4321", 3),  # gloo's, of a rank or a network that is lost
        ("ncclInvalidUsage: Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 0", 2),
    ],
)
def test_only_what_may_succeed_again_has_the_status_of_a_loss(monkeypatch, tmp_path, error, status):
    def fail(_):
        raise RuntimeError(error)

    monkeypatch.setattr(cli.COMMANDS["run"], "run", fail)
    monkeypatch.setattr(cli, "report_failure", lambda failure: None)
    assert cli.main(["run", "--output", str(tmp_path)]) == status


def test_without_a_word_it_says_what_to_type_first(capsys):
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert not out and all(command in err for command in COMMANDS)
    for line in err.splitlines():  # what the answer suggests must work
        if line.startswith("  ds-distill "):
            build_parser().parse_args(line.split("  ")[1].split()[1:])


@pytest.mark.parametrize("words", [["--version"], ["version"], ["run", "--version"], ["finetune", "--version"]])
def test_the_version(capsys, words):
    assert cli.main(words) == 0
    assert capsys.readouterr().out == f"ds-distill {__version__}\n"


@pytest.mark.parametrize(
    "words, same", [(["help"], ["--help"]), (["help", "finetune"], ["finetune", "--help"]), (["-h"], ["--help"])]
)
def test_help_by_other_words(capsys, words, same):
    assert cli.main(words) == cli.main(same) == 0
    out = capsys.readouterr().out
    assert out[: len(out) // 2] == out[len(out) // 2 :] and out.startswith("usage: ds-distill")


@pytest.mark.parametrize(
    "words, message",
    [
        ("distil", "distil: no such command; did you mean distill?"),
        ("--training.seed 3", "--training.seed: the command must come first"),
        ("zzz", "zzz: no such command (the commands are run, "),
        ("run distill --teacher t", "distill: not expected after run"),
        ("distill help", "help: not expected here"),
        ("distill --output my run", "run: not expected here; put each value after its option"),
        ("distill --output --teacher t", "--output: needs a value after it"),
        ("report", "folders: missing"),
        ("distill -o x", "o: no such key; write --output"),
        ("distill --config none.yaml", "--config: File does not exist"),
        ("distill --training 3", "training: 3: expected a mapping"),
        (
            "finetune --first_seed 4294967295 --seeds 2 --task rte --model m --output o",
            "--first_seed 4294967295: seeds must be between",
        ),
        (
            "export --model acme/small --format onnx",
            "--model acme/small: no such folder here; for a model in the Hugging Face cache, give --output too",
        ),
    ],
)
def test_a_mistake_in_the_first_words(capsys, monkeypatch, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    assert said_by(capsys, *words.split()).startswith(message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command, written, meant",
    [
        ("distill", "lr", "--training.learning_rate"),
        ("run", "nnodes", "./launch.sh with --nnodes"),
        ("finetune", "lr", "--finetune.learning_rate"),
        ("distill", "max_tokens", "--training.max_tokens"),
        ("distill", "max-tokens", "--training.max_tokens"),
        ("distill", "training.max-tokens", "--training.max_tokens"),
        ("distill", "seed", "--training.seed"),
        ("finetune", "seed", "--first_seed; --seeds sets the number of seeds"),
        ("distill", "batch_size", "--training.global_batch_size or --training.micro_batch_size"),
        ("finetune", "batch_size", "--finetune.batch_size"),
        ("distill", "epochs", "--training.epochs"),
        ("finetune", "num_train_epochs", "--finetune.epochs"),
        ("distill", "output_dir", "--output"),
        ("distill", "fp16", "--training.precision fp16"),
        ("finetune", "bf16", "--finetune.precision bf16"),
        ("evaluate", "learning_rate", "--training.learning_rate"),
        ("pretrain", "mlm_probability", "--data.mlm_probability"),
        ("estimate", "memory-gib", "--memory_gib"),
        ("export", "model_name_or_path", "--model"),
        ("distill", "training.lr", "--training.learning_rate"),
        ("distill", "gradient_checkpointing", "--training.gradient_"),
    ],
)
def test_a_short_or_foreign_name_is_answered_with_the_key(capsys, tmp_path, command, written, meant):
    """The name is refused, so that each setting has one name.

    The answer names the key, with a value where one is meant.
    """
    message = said_by(capsys, command, f"--{written}", "1", "--output", str(tmp_path))
    assert message.startswith(f"{written}: no such key; ") and meant.removeprefix("--") in message, message
    section, _, name = written.rpartition(".")
    (tmp_path / "r.yaml").write_text(f"{section}: {{{name}: 1}}" if section else f"{name}: 1")
    in_a_file = said_by(capsys, command, "--config", str(tmp_path / "r.yaml"))
    assert in_a_file.startswith(f"{written}: no such key; "), in_a_file


def test_every_key_is_named_where_only_its_last_part_is_written():
    for command, sub in build_parser()._subcommands_action._name_parser_map.items():
        keys = known_keys(sub)
        for key in keys:
            if (leaf := key.split(".")[-1]) not in keys:
                assert f"write --{key}" in unknown_key_message(
                    f"--{leaf}", keys
                ) or f"or --{key}" in unknown_key_message(f"--{leaf}", keys), (command, key)


def test_what_others_call_it_leads_to_keys_that_there_are():
    keys = {key for sub in build_parser()._subcommands_action._name_parser_map.values() for key in known_keys(sub)}
    for name, meant in OTHER_NAMES.items():
        assert {key.split()[0] for key in meant} <= keys, name


def test_an_export_goes_beside_its_model_by_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "export").mkdir(parents=True)
    (tmp_path / "run" / "export" / "config.json").write_text("{}")
    (tmp_path / "run" / "summary.json").write_text('{"export": "run/export"}')
    assert folder_of_model("run") == Path("run/export")
    with pytest.raises(UserError, match="no such folder here; for a model in the Hugging Face cache, give --output"):
        api.export("google-bert/bert-base-uncased", formats=["onnx"])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_model_in_an_output_folder(tmp_path):
    run = tmp_path / "run"
    for place in ("export", "distilled/export", "seed=1/model"):
        (run / place).mkdir(parents=True)
        (run / place / "config.json").write_text("{}")
        assert find_model(run / place) == run / place
    assert find_model(run) == run, "no summary says which"
    for export, place in (
        ("runs/run/export", "export"),
        ("/long/ago/run/distilled/export", "distilled/export"),
        ("x/../y/seed=1/model", "seed=1/model"),
        ("elsewhere", "."),
        ("", "."),
    ):
        (run / "summary.json").write_text(json.dumps({"export": export}))
        assert find_model(run) == run / place
    for damaged in ("", "[]", "{}", '{"export": 3}', "\0"):
        (run / "summary.json").write_text(damaged)
        assert find_model(run) == run
    assert find_model(tmp_path / "nowhere") == tmp_path / "nowhere"


def parse_distill(*words):
    return build_parser().parse_args(["distill", "--teacher", "T", "--output", "o", *words]).distill


@pytest.mark.parametrize(
    "words, message",
    [
        ("--corpus a b --heldout h --corpus c", "--corpus: given twice; only the last one is used."),
        ("--corpus=a --input c", "--input: given twice, also as --corpus;"),
        ("--heldout=h --heldout i j --corpus c", "--heldout: given twice;"),
    ],
)
def test_a_list_that_is_given_twice_is_reported(capsys, words, message):
    assert parse_distill(*words.split()).corpus == ["c"]
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_a_list_on_the_command_line_is_instead_of_the_files(tmp_path):
    (tmp_path / "r.yaml").write_text("corpus: [x, y]\n")
    assert parse_distill("--config", str(tmp_path / "r.yaml"), "--corpus", "a", "b").corpus == ["a", "b"]
    assert parse_distill("--output", "p", "--corpus", "a").output == "p", "of a single value the last counts"


MATCH = {"match": [{"loss": "relation", "of": ["query", "value"], "layers": [[0, 1]], "weight": 2}]}
SETTINGS = {
    "distill": {
        "teacher": ["t"],
        "training": {"betas": [0.9, 0.95]},
        "losses": MATCH,
        "stages": [{"share": 1, "losses": MATCH}],
    },
    "study": {
        "tasks": ["rte"],
        "students": {"one": {"losses": MATCH}, "two": {"losses.match": MATCH["match"], "stages": [{"share": 1}]}},
        "variants": {"three": {"student": "one", "finetune": {"epochs": 2, "rte": MATCH}}},
    },
}


@pytest.mark.parametrize("command", SETTINGS)
def test_the_configuration_that_is_printed_is_the_one_that_was_read(tmp_path, capsys, command):
    given, printed = tmp_path / "given.yaml", tmp_path / "printed.yaml"
    given.write_text(yaml.safe_dump(SETTINGS[command] | {"output": "out"}))
    assert cli.main([command, "--config", str(given), "--print_config"]) == 0
    printed.write_text(capsys.readouterr().out)
    of_given, of_printed = (build_parser().parse_args([command, "--config", str(file)]) for file in (given, printed))
    for options in (of_given, of_printed):
        del options[command].config
    assert of_given == of_printed


@pytest.mark.parametrize(
    "text, words",
    [
        ("training.seed: 1\ntraining: {seed: 2}\n", "training.seed: is given twice"),
        ("corpus: a\ninput: b\n", "input: is given twice, also as corpus"),
    ],
)
def test_two_spellings_of_one_key_are_refused(tmp_path, capsys, text, words):
    (tmp_path / "r.yaml").write_text(text)
    assert words in said_by(capsys, "distill", "--config", str(tmp_path / "r.yaml"), "--output", "o")


def test_a_section_may_be_a_file_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "t.yaml").write_text("seed: 5\n")
    (tmp_path / "r.yaml").write_text("training: ~/t.yaml\n")
    assert (
        parse_distill("--config", str(tmp_path / "r.yaml")).training.seed
        == parse_distill("--training", "~/t.yaml").training.seed
        == 5
    )


def test_help_on_a_command_that_there_is_not_names_the_nearest(capsys):
    assert "distil: no such command; did you mean distill?" in said_by(capsys, "help", "distil")


@pytest.mark.parametrize(
    "option, value",
    [
        ("vocabulary", "1e9"),
        ("vocabulary", "3"),
        ("corpus_megabytes", "nan"),
        ("corpus_megabytes", "-1"),
        ("teacher_tokens", "0"),
    ],
)
def test_the_demos_numbers_have_limits(capsys, tmp_path, option, value):
    assert f"--{option} " in said_by(
        capsys, "run", "--from-scratch", f"--{option}", value, "--output", str(tmp_path)
    ), "must be between"


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device", "f.bin"),
        RuntimeError("Error while serializing: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_sentence_whatever_says_it(monkeypatch, capsys, tmp_path, error):
    def full(options):
        raise error

    monkeypatch.setattr(cli.COMMANDS["report"], "run", full)
    message = said_by(capsys, "report", str(tmp_path), "--output", str(tmp_path / "o"))
    assert message.startswith(f"{tmp_path / 'o'}: ") and "the disk is full; free some space" in message


def test_what_cannot_be_written_any_more_ends_nothing(tmp_path):
    """Standard output or error is a pipe without a reader, or a full disk."""
    program = (
        "import sys; from ds_distill.cli.terminal import tolerate_broken_streams; tolerate_broken_streams(); "
        "[print('x' * 9999, file=stream, flush=True) for stream in (sys.stdout, sys.stderr) for _ in range(9)]; "
        "open(sys.argv[1], 'w').close()"
    )
    for number, shell in enumerate(("{} | true", "{} 2>&1 | true", "{} >/dev/full", "{} 2>/dev/full")):
        done = tmp_path / f"done{number}"
        command = shell.format(f'"{sys.executable}" -c "{program}" "{done}"')
        assert patience.run(["bash", "-o", "pipefail", "-c", command], cwd=ROOT).returncode == 0 and done.exists(), (
            shell
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "m", "--step", "5", "--format", "onnx"], "--step 5: belongs to a run, which --model is not"),
        (["--model", "m", "--format", "hf", "hf"], "--model m is already a Hugging Face folder"),
        (["--run", "r", "--text", "a.txt"], "--text a.txt: is for formats that are compared with PyTorch"),
        (["--run", "r", "--step", "5"], None),
        (["--run", "r", "--text", "a.txt", "--format", "hf", "onnx"], None),
    ],
)
def test_options_of_export_that_would_change_nothing_are_refused(words, message):
    options = build_parser().parse_args(["export", *words, "--output", "o"])["export"]
    if message is None:
        COMMANDS["export"].check(options)
    else:
        with pytest.raises(UserError, match=message):
            COMMANDS["export"].check(options)


@pytest.mark.parametrize(
    ("words", "typed"),
    [
        (["--model", "m", "--input", "a", "b"], {"model", "corpus"}),
        (["--training.seed=3", "--losses.match+", "{loss: relation}"], {"training.seed", "losses.match"}),
        (["--student.from", "x", "--losses", "{kl: 1.0}", "--uniform"], {"student.from", "losses.kl", "uniform"}),
        (["--training={seed: 3, device: cpu}", "--data", "{}"], {"training.seed", "training.device", "data"}),
        (["--config", "few_tokens"], {"config"}),
    ],
)
def test_the_options_that_are_typed_are_known(words, typed):
    assert set(build_parser().parse_args(["prune", *words])["prune"].typed) == typed
