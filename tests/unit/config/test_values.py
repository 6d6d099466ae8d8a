"""Options and keys take numbers, words, paths and lists as people write them, on the command line and in YAML.

Otherwise, one sentence reports what is wrong.
"""

import json
import os
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_distill.cli.argument_parser import Value
from ds_distill.cli.arguments import check_recipe
from ds_distill.cli.commands import COMMANDS
from ds_distill.cli.parser import build_parser
from ds_distill.config.values import Name, OutputPath, UserPath, convert, parse_float, parse_int
from ds_distill.config.yaml_text import load_yaml
from ds_distill.recipe import Match, Recipe
from ds_distill.utils.errors import UserError

PARSER = build_parser()
SUBS = PARSER._subcommands_action._name_parser_map
TEXT_THAT_MAY_BE_ANYTHING = {
    "launch": "a command",
    "data.column": "a name",
    "student.init_layers": "a name or a list of numbers",
}


def leaves(hint) -> list:
    """Return the types of which a hint consists."""
    if get_origin(hint) is Annotated or get_origin(hint) is Literal or not get_args(hint):
        return [hint]
    return [leaf for part in get_args(hint) for leaf in leaves(part)]


def get_values(command: str) -> list[Value]:
    return [action for action in SUBS[command]._actions if isinstance(action, Value)]


def checked(command: str, action: Value, value: Any) -> Any:
    """Return what jsonargparse gets for `value` of an option, from the command line or from a file."""
    return SUBS[command]._check_value_key(action, value, action.dest, None)


def keys_with(hint: Any, command: str) -> dict[str, Value]:
    """Return the options of a command that take a single value of the type, alone or among others."""
    return {
        action.dest: action
        for action in get_values(command)
        if hint in leaves(action._typehint) and not is_list(action)
    }


def is_list(action: Value) -> bool:
    return action.nargs in ("*", "+") or bool(
        {list, tuple, dict} & {get_origin(part) for part in (action._typehint, *get_args(action._typehint))}
    )


def parse_file(tmp_path, command: str, keys: dict[str, str]) -> dict[str, Any]:
    """Return the values of the keys of a file; `keys` are dotted, each with its YAML."""
    if not keys:
        return {}
    lines: dict[str, list[str]] = {}
    for key, text in keys.items():
        section, _, name = key.rpartition(".")
        lines.setdefault(section, []).append(f"{'  ' if section else ''}{name}: {text}")
    rooms = "".join(
        "\n".join([f"{section}:" if section else "", *entries]) + "\n" for section, entries in lines.items()
    )
    (tmp_path / "keys.yaml").write_text(rooms, encoding="utf-8")
    words = [command, "--config", str(tmp_path / "keys.yaml"), *(["folder"] if command == "report" else [])]
    options = PARSER.parse_args(words)[command]
    return {key: options[key] for key in keys}


def parse_words(command: str, keys: dict[str, str]) -> dict[str, Any]:
    words = [word for key, text in keys.items() for word in (f"--{key}={text}",)]
    options = PARSER.parse_args([command, *words, *(["folder"] if command == "report" else [])])[command]
    return {key: options[key] for key in keys}


def refused(command: str, action: Value, value: Any) -> str:
    with pytest.raises(UserError) as error:
        checked(command, action, value)
    message = str(error.value)
    assert message.lstrip("-").startswith(action.dest) and "\n" not in message and len(message) < 400, message
    return message


TENS = ("10", "1e1", "1E1", "10.0", "1_0", "+10", "0.01k", ".01K", "0.00001M", "0xA", "010", " 10 ")


