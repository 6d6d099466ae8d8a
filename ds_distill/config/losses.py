"""The losses of a recipe, and the stages of a run, each of which may have losses of its own."""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, Self, cast, get_type_hints

from ds_distill.config.limits import limited
from ds_distill.config.quantization import QuantizedFormat
from ds_distill.config.values import Reader, convert
from ds_distill.utils.errors import UserError, did_you_mean

Quantity = Literal["hidden", "embeddings", "query", "key", "value", "query_key"]


@dataclass
class Match:
    """An additional loss term that compares what lies inside the student with what lies inside the teacher.

    Args:
        loss: Name of the loss: cosine or mse of hidden states, relation (the KL divergence of MiniLMv2's relations
            between tokens) or attention (the squared error of attention scores before softmax, as TinyBERT's).
        of: What to compare, one or a list. For cosine and mse: "hidden", the hidden states after a layer (the
            default), and "embeddings", the output of the embeddings. For relation: the relations of "query", "key"
            and "value" vectors with themselves (all three by default), and "query_key", the attention maps (not of a
            DeBERTa, whose attention is not query · key alone). For attention: "query_key" (the default).
        layers: Layers to compare: "last", "mapped" (each student layer with the teacher layer that it was
            initialized from), "mapped_last" (of these pairs the last alone), "span_ends" (each student layer with the
            last teacher layer before the one that the next student layer was initialized from), "uniform" (TinyBERT's
            g(m): the last layer of each of the teacher's equal groups of layers), or a list of pairs [student layer,
            teacher layer], counted from 0.
        weight: Weight of the term, which is a mean over real tokens, summed over the layer pairs and over what is
            compared.
        heads: For relation: the number of relation heads, which may be any divisor of both widths. By default, it is
            chosen so that each of the teacher's relation heads is 16 or slightly more dimensions wide (48 heads for a
            width of 768); where query_key is compared, it is the number of attention heads.
        normalize: For cosine and mse: divide both by the teacher's standard deviation of each dimension, which is
            measured on the first batches of the run.
    """

    loss: str
    of: Quantity | list[Quantity] | None = None
    layers: Literal["last", "mapped", "mapped_last", "span_ends", "uniform"] | list[tuple[int, int]] = "mapped"
    weight: float = limited(1.0, 0, 1e6)
    heads: int | None = limited(None, 1, 1 << 16)
    normalize: bool = False

    def __post_init__(self) -> None:
        """Put the loss's own default in place of an `of` that was not given."""
        if self.of is None:
            defaults: dict[str, Quantity | list[Quantity]] = {
                "relation": ["query", "key", "value"],
                "attention": "query_key",
            }
            self.of = defaults.get(self.loss, "hidden")

    @property
    def quantities(self) -> list[Quantity]:
        """What the term compares, as a list."""
        return self.of if isinstance(self.of, list) else [cast(Quantity, self.of)]


def normalize_weights(given: list[float] | None, count: int, key: str) -> tuple[float, ...]:
    """Return the weights of `count` teachers, which add up to 1 and are equal by default.

    Raises:
        UserError: As many are not given, or all are 0. The message names the key.
    """
    weights = given or [1.0] * count
    if len(weights) != count or not sum(weights):
        raise UserError(
            f"{key} = {weights}: there {'is 1 teacher' if count == 1 else f'are {count} teachers'}; give one number "
            "for each, not all of them 0, or leave it out"
        )
    return tuple(weight / sum(weights) for weight in weights)


