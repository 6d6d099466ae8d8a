"""Test SQuAD: spans and answers on contexts longer than a model reads."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_distill.data.tokenizer import load_tokenizer, train_wordpiece
from ds_distill.exporters.parity import SAMPLE
from ds_distill.tasks.catalog import get_task
from ds_distill.tasks.metrics import normalize_answer
from ds_distill.tasks.squad import Question, load_questions
from ds_distill.tasks.squad_answers import Answer, postprocess_spans, squad_scores
from ds_distill.tasks.squad_spans import find_unplaced, make_spans
from ds_distill.utils.errors import UserError
from tests.tiny import byte_level_tokenizer, sentencepiece_tokenizer

CONTEXT = " ".join(SAMPLE.read_text().split()[:150])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_wordpiece(SAMPLE.read_text().splitlines(), 400, tmp_path_factory.mktemp("tokenizer"))


def question(text: str | None, id: str = "q", ask: str = "what is it?") -> Question:
    return Question(id, ask, CONTEXT, ((text, CONTEXT.index(text)),) if text else ())


def test_every_token_of_the_context_is_in_a_span_and_answers_are_found(tokenizer):
    questions = [question("a small village near the coast"), question(None)]
    spans = make_spans(questions, tokenizer, length=64, stride=16)
    assert len(spans.question) > 4 and max(map(len, spans.inputs["input_ids"])) <= 64
    first = [spans.offsets[row] for row, number in enumerate(spans.question) if number == 0]
    covered = {character for offsets in first for pair in offsets if pair for character in range(*pair)}
    assert all(i in covered for i, character in enumerate(CONTEXT) if not character.isspace())
    text = questions[0].references[0]
    count = 0
    for row, number in enumerate(spans.question):
        start, end = spans.starts[row], spans.ends[row]
        if (start, end) == (0, 0):
            continue
        assert number == 0
        assert CONTEXT[spans.offsets[row][start][0] : spans.offsets[row][end][1]] == text
        count += 1
    assert count >= 1


def perfect(spans, noise=0.0):
    g = np.random.default_rng(0)
    starts, ends = [], []
    for row, ids in enumerate(spans.inputs["input_ids"]):
        for out, place in ((starts, spans.starts[row]), (ends, spans.ends[row])):
            out.append(g.normal(size=len(ids)) * noise)
            out[-1][place] += 10
    return starts, ends


def test_a_perfect_model_scores_everything(tokenizer):
    questions = [
        question(CONTEXT[start : start + 25].strip().split(" ", 1)[1].rsplit(" ", 1)[0], str(start))
        for start in (0, 100, 300, 500)
    ]
    questions = [
        Question(q.id, q.question, q.context, ((q.references[0], CONTEXT.index(q.references[0])),)) for q in questions
    ]
    spans = make_spans(questions, tokenizer, length=64, stride=16)
    answers = postprocess_spans(questions, spans, *perfect(spans, 0.1))
    assert [answer.text for answer in answers] == [q.references[0] for q in questions]
    assert squad_scores(questions, answers) == {"f1": 1.0, "exact_match": 1.0}
    assert all(
        len(answer.best) <= 20 and answer.best == sorted(answer.best, key=lambda pair: -pair[0]) for answer in answers
    )


def test_nothing_is_answered_where_nothing_is_best(tokenizer):
    questions = [question("near", "a"), question(None, "b")]
    spans = make_spans(questions, tokenizer, length=64, stride=16)
    answers = postprocess_spans(questions, spans, *perfect(spans, 0.1))
    assert answers[0].null_odds < answers[1].null_odds
    scores = squad_scores(questions, answers)
    assert scores["f1"] == scores["exact_match"] == 1.0 and scores["has_answer_f1"] == scores["no_answer_f1"] == 1.0


def test_an_answer_never_ends_before_it_starts_nor_outside_the_context(tokenizer):
    questions = [question("the", "a")]
    spans = make_spans(questions, tokenizer, length=64, stride=16)
    starts, ends = (
        [np.zeros(len(ids)) for ids in spans.inputs["input_ids"]],
        [np.zeros(len(ids)) for ids in spans.inputs["input_ids"]],
    )
    for start, end in zip(starts, ends, strict=True):
        start[-2], end[1] = 50, 50  # the last real token starts, a token of the question ends
    [answer] = postprocess_spans(questions, spans, starts, ends)
    assert answer.best and all(text in CONTEXT and text for _, text in answer.best)


def test_long_questions_are_cut_and_no_room_is_said(tokenizer):
    questions = [question("near", ask="what is " * 90)]
    spans = make_spans(questions, tokenizer, length=128, stride=16)
    assert all(sum(pair is None for pair in offsets) <= 64 + 3 for offsets in spans.offsets) and any(
        start for start in spans.starts
    )
    assert {len(ids) for ids in spans.inputs["token_type_ids"]} == {len(ids) for ids in spans.inputs["input_ids"]}
    with pytest.raises(UserError, match="20 tokens leave no room"):
        make_spans(questions, tokenizer, length=20)


def test_the_official_file_and_its_mistakes(tmp_path):
    def write(answers, task="squad_v2", **changes):
        entry = {"id": "x1", "question": "Who?", "answers": answers} | changes
        article = {"title": "T", "paragraphs": [{"context": "Ann ran.", "qas": [entry]}]}
        (tmp_path / "train.json").write_text(json.dumps({"version": "2", "data": [article]}))
        return load_questions(get_task(task), "train", str(tmp_path))

    assert write([{"text": "Ann", "answer_start": 0}])[0].references == ["Ann"]
    assert write([], is_impossible=True)[0].answers == ()
    with pytest.raises(
        UserError, match="'T', paragraph 1, question 'x1'.*'Ann' is not at character 4 .* which has 'ran' there"
    ):
        write([{"text": "Ann", "answer_start": 4}])
    for answers, changes, words in (
        ([], {"task": "squad"}, "use --task squad_v2"),
        ([{"text": "Ann"}], {}, "'answer_start' is missing"),
        ([{"text": "Ann", "answer_start": "0"}], {}, "needs its text and the number of its first character"),
        ([{"text": "", "answer_start": 0}], {}, "'' at character 0 is not valid; .* empty lists of"),
        ([{"text": "ran", "answer_start": -4}], {}, "'ran' at character -4"),
        ("Ann", {}, "answers is 'Ann'; a question needs"),
        ([], {"question": None}, "the question or the context is not a string"),
    ):
        with pytest.raises(UserError, match=words):
            write(answers, **changes)
    for text in (
        "[]",
        "{",
        json.dumps({"data": [{"title": "T"}]}),
        json.dumps({"data": [{"paragraphs": [{"qas": []}]}]}),
    ):
        (tmp_path / "train.json").write_text(text)
        with pytest.raises(UserError, match="train.json: (not in SQuAD's JSON format|the file contains no questions)"):
            load_questions(get_task("squad"), "train", str(tmp_path))


def test_the_hubs_columns_are_read_too(tmp_path):
    row = {
        "id": "7",
        "title": "T",
        "context": "Ann ran.",
        "question": "Who?",
        "answers": {"text": ["Ann"], "answer_start": [0]},
    }
    (tmp_path / "validation.jsonl").write_text(
        json.dumps(row) + "\n" + json.dumps(row | {"answers": {"text": ["ran"], "answer_start": [1]}})
    )
    with pytest.raises(UserError, match="validation.jsonl, line 2, question '7'"):
        load_questions(get_task("squad"), "validation", str(tmp_path))
    (tmp_path / "validation.csv").write_text("id,question,context,answers")
    (tmp_path / "validation.jsonl").unlink()
    with pytest.raises(UserError, match="validation.csv: answers are lists, which .csv files cannot hold"):
        load_questions(get_task("squad"), "validation", str(tmp_path))
    (tmp_path / "validation.csv").unlink()
    (tmp_path / "validation.jsonl").write_text(json.dumps(row))
    assert load_questions(get_task("squad"), "validation", str(tmp_path)) == [
        Question("7", "Who?", "Ann ran.", (("Ann", 0),))
    ]


@pytest.fixture(scope="module")
def readers(tokenizer, tmp_path_factory):
    """One tokenizer of each kind."""
    folder, tokenizers = tmp_path_factory.mktemp("readers"), {"wordpiece": tokenizer}
    for kind, make in (("byte-level", byte_level_tokenizer), ("sentencepiece", sentencepiece_tokenizer)):
        make(folder / kind)
        tokenizers[kind] = load_tokenizer(folder / kind)
    return tokenizers


PIECES = [
    "the",
    "sign",
    "shows",
    "12",
    "€5",
    "龍",
    "龍門",
    "é",
    "e\u0301",
    "café",
    "naïve",
    "🎉",
    "👩\u200d👩\u200d👧",
    "👍🏽",
    "🇫🇷",
    "नमस्ते",
    "สวัสดี",
    "مرحبا",
    "don't",
    "U.S.",
    "(x)",
    "-",
    "…",
    "small",
    "village",
]
GAPS = ["", " ", "  ", "\n"]


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["wordpiece", "byte-level", "sentencepiece"]),
    st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from(GAPS)), min_size=3, max_size=30),
    st.data(),
)
def test_an_answer_is_where_its_characters_are(readers, kind, parts, data):
    """An answer may begin or end in difficult places.

    These are several tokens of one character, a part of a token, a mark on the character before, or
    white space.
    """
    context = "".join(word + gap for word, gap in parts)
    start = data.draw(st.integers(0, len(context) - 1))
    text = context[start : data.draw(st.integers(start + 1, min(len(context), start + 12)))]
    reader = readers[kind]
    spans = make_spans([Question("q", "what?", context, ((text, start),))], reader, length=48, stride=12)
    alone = reader(context, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    first, last = start + len(text) - len(text.lstrip()), start + len(text.rstrip())
    places = [i for i, pair in enumerate(alone) if pair[0] < pair[1] and pair[1] > first and pair[0] < last]
    there = [alone[i] for i in places] if first < last else []
    lost = find_unplaced([Question("q", "what?", context, ((text, start),))], spans)
    # An answer is in a span unless no token stands for it, or it is longer than the overlap of two spans.
    if there and places[-1] - places[0] < 12:  # includes tokens between that stand for no character
        assert not lost
    if not there:
        assert lost
    for row, (begin, end) in enumerate(zip(spans.starts, spans.ends, strict=True)):
        if (begin, end) == (0, 0):
            continue
        assert begin <= end
        pairs = [pair for pair in spans.offsets[row][begin : end + 1] if pair]
        assert pairs[0][0] <= there[0][0] and pairs[-1][1] >= there[-1][1], "all that stands for the answer"
        assert pairs[0][1] > first and pairs[-1][0] < last, "and nothing beside it"


@pytest.mark.parametrize("answer", ["龍", "🎉", "é", "€5", "龍門"])
def test_an_answer_of_one_character_of_many_bytes_is_learnt_and_scored(readers, answer):
    context = f"the sign in the garden shows {answer} and the lamp is off"
    questions = [Question("1", "what?", context, ((answer, context.index(answer)),))]
    spans = make_spans(questions, readers["byte-level"])
    assert (spans.starts[0], spans.ends[0]) != (0, 0) and not find_unplaced(questions, spans)
    answers = postprocess_spans(questions, spans, *perfect(spans))
    assert answers[0].text == answer and squad_scores(questions, answers) == {"f1": 1.0, "exact_match": 1.0}


def test_an_answer_that_no_token_stands_for_is_not_learnt_as_none(tokenizer):
    questions = [Question("1", "what?", "a small\u200b village", (("\u200b", 7),)), question("near", "2")]
    spans = make_spans(questions, tokenizer)
    assert find_unplaced(questions, spans) == {0}
    rest = spans.without({0})
    assert set(rest.question) == {1} and len(rest.inputs["input_ids"]) == len(rest.starts) == spans.question.count(1)


@pytest.mark.parametrize("side", ["right", "left"])
def test_questions_are_cut_where_the_tokenizer_cuts_and_counted(tokenizer, side):
    tokenizer.truncation_side = side
    try:
        questions = [question("near", ask="what " + "is " * 90 + "it"), question("near")]
        spans = make_spans(questions, tokenizer, length=128, stride=16)
    finally:
        tokenizer.truncation_side = "right"
    assert spans.cut == 1 and max(map(len, spans.inputs["input_ids"])) <= 128 and not find_unplaced(questions, spans)
    covered = {character for offsets in spans.offsets for pair in offsets if pair for character in range(*pair)}
    assert all(i in covered for i, character in enumerate(CONTEXT) if not character.isspace())


def test_a_slip_is_left_out_and_counted_and_many_are_refused(tmp_path, capsys):
    def load(off, total, start=0):
        answers = [{"text": ["Ann"], "answer_start": [1 if i < off else start]} for i in range(total)]
        rows = [{"id": str(i), "question": "Who?", "context": "Ann ran.", "answers": answers[i]} for i in range(total)]
        (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return load_questions(get_task("squad"), "train", str(tmp_path))

    questions = load(1, 8)
    assert (
        len(questions) == 7
        and questions.left_out.total() == 1
        and [q.id for q in questions] == [str(i) for i in range(1, 8)]
    )
    stderr = capsys.readouterr().err
    assert (
        "1 of 8 questions whose answer is not at its answer_start are skipped; the first is line 1, question '0': "
        in stderr
    )
    assert stderr.count("\n") == 1
    assert load(1, 200).left_out.total() == 1 and not capsys.readouterr().err, "a trace is counted only"
    with pytest.raises(
        UserError,
        match="line 1, question '0': the answer 'Ann' is not at character 1 .* 3 of 8 questions have such answers",
    ):
        load(3, 8)
    assert load(0, 2, start=0.0)[0].answers == (("Ann", 0),), "pandas made floats of the places"
    for start in (0.5, math.nan, True, "0"):
        with pytest.raises(UserError, match="an answer needs its text and the number of its first character"):
            load(0, 1, start=start)


def test_nothing_to_say_is_nothing_said(tokenizer):
    """Contexts have no tokens, so neither the threshold for no answer nor any score of missing kinds is measured."""
    questions = [Question(str(i), "what?", "", ()) for i in range(3)]
    spans = make_spans(questions, tokenizer)
    scores = squad_scores(questions, postprocess_spans(questions, spans, *perfect(spans)))
    assert scores == {"f1": 1.0, "exact_match": 1.0, "threshold": None, "has_answer_f1": None, "no_answer_f1": 1.0}
    assert squad_scores([], []) == {"f1": None, "exact_match": None}


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from(["near", "coast", "the", ""]), st.sampled_from([-2.0, 0.0, 3.0])),
        min_size=1,
        max_size=8,
    )
)
def test_the_parts_of_a_score_make_up_the_whole(rows):
    """The scores reported at the threshold are those that the threshold gives."""
    questions = [question("near" if has else None, str(i)) for i, (has, _, _) in enumerate(rows)]
    answers = [Answer([(0.0, text)] if text else [], odds) for _, text, odds in rows]
    scores = squad_scores(questions, answers)
    assert all(value is None or math.isfinite(value) for value in scores.values())
    if all(has for has, _, _ in rows):
        assert scores["f1"] == pytest.approx(np.mean([normalize_answer(text) == "near" for _, text, _ in rows]))
        return
    count = sum(has for has, _, _ in rows)
    parts = (scores["has_answer_f1"] or 0.0) * count + scores["no_answer_f1"] * (len(rows) - count)
    assert scores["f1"] == pytest.approx(parts / len(rows)) and (scores["has_answer_f1"] is None) == (count == 0)
    if scores["threshold"] is not None:
        answered = [bool(text) and odds <= scores["threshold"] for _, text, odds in rows]
        right = [
            float(text == "near") if speaks and has else float(not has and not speaks)
            for speaks, (has, text, _) in zip(answered, rows, strict=True)
        ]
        assert np.mean(right) == pytest.approx(scores["f1"])