def test_ten_in_every_key_of_a_whole_number(tmp_path):
    with pytest.raises(UserError):
        convert("1e-8G", int, "key")  # an exponent or a suffix, not both
    for command in COMMANDS:
        actions = keys_with(int, command)
        for action in actions.values():
            assert [checked(command, action, written) for written in TENS] == [10] * len(TENS), (command, action.dest)
        # a command takes a tenth of a second to parse, so each key has one of the spellings
        keys = {key: TENS[number % len(TENS)] for number, key in enumerate(actions)}
        quoted = {key: f"'{written}'" for key, written in keys.items()}
        for values in (
            parse_words(command, keys),
            parse_file(tmp_path, command, keys),
            parse_file(tmp_path, command, quoted),
        ):
            assert values == dict.fromkeys(keys, 10), command


@pytest.mark.parametrize(
    "written",
    [
        "1.5",
        "1e-1",
        "0.0001k",
        "many",
        "1 000",
        "1,000",
        "",
        " ",
        "yes",
        "true",
        "1:30",
        "2024-01-01",
        "inf",
        ".nan",
        "1e99",
        "9223372036854775808",
        "1e999999999",
        "--",
        "_",
        "k",
        "1MB",
        "1kk",
        "1e",
        "0x",
        [],
        {},
        ["1", "2"],
        {"a": "1"},
    ],
)
def test_what_is_no_whole_number_is_refused_by_its_key(written):
    for command in COMMANDS:
        for action in keys_with(int, command).values():
            refused(command, action, written)


@given(st.integers(-(2**63) + 1, 2**63 - 1), st.data())
def test_a_whole_number_in_every_spelling_is_itself(number, data):
    digits = f"{number:,}".replace(",", "_")
    exponent = data.draw(st.integers(0, 25))
    shifted = f"{number}e0" if not exponent else f"{'-' if number < 0 else ''}{str(abs(number)).zfill(exponent + 1)}"
    if exponent:
        shifted = f"{shifted[:-exponent]}.{shifted[-exponent:]}e{exponent}"
    for text in (str(number), digits, f"{number}.0", shifted, hex(number)):
        assert parse_int(text) == number, text
        assert parse_int(load_yaml(f"k: {text}", "")["k"]) == number, text


@given(
    st.integers(-(10**12), 10**12),
    st.sampled_from([("k", 3), ("K", 3), ("M", 6), ("m", 6), ("G", 9), ("B", 9), ("b", 9), ("T", 12)]),
)
def test_suffixes(number, suffix):
    letter, zeros = suffix
    if abs(number) * 10**zeros < 2**63:
        assert parse_int(f"{number}{letter}") == number * 10**zeros
    assert parse_float(f"{number}{letter}") == float(number * 10**zeros)


@given(st.floats(allow_nan=False))
def test_a_number_as_python_and_yaml_write_it_is_itself(number):
    for text in (repr(number), yaml.safe_dump(number).split("\n")[0], f"{number:.17g}", f"{number:.17E}"):
        assert parse_float(text) == number, text


@settings(max_examples=150)
@given(st.text(max_size=12))
def test_any_text_is_a_number_or_answered(text):
    for hint in (
        int,
        float,
        bool,
        int | Literal["auto"],
        tuple[float, float],
        list[float] | None,
        str | list[int],
        dict[str, int],
        Literal["a", "b"],
    ):
        try:
            convert(text, hint, "some.key")
        except UserError as error:
            assert str(error).startswith("some.key") and "\n" not in str(error)


@pytest.mark.parametrize(
    "written, meant",
    [("yes", True), ("no", False), ("on", True), ("off", False), ("true", True), ("FALSE", False), ("Off", False)],
)
def test_yes_and_no_in_every_key_that_is_true_or_false(tmp_path, written, meant):
    for command in COMMANDS:
        if keys := dict.fromkeys(keys_with(bool, command), written):
            assert parse_words(command, keys) == dict.fromkeys(keys, meant), command
        flags = [action.dest for action in SUBS[command]._actions if type(action).__name__ == "Flag"]
        keys |= dict.fromkeys(flags, written)
        assert parse_file(tmp_path, command, keys) == dict.fromkeys(keys, meant), command