@dataclass
class Losses:
    """Weights of the triple loss (Sanh et al. 2019, section 2; values from the authors' code).

    Args:
        kl: Weight of T² · KL(teacher ‖ student), averaged over the tokens that kl_tokens selects.
        mlm: Weight of the masked-LM cross-entropy.
        cosine: Weight of 1 − cos(student, teacher) of the last hidden states.
        temperature: Temperature T that divides both the teacher's and the student's logits in the KL term.
        kl_tokens: Tokens in the KL term: "all" real tokens, as in the authors' code, or only the "masked"
            ones.
        match: Additional loss terms, each {loss, of, layers, weight, …}; none by default.
        teacher_weights: Weights of several teachers, in the order of --teacher, divided by their sum: of their
            logits, whose mean the student learns, and of their relations (loss: relation); default: equal weights.
    """

    kl: float = limited(5.0, 0, 1e6)
    mlm: float = limited(2.0, 0, 1e6)
    cosine: float = limited(1.0, 0, 1e6)
    temperature: float = limited(2.0, 0.01, 1e3)
    kl_tokens: Literal["all", "masked"] = "all"
    match: list[Match] = field(default_factory=list)
    teacher_weights: list[float] | None = limited(None, 0, 1e6, each=True)

    def weights_of_teachers(self, count: int) -> tuple[float, ...]:
        """Return the weights of `count` teachers, which add up to 1; UserError where the recipe has not as many."""
        return normalize_weights(self.teacher_weights, count, "losses.teacher_weights")

    @property
    def need_teacher(self) -> bool:
        """Whether a term compares the student with a teacher."""
        return bool(self.kl or self.cosine or self.match)

    @property
    def need_vocabulary(self) -> bool:
        """Whether a term is over the vocabulary, for which the student has a masked-LM head."""
        return bool(self.kl or self.mlm)

    def matched_terms(self) -> dict[str, Match]:
        """Return the terms that compare what lies inside, by name: the cosine loss of the last layers, then `match`.

        A loss that occurs twice has a number from its second time on.
        """
        entries = [Match("cosine", layers="last", weight=self.cosine)] if self.cosine else []
        terms: dict[str, Match] = {}
        times: Counter[str] = Counter()
        for match in [*entries, *self.match]:
            times[match.loss] += 1
            terms[match.loss if times[match.loss] == 1 else f"{match.loss}_{times[match.loss]}"] = match
        return terms

    def without_vocabulary(self) -> Self:
        """Return the terms that compare what lies inside, alone."""
        return replace(self, kl=0.0, mlm=0.0)

    def without_teacher(self) -> Self:
        """Return the masked-LM loss alone, with its weight."""
        return replace(self, kl=0.0, cosine=0.0, match=[], teacher_weights=None)


def _read_losses(value: Any, key: str) -> dict[str, Any]:
    """Return some settings of the losses by name; raise UserError for one that does not exist."""
    hints, given = get_type_hints(Losses), convert(value, dict[str, Any], key)
    for name in given:
        if name not in hints:
            raise UserError(f"{key}.{name}: no such key{did_you_mean(name, hints)} ({', '.join(hints)})")
    return {name: convert(entry, hints[name], f"{key}.{name}") for name, entry in given.items()}


@dataclass
class Stage:
    """A part of a run that has an objective and learnable parts of its own.

    Args:
        share: Share of the run's steps, above 0. The shares of all stages must sum to 1.
        losses: Settings of `losses` that this stage has in place of the recipe's, such as {kl: 0, mlm: 0}.
        learnable: What trains: "all", or a list of student layers, counted from 0, and of "embeddings" (with which a
            tied decoder is shared) and "head". Everything else stays exactly as it is.
        teacher_forced: Train each learnable layer by itself: its input is what the teacher feeds into the span of
            layers that this student layer stands for. The span ends at the layer that the terms in losses.match pair
            it with, and begins after that of the student layer below. For terms of hidden states, without kl and mlm.
        learning_rate: Peak learning rate of this stage; that of `training` by default.
        quantize: Quantization-aware training: compute as the exported file of this format does, with rounded weights
            and, for int8, rounded activations, so that the student learns to be accurate after quantization; none by
            default.
    """

    share: float = field(metadata={"limits": (0, 1), "word": "", "each": False})
    losses: Annotated[dict[str, Any], Reader("mapping", _read_losses)] = field(default_factory=dict)
    learnable: Literal["all"] | list[int | Literal["embeddings", "head"]] = "all"
    teacher_forced: bool = False
    learning_rate: float | None = limited(None, 0, 10)
    quantize: QuantizedFormat | None = None

    def peak_rate(self, usual: float) -> float:
        """Return the peak learning rate of the stage, where `usual` is that of `training`."""
        return usual if self.learning_rate is None else self.learning_rate
