"""The stages of a run: which steps each of them has, and what it trains. Steps alone decide the stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ds_distill.recipe import Losses, Recipe, Stage
from ds_distill.utils.errors import UserError


class Span(NamedTuple):
    """A stage with its place in a run.

    Attributes:
        number: Its number, from 1.
        first: Its first optimizer step, from 0.
        end: The step after its last one.
        losses: Its losses.
        stage: The recipe's entry.
    """

    number: int
    first: int
    end: int
    losses: Losses
    stage: Stage

    @property
    def key(self) -> str:
        """The recipe's key of the stage, for errors."""
        return f"stages[{self.number - 1}]"

    def describe(self) -> str:
        """Return in words which steps the stage has, and what it trains."""
        return f"steps {self.first + 1:,} to {self.end:,}: {self.describe_work()}"

    def describe_work(self) -> str:
        """Return in words what the stage trains."""
        learnable = self.stage.learnable
        parts = learnable if isinstance(learnable, list) else []
        layers = [str(part) for part in parts if isinstance(part, int)]
        words = [f"layer{'s' * (len(layers) > 1)} {', '.join(layers)}"] if layers else []
        words += [part for part in parts if isinstance(part, str)]
        return (
            f"{describe_losses(self.losses)}; trains {' and '.join(words) if parts else 'everything'}"
            + (", each layer by itself, on the teacher's hidden states" if self.stage.teacher_forced else "")
            + (f", quantization-aware for {self.stage.quantize}" if self.stage.quantize else "")
        )


def spans_of(recipe: Recipe, total_steps: int) -> list[Span]:
    """Return the stages of a run of `total_steps` steps; none where the recipe has no stages.

    Raises:
        UserError: A stage has no step.
    """
    spans: list[Span] = []
    done = 0.0
    for number, stage in enumerate(recipe.stages, 1):
        done += stage.share
        first = spans[-1].end if spans else 0
        end = total_steps if number == len(recipe.stages) else round(done * total_steps)
        spans.append(Span(number, first, end, recipe.trained_losses(stage), stage))
        if end <= first:
            raise UserError(
                f"{spans[-1].key}.share = {stage.share}: the run has {total_steps} steps, of which the stage would "
                "have none; give it a greater share, or the run more tokens"
            )
    return spans


def span_at(spans: Sequence[Span], step: int) -> Span:
    """Return the stage to which the step after `step` finished ones belongs; of a finished run, the last."""
    return next((span for span in spans if step < span.end), spans[-1])


def describe_losses(losses: Losses) -> str:
    """Return the weighted terms of a loss in words, such as "5 × KL + 1 × cosine"."""
    weights = {"KL": losses.kl, "masked LM": losses.mlm}
    weights |= {name: match.weight for name, match in losses.matched_terms().items()}
    return " + ".join(f"{weight:g} × {name}" for name, weight in weights.items() if weight)