def test_each_choice_is_taken_as_the_word_that_it_is(tmp_path):
    for command in COMMANDS:
        choices = {
            action.dest: leaf
            for action in get_values(command)
            for leaf in leaves(action._typehint)
            if get_origin(leaf) is Literal
        }
        for number in range(max((len(get_args(leaf)) for leaf in choices.values()), default=0)):
            keys = {key: get_args(leaf)[number % len(get_args(leaf))] for key, leaf in choices.items()}
            meant = {key: [word] if key.endswith("report_to") else word for key, word in keys.items()}  # a list of one
            assert parse_file(tmp_path, command, keys) == meant == parse_words(command, keys), command
        for action in get_values(command):
            if action.dest in choices:
                assert all(word in refused(command, action, "maybe") for word in get_args(choices[action.dest]))


WORDS = (
    "off",
    "no",
    "True",
    "2024",
    "1e3",
    "2024-01-01",
    "010",
    "0x10",
    "1:30",
    "1_000",
    ".inf",
    "=",
    "<<",
    "läuft",
    "a b",
)


def test_a_word_of_yaml_is_the_word_that_was_written(tmp_path):
    for command in COMMANDS:
        single = [
            key
            for hint in (str, Name, UserPath, OutputPath)
            for key in keys_with(hint, command)
            if key != "student.init_layers"
        ]
        several = [
            action.dest
            for action in get_values(command)
            if is_list(action) and {Name, UserPath} & set(leaves(action._typehint))
        ]
        several = [key for key in several if key != "folders"]
        for start in range(0, len(WORDS), 3) if command == "distill" else [0]:
            one = {key: WORDS[(start + number) % len(WORDS)] for number, key in enumerate(single)}
            more = {key: WORDS[(start + number) % len(WORDS)] for number, key in enumerate(several)}
            assert parse_words(command, one) == one, command
            # a single word is a list of one
            assert parse_file(tmp_path, command, one | more) == one | {k: [word] for k, word in more.items()}, command
            quoted = {key: f'"{word}"' for key, word in one.items()} | {k: f"['x', {word}]" for k, word in more.items()}
            meant = one | {key: ["x", word] for key, word in more.items()}
            assert parse_file(tmp_path, command, quoted) == meant, command


@pytest.mark.parametrize("word", ("off", "no", "2024", "1e3", "2024-01-01", "null", "~", "true", "1:30", "=", "läuft"))
def test_names_of_a_mapping_are_the_words_that_were_written(tmp_path, word):
    (tmp_path / "plan.yaml").write_text(
        f"students: {{{word}: {{losses.kl: 0, training.compile: off, data.column: 1e3}}}}",
        encoding="utf-8",
    )
    study = PARSER.parse_args(["study", "--config", str(tmp_path / "plan.yaml")]).study
    assert study.students == {word: {"losses.kl": 0.0, "training.compile": "off", "data.column": "1e3"}}


def test_every_option_of_text_is_a_path_or_a_name():
    """No new option may be forgotten: a path has ~ expanded, and neither a path nor a name may be empty."""
    for command in COMMANDS:
        plain = {
            action.dest
            for action in get_values(command)
            if str in leaves(action._typehint) and get_origin(action._typehint) is not dict
        }
        assert plain <= set(TEXT_THAT_MAY_BE_ANYTHING), f"{command}: say with UserPath or Name what these are"


