"""Spans: overlapping parts of SQuAD's contexts, each with its question, that a model can read.

Source: Devlin et al. 2019, section 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from ds_distill.models.families import INPUTS
from ds_distill.tasks.squad import Question
from ds_distill.utils.errors import UserError

LENGTH = 384  # tokens of a span
STRIDE = 128  # how many of them the next span repeats, as in transformers' run_qa; the authors' code moves on by 128
LONGEST_QUESTION = 64  # tokens


@dataclass
class Spans:
    """The spans of questions, one feature per row.

    Args:
        inputs: The model's inputs by name, as int64 lists of unequal length.
        cut: How many questions were truncated.
        question: The number of the row's question.
        offsets: The characters of each token, None outside of the context.
        starts: The first token of the answer; 0, the first token, where the span does not hold the
            answer.
        ends: The last token of the answer; 0 in the same case.
    """

    inputs: dict[str, list[list[int]]]
    cut: int = 0
    question: list[int] = field(default_factory=list)
    offsets: list[list[tuple[int, int] | None]] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def without(self, questions: set[int]) -> Spans:
        """Return the spans of all other questions."""
        rows = [row for row, number in enumerate(self.question) if number not in questions]
        inputs = {name: [values[row] for row in rows] for name, values in self.inputs.items()}
        return Spans(
            inputs,
            self.cut,
            [self.question[row] for row in rows],
            [self.offsets[row] for row in rows],
            [self.starts[row] for row in rows],
            [self.ends[row] for row in rows],
        )


def make_spans(
    questions: list[Question], tokenizer: PreTrainedTokenizerBase, length: int = LENGTH, stride: int = STRIDE
) -> Spans:
    """Return the spans of every question: the question itself with each part of its context.

    The question is truncated to 64 tokens. A span has at most `length` tokens, question included,
    and the parts overlap by `stride`.
    """
    question_texts = [q.question.lstrip() for q in questions]
    alone = tokenizer(
        question_texts,
        add_special_tokens=False,
        truncation=True,
        max_length=min(LONGEST_QUESTION, length // 2),
        return_offsets_mapping=True,
    )
    cut = sum(bool(encoding.overflowing) for encoding in alone.encodings)
    # A tokenizer may truncate on the left.
    question_texts = [
        text[offsets[0][0] : offsets[-1][1]] if offsets else text
        for text, offsets in zip(question_texts, alone["offset_mapping"], strict=True)
    ]
    room = length - max(map(len, alone["input_ids"])) - 4  # special tokens: three for BERT, four for RoBERTa
    if room < 8:
        raise UserError(
            f"{length} tokens leave no room for a context next to its question; raise finetune.max_length, or give a "
            "model with more positions"
        )
    encoded = tokenizer(
        question_texts,
        [q.context for q in questions],
        truncation="only_second",
        max_length=length,
        stride=min(stride, room // 2),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
        return_attention_mask=True,
    )
    spans = Spans({name: encoded[name] for name in INPUTS}, cut, list(encoded["overflow_to_sample_mapping"]))
    for row in range(len(spans.question)):
        pairs = zip(encoded["offset_mapping"][row], encoded.sequence_ids(row), strict=True)
        spans.offsets.append([tuple(pair) if kind == 1 else None for pair, kind in pairs])
    covered = [(len(q.context), 0) for q in questions]  # from the first to the last character that has a token
    for number, offsets in zip(spans.question, spans.offsets, strict=True):
        pairs_with_text = [pair for pair in offsets if pair and pair[0] < pair[1]] or [covered[number]]
        covered[number] = (
            min(covered[number][0], pairs_with_text[0][0]),
            max(covered[number][1], pairs_with_text[-1][1]),
        )
    for number, offsets in zip(spans.question, spans.offsets, strict=True):
        start, end = _place(questions[number], offsets, *covered[number])
        spans.starts.append(start)
        spans.ends.append(end)
    return spans


def find_unplaced(questions: list[Question], spans: Spans) -> set[int]:
    """Return the numbers of the questions that have an answer which no span holds.

    Either no token stands for that answer, or it is longer than a span.
    """
    placed = {
        number
        for number, start, end in zip(spans.question, spans.starts, spans.ends, strict=True)
        if (start, end) != (0, 0)
    }
    return {number for number, question in enumerate(questions) if question.answers} - placed


def _place(
    question: Question, offsets: list[tuple[int, int] | None], covered_from: int, covered_to: int
) -> tuple[int, int]:
    """Return the first and the last token that share a character with the first answer.

    The result is (0, 0) unless this span holds all of the answer, apart from characters before the
    first and after the last token of the context. One character may be several tokens: in
    byte-level BPE each of its bytes, with the same offsets.
    """
    if not question.answers:
        return 0, 0
    text, first = question.answers[0]
    first, last = max(first, covered_from), min(first + len(text), covered_to)
    while first < last and question.context[first].isspace():
        first += 1
    while first < last and question.context[last - 1].isspace():
        last -= 1
    inside = [(i, *pair) for i, pair in enumerate(offsets) if pair is not None and pair[0] < pair[1]]
    if first == last or not inside or inside[0][1] > first or inside[-1][2] < last:
        return 0, 0
    shared = [i for i, start, stop in inside if stop > first and start < last]
    return (shared[0], shared[-1]) if shared else (0, 0)