def test_home_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "my home"))
    home = str(tmp_path / "my home")
    count = 0
    for command in COMMANDS:
        single = keys_with(UserPath, command) | keys_with(OutputPath, command)
        several = [action for action in get_values(command) if is_list(action) and UserPath in leaves(action._typehint)]
        count += len(single) + len(several)
        others = [("~root/x", f"{os.path.expanduser('~root')}/x"), ("hf:~/x", "hf:~/x"), ("a~/b", "a~/b")]
        for texts in ([("~/x", f"{home}/x")], others):  # each key has one of the others
            keys, expected = (
                {key: texts[number % len(texts)][part] for number, key in enumerate(single)} for part in (0, 1)
            )
            assert parse_words(command, keys) == parse_file(tmp_path, command, keys) == expected, command
        assert parse_words(command, dict.fromkeys(single, "~")) == dict.fromkeys(single, home), (
            "in YAML ~ alone is nothing"
        )
        for action in single.values():
            assert "~nobody-of-this-name" in refused(command, action, "~nobody-of-this-name/x")
        for action in several:
            words = [f"--{action.dest}"] * bool(action.option_strings) + ["~/a.jsonl#column", "hf:NAME", "~/b"]
            meant = [f"{home}/a.jsonl#column", "hf:NAME", f"{home}/b"]
            required = ["folder"] if command == "report" and action.option_strings else []
            assert PARSER.parse_args([command, *required, *words])[command][action.dest] == meant, (
                command,
                action.dest,
            )
            if action.option_strings:
                assert parse_file(tmp_path, command, {action.dest: "['~/a.jsonl#column', 'hf:NAME', ~/b]"}) == {
                    action.dest: meant
                }
    assert count > 40
    (tmp_path / "my home").mkdir()
    (tmp_path / "my home" / "r.yaml").write_text("training: {seed: 3}\n")
    assert PARSER.parse_args(["distill", "--config=~/r.yaml"]).distill.training.seed == 3


def test_an_empty_value_is_refused_in_every_option():
    for command in COMMANDS:
        for action in get_values(command):
            if action.default == "":
                continue
            for empty in ("", "  ", *([["a", ""], ["a", None]] if is_list(action) else [])):
                message = refused(command, action, empty)
                assert UserPath not in leaves(action._typehint) or "is empty" in message or "nothing" in message


def test_a_key_with_nothing_after_it_has_its_default(tmp_path):
    for command in COMMANDS:
        keys = {action.dest: "" for action in get_values(command) if action.dest != "folders"}
        defaults = PARSER.parse_args([command, *(["folder"] if command == "report" else [])])[command]
        for key, value in parse_file(tmp_path, command, keys).items():
            optional = types.NoneType in leaves(
                next(action._typehint for action in get_values(command) if action.dest == key)
            )
            assert value is None if optional else value == defaults[key], (command, key)


@pytest.mark.parametrize(
    "text, message",
    [
        ("training: 5", "training: 5: expected a mapping"),
        ("training: [1]", "training: ['1']: expected a mapping"),
        ("training: {seed: 1, seed: 2}", "the key seed is given twice"),
        ("corpus: {a: b}", "--corpus: expected a list, not a mapping"),
        ("corpus: [[a]]", "--corpus: ['a']: expected a single text value"),
        ("training: {betas: [0.9]}", "training.betas: ['0.9']: expected 2 numbers"),
        ("training: {betas: [0.9, x]}", "training.betas[1]: x is not a number"),
        ("training: {seed: [1]}", "training.seed: ['1']: expected a single value"),
        ("student: {init_layers: [0, x]}", "student.init_layers[1]: x is not a whole number"),
        ("training: {micro_batch_size: au}", "or write auto"),
        ("training: {precision: FP16}", "did you mean fp16?"),
        ("- a", "contains a list; it must contain keys"),
        ("", "contains nothing"),
        ("# a word", "contains nothing"),
        ("just words", "contains text"),
        ("training: {seed: 1", "line 2, column 1"),
        ("a:\n\tb: 1", "line 2, column 1"),
        ("? [a]\n: b", "a key must be a name"),
        ("training: none.yaml", "training: none.yaml: expected a mapping"),
        ("training: {lr: 1}", "training.lr: no such key; write training.learning_rate"),
    ],
)
def test_a_file_that_cannot_be_meant_is_one_sentence(tmp_path, text, message):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        PARSER.parse_args(["distill", "--config", str(tmp_path / "r.yaml")])
    assert message in str(error.value) and "\n" not in str(error.value), error.value


@pytest.mark.parametrize("place", ["students: {a: {q: ", "corpus: ", "teacher: ", "anything: "])
def test_aliases_that_stand_for_more_than_there_is_room_for(tmp_path, place):
    """Ten lines stand for nine to the power of thirteen."""
    lists = "".join(f", &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 14))
    (tmp_path / "r.yaml").write_text(f"{place}[&a0 [x]{lists}]{'}}' if '{' in place else ''}")
    with pytest.raises(UserError, match="nested aliases"):
        PARSER.parse_args(["study", "--config", str(tmp_path / "r.yaml")])


def test_sections_and_mappings_in_all_their_forms(tmp_path):
    (tmp_path / "part.yaml").write_text("seed: 1k\ncompile: off\n")
    (tmp_path / "r.yaml").write_text(
        f"training: {tmp_path / 'part.yaml'}\nstudents: {{}}\n".replace("students: {}\n", "")
    )
    for words in (
        ["--config", str(tmp_path / "r.yaml")],
        ["--training", str(tmp_path / "part.yaml")],
        ["--training", "{seed: 1k, compile: off}"],
        ["--config", "training: {seed: 1_000, compile: off}"],
    ):
        training = PARSER.parse_args(["distill", *words]).distill.training
        assert (training.seed, training.compile, training.epochs) == (1000, "off", 3), words
    model = PARSER.parse_args(["pretrain", "--model.hidden_size", "1k", "--model.num_hidden_layers=2"]).pretrain.model
    assert model["hidden_size"] == 1000 and model["num_hidden_layers"] == 2 and model["num_attention_heads"] == 4
    study = PARSER.parse_args(
        [
            "study",
            "--finetune.rte.epochs",
            "3",
            "--finetune.batch_size",
            "1e1",
            "--finetune",
            "{rte: {seeds: 2}}",
            "--finetune.rte.max_length",
            "64",
            "--students",
            "{a: , off: {losses.kl: 0}}",
            "--students.a.losses.kl",
            "1",
            "--students.a.losses.mlm",
            "2",
        ]
    ).study
    assert study.finetune == {"rte": {"seeds": 2, "max_length": 64}}
    assert study.students == {"a": {"losses.kl": 1.0, "losses.mlm": 2.0}, "off": {"losses.kl": 0.0}}
    for words in (["rte", "sst2"], ["[rte, sst2]"], ["[rte]", "--tasks+", "sst2"]):
        assert PARSER.parse_args(["study", "--tasks", *words]).study.tasks == ["rte", "sst2"]
    assert PARSER.parse_args(["distill", "--data.weights", "2,0.5"]).distill.data.weights == [2.0, 0.5]
    assert PARSER.parse_args(
        ["distill", "--data.weights", "2", "--student.init_layers", "0"]
    ).distill.student.init_layers == [0]
    none = PARSER.parse_args(
        [
            "distill",
            "--config",
            "{teacher: a, student: {num_layers: 3}}",
            "--teacher",
            "null",
            "--student.num_layers",
            "null",
        ]
    ).distill
    assert none.teacher == [] and none.student.num_layers is None


def test_unions_are_known():
    """leaves() above sees into both kinds of union."""
    assert leaves(int | None) == leaves(Union[int, None]) == [int, types.NoneType]  # noqa: UP007


def test_what_is_written_has_a_name_in_utf_8():
    """Files that are read need no such name."""
    odd = os.fsdecode(b"l\xe4uft")
    for command in COMMANDS:
        [output] = keys_with(OutputPath, command).values()
        assert "this name is not valid UTF-8" in refused(command, output, odd)
    assert PARSER.parse_args(["distill", "--corpus", odd]).distill.corpus == [odd]


MATCH = "{loss: cosine, layers: [[0, 1], [1, 3]], weight: 1e1}"


@pytest.mark.parametrize("in_a_file", [False, True], ids=["option", "file"])
@pytest.mark.parametrize(
    ("written", "read"),
    [
        (f"[{MATCH}]", [Match("cosine", layers=[(0, 1), (1, 3)], weight=10.0)]),
        (f"[{MATCH}, {{loss: cosine}}]", [Match("cosine", layers=[(0, 1), (1, 3)], weight=10.0), Match("cosine")]),
        (MATCH, [Match("cosine", layers=[(0, 1), (1, 3)], weight=10.0)]),
        ("[{loss: relation}]", [Match("relation", of=["query", "key", "value"])]),
        (
            "[{loss: relation, of: [value, query_key], heads: 4}]",
            [Match("relation", of=["value", "query_key"], heads=4)],
        ),
        ("[{loss: mse, of: embeddings, normalize: on}]", [Match("mse", of="embeddings", normalize=True)]),
        ("[{loss: attention, layers: uniform}]", [Match("attention", of="query_key", layers="uniform")]),
        ("[]", []),
    ],
)
def test_a_list_of_loss_terms(written, read, in_a_file, tmp_path):
    (tmp_path / "r.yaml").write_text(f"losses: {{match: {written}}}\n")
    words = ["--config", str(tmp_path / "r.yaml")] if in_a_file else ["--losses.match", written]
    recipe = check_recipe(PARSER.parse_args(["distill", *words]).distill)
    assert recipe.losses.match == read
    recipe.check()
    assert json.loads(json.dumps(recipe.identity()))["losses.match"] == [
        {
            "loss": m.loss,
            "of": m.of,
            "layers": [list(pair) for pair in m.layers] if isinstance(m.layers, list) else m.layers,
        }
        | {"weight": m.weight}
        | ({} if m.heads is None else {"heads": m.heads})
        | ({"normalize": True} if m.normalize else {})
        for m in read
    ]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("[{loss: cosine, weigth: 3}]", "losses.match.weigth: no such key; did you mean weight?"),
        ("[{layers: last}]", "losses.match.loss is missing: .* needs loss: VALUE"),
        ("[{loss: cosine, layers: [0, 1]}]", "losses.match.layers.0.: .* expected 2 numbers, not 1"),
        (
            "[{loss: cosine, layers: lst}]",
            "lst is not allowed; choose one of last, mapped, mapped_last, span_ends, uniform; did you mean last?",
        ),
        ("[{loss: cosine}, {loss: cosine, weight: -1}]", r"losses.match.1..weight = -1.0: must be between 0"),
        ("[{loss: relation, heads: 0}]", "losses.match.0..heads = 0: must be between 1"),
        ("[{loss: relation, of: querys}]", "losses.match.of: querys is not allowed; .*did you mean query"),
        ("[{loss: relation, of: [query, keys]}]", "losses.match.of.1.: keys is not allowed; .*did you mean key"),
        ("cosine", "losses.match: cosine: expected a mapping"),
    ],
)
def test_a_wrong_loss_term_is_named(written, message):
    with pytest.raises(UserError, match=message):
        check_recipe(PARSER.parse_args(["distill", "--losses.match", written]).distill)


@pytest.mark.parametrize(
    ("match", "message"),
    [
        (
            [Match("mse", layers="first")],
            "layers: first is not allowed; choose one of last, mapped, mapped_last, span_ends, uniform; or give a list",
        ),
        ([Match("mse", of="attention")], "losses.match.of: attention is not allowed"),
        ([Match("mse", layers=[[0, 1, 2]])], "losses.match.layers: .* expected 2 numbers"),
        ([Match("mse", layers=None)], "losses.match.layers"),
        ([Match("mse", weight="much")], "losses.match.weight: much is not a number"),
        ("mse", "losses.match: mse"),
        (None, "losses.match: nothing"),
    ],
)
def test_a_wrong_loss_term_from_python_is_named(match, message):
    recipe = Recipe()
    recipe.losses.match = match
    with pytest.raises(UserError, match=message):
        recipe.check()


def test_loss_terms_from_python_in_other_forms():
    for match in ([{"loss": "mse"}], {"loss": "mse"}, Match("mse"), [Match("mse", weight="1")]):
        recipe = Recipe()
        recipe.losses.match = match
        recipe.check()
        assert recipe.losses.match == [Match("mse")]
