"""The module that the engine runs: the model and its whole loss in one forward."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ds_distill.data.batch import TokenCounts
from ds_distill.kernels.vocabulary_projection import VocabularyProjection
from ds_distill.losses.teacher_forcing import TeacherForcing
from ds_distill.losses.terms import MatchedLoss, make_matches, teacher_sites
from ds_distill.models.families import get_family
from ds_distill.models.intermediates import EMBEDDINGS, LAST, Site, run_encoder
from ds_distill.models.learnable import freeze_unreached
from ds_distill.models.teacher import Targets
from ds_distill.recipe import Losses

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


class Objective(nn.Module):
    """A masked-LM model, or a bare encoder, with its weighted loss terms.

    Sums are divided by the counts of the *global* batch, so the gradient does not depend on how the
    batch is divided among ranks and accumulation steps. Means of means do depend on it, since
    DistilBERT's own counts differ from block to block.

    Attributes:
        model: The model.
        has_head: Whether it has a masked-LM head. A bare encoder has only the terms that compare what lies inside.
        vocabulary: Whether a term compares logits. If not, no vector is projected on the vocabulary to train.
        highest: The highest layer of which a term looks at something, from 0; -1 for the embeddings alone. The layers
            above it, what no term reaches of it, and the masked-LM head without the vocabulary, are frozen: ZeRO 3
            would wait for their gradient, and at the other stages an optimizer would still decay them.
        weights: The weight of each term by its name: where the vocabulary counts, "kl" if its weight is
            above 0 and "mlm"; then those of `losses.terms.make_matches`. Everything that reports
            losses takes their names and their order from here.
        teacher_sites: What the teacher must record.
        averaged_sites: Those of them at which further teachers are recorded too, for terms that average over teachers.
        divided_sites: Of these, the ones whose standard deviations `divide_by` must be given.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        losses: Losses,
        world_size: int,
        teacher: PretrainedConfig | None = None,
        layer_map: Sequence[int] | None = None,
        further_teachers: Sequence[PretrainedConfig] = (),
    ):
        """Put the vocabulary loss in place of the model's decoder, where it has one.

        Args:
            model: The model.
            losses: The recipe's losses.
            world_size: The number of ranks.
            teacher: The teacher's config; None for a teacher of the model's own sizes, or none.
            layer_map: The teacher layer that each of the model's layers started from, where
                losses.match refers to it.
            further_teachers: The configs of the other teachers, where there are several.
        """
        super().__init__()
        self.model = model
        self.losses = losses
        self.world_size = world_size
        self.backend = "torch"  # how the vocabulary loss passes over its logits, see fused_linear_distillation_loss
        self.family = get_family(model)
        self.has_head = self.family.has_head(model)
        if self.has_head:
            parent, name = self.family.decoder_parent_and_name(model)
            setattr(parent, name, VocabularyProjection.replacing(getattr(parent, name)))
        self.matches = nn.ModuleDict(make_matches(losses, model.config, teacher, layer_map, further_teachers))
        self.register_load_state_dict_pre_hook(_rename_widen)
        self.vocabulary = self.has_head and losses.need_vocabulary
        self.weights: dict[str, float] = {
            **({"kl": losses.kl} if losses.kl and self.vocabulary else {}),
            **({"mlm": losses.mlm} if self.vocabulary else {}),
            **{name: match.weight for name, match in self._matches},
        }
        sites = [pair for _, match in self._matches for pair in match.sites]
        self.student_sites = tuple(dict.fromkeys(student for student, _ in sites))
        self.teacher_sites, self.averaged_sites = teacher_sites(match for _, match in self._matches)
        self.forcing: TeacherForcing | None = None
        depth = self.family.dims(model.config).depth
        looked_at = {site: -1 if site == EMBEDDINGS else site.layer % depth for site in self.student_sites}
        self.highest = depth - 1 if self.vocabulary else max(looked_at.values(), default=depth - 1)
        at_highest = {site.quantity for site, layer in looked_at.items() if layer == self.highest >= 0}
        vectors = None if self.vocabulary or "hidden" in at_highest or not at_highest else at_highest
        if self.weights:  # without terms it only evaluates
            freeze_unreached(model, self.highest, head=self.vocabulary, vectors=vectors)
        # Where queries, keys and values are all that is compared of the highest layer, its output gets a gradient of
        # zeros: by that of its output, ZeRO 3 knows to gather the weights of a layer that is recomputed.
        end = Site("hidden", LAST if self.highest == depth - 1 else self.highest)
        self._zeroed = end if vectors else None

    def force(self, forcing: TeacherForcing) -> None:
        """Train single layers on the teacher's states; evaluation still runs the whole model."""
        sites = (teacher for _, match in self._matches for _, teacher in match.sites)
        self.forcing, self.teacher_sites = forcing, tuple(dict.fromkeys((*sites, *forcing.inputs.values())))

    @property
    def divided_sites(self) -> frozenset[Site]:
        """The teacher's hidden states that terms divide by their deviations."""
        divided = (match.divided for _, match in self._matches if isinstance(match, MatchedLoss))
        return frozenset[Site]().union(*divided)

    @property
    def _matches(self) -> Any:
        return self.matches.items()

    def named_matches(self) -> list[tuple[str, Any]]:
        """Return the terms that compare what lies inside, by name."""
        return list(self._matches)

    @property
    def encoder_prefix(self) -> str:
        """The prefix of the names of all parameters outside the masked-LM head."""
        return f"model.{self.family.prefix(self.model)}"

    def counts_of_terms(self, counts: TokenCounts) -> dict[str, int]:
        """Return the number of tokens that each term's sum is over, which may be 0."""
        every = counts.masked if self.losses.kl_tokens == "masked" else counts.of_masked_sequences
        vocabulary = {"kl": every, "mlm": counts.masked}
        return {name: vocabulary.get(name, counts.real) for name in self.weights}

    def means(self, sums: Sequence[float], counts: TokenCounts) -> dict[str, float | None]:
        """Return the mean of each term over its tokens, from the sums over the global batch.

        It is None where the batch has no tokens for a term, as for masked LM if all of its sequences are clean.
        """
        of_terms = zip(self.counts_of_terms(counts).items(), sums, strict=True)
        return {name: value / count if count else None for (name, count), value in of_terms}

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor,
        counts: TokenCounts | tuple[int, int] | None = None,
        targets: Targets | None = None,
        cu_seqlens: Tensor | None = None,
        loss_mask: Tensor | None = None,
        masked_rows: Tensor | None = None,
        document_ids: Tensor | None = None,
        mode: Literal["train", "evaluate"] = "train",
    ) -> tuple[Tensor, Tensor]:
        """Return (loss, sums).

        To train, these are the scalar whose gradient the engine averages over ranks, and the detached
        sum [len(weights)] of each term. To evaluate a masked-LM model, they are the masked-LM loss summed
        over the masked tokens, and float64 [masked tokens, 2]: the loss of each of them, in the order of
        labels.flatten(), and 1 where its top-1 prediction is right, else 0. To evaluate a bare encoder, they
        are the weighted sum over terms and tokens, and float64 [B, len(weights)]: the sum of each term over
        the tokens of each sequence.

        Args:
            input_ids: [B, L] int64.
            attention_mask: [B, L] or [B, 1, L, L] bool, or None where all tokens are real. A real
                token always sees itself and padding never does.
            labels: [B, L] int64.
            counts: The tokens of the global batch; None to evaluate.
            targets: The teacher's, or None where no term needs it, such as to evaluate a masked-LM model. Where there
                is a KL term, they have the decoder's input.
            cu_seqlens: For a batch whose documents do not see each other, see
                data.batch.compute_cu_seqlens. It is given beside the mask, for models.varlen_attention.
            loss_mask: [B, L] bool, true on the tokens that the losses count; None for all real tokens.
            masked_rows: [n] int64, the sequences that the vocabulary losses look at, of which alone
                `targets` have the decoder's input; None for all.
            document_ids: [B, L] int, for a batch whose documents do not see each other; else None.
            mode: Evaluation goes through the same call, since ZeRO-3 gathers weights for it.
        """
        if mode == "evaluate" and self.has_head:
            hidden, _ = run_encoder(self.model, input_ids, attention_mask, cu_seqlens)
            return self._evaluate(hidden, labels)
        if (counts is None and mode == "train") or (targets is None and self.weights.keys() != {"mlm"}):
            raise ValueError(f"training on {', '.join(self.weights)} needs counts and, but for mlm alone, targets")
        if self.forcing is None or mode == "evaluate":
            sites = self.student_sites if self._zeroed is None else (*self.student_sites, self._zeroed)
            hidden, states = run_encoder(self.model, input_ids, attention_mask, cu_seqlens, sites)
        else:
            assert targets is not None  # checked above
            states = self.forcing(self.model, targets.states, attention_mask, cu_seqlens)
        token_mask = attention_mask if loss_mask is None else loss_mask
        if token_mask is not None and token_mask.dim() == 4:
            token_mask = token_mask[:, 0].diagonal(dim1=-2, dim2=-1)
        if mode == "evaluate":
            assert targets is not None  # checked above
            return self._evaluate_matches(states, targets, token_mask, document_ids)
        scale = float(self.world_size)  # the engine averages over ranks, but these sums need the sum
        counts = TokenCounts(*counts)  # type: ignore[misc]  # checked above
        factors = {
            name: scale * self.weights[name] / max(1, count) for name, count in self.counts_of_terms(counts).items()
        }
        losses: list[Tensor] = []
        sums: list[Tensor] = []
        if self.vocabulary:
            loss, sums = self._vocabulary_terms(hidden, labels, targets, token_mask, masked_rows, factors)
            losses = [loss]
        for name, matched in self._match_sums(states, targets, token_mask, document_ids).items():
            losses.append(matched * factors[name])
            sums.append(matched.detach())
        if self._zeroed is not None and self.forcing is None:
            losses.append(0.0 * states[self._zeroed].flatten()[0].float())
        return sum(losses[1:], losses[0]), torch.stack(sums)

    def _vocabulary_terms(
        self,
        hidden: Tensor,
        labels: Tensor,
        targets: Targets | None,
        token_mask: Tensor | None,
        masked_rows: Tensor | None,
        factors: Mapping[str, float],
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the weighted loss of "kl" and "mlm", and the detached sums of those of them that are terms."""
        taught = targets or Targets({})
        if masked_rows is not None:
            # the number of rows is known on the host, so that a GPU is not waited for
            hidden, labels = hidden.index_select(0, masked_rows), labels.index_select(0, masked_rows)
            token_mask = None if token_mask is None else token_mask.index_select(0, masked_rows)
        loss, kl_sum, mlm_sum = self.family.get_decoder(self.model)(
            self.family.mlm_transform(self.model, hidden).flatten(0, 1),
            None if taught.decoder_input is None else taught.decoder_input.flatten(0, 1),
            taught.decoder_weight,
            taught.decoder_bias,
            labels.flatten(),
            temperature=self.losses.temperature,
            kl_weight=factors.get("kl", 0.0),
            mlm_weight=factors["mlm"],
            kl_tokens=self.losses.kl_tokens,
            token_mask=token_mask.flatten() if token_mask is not None else None,
            backend=self.backend,
        )
        return loss, [*([kl_sum] if "kl" in self.weights else []), mlm_sum]

    def _match_sums(
        self,
        states: Mapping[Site, Tensor],
        targets: Targets | None,
        token_mask: Tensor | None,
        document_ids: Tensor | None,
        projected: Mapping[str, Sequence[Tensor]] | None = None,
    ) -> dict[str, Tensor]:
        """Return the sum over tokens of each term that compares what lies inside.

        Of a term in `projected`, this is what its `project` has returned.
        """
        if targets is None:
            return {}
        sums = {}
        for name, match in self._matches:
            if projected is not None and name in projected:
                sums[name] = match.compare(projected[name], targets.states, token_mask)
                continue
            further = (targets.others, targets.teacher_weights) if match.averages_teachers else ()
            sums[name] = match(states, targets.states, token_mask, document_ids, *further)
        return sums

    def _evaluate_matches(
        self,
        states: Mapping[Site, Tensor],
        targets: Targets,
        token_mask: Tensor | None,
        document_ids: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        # Ranks may have different numbers of sequences, and ZeRO 3 gathers a projection at each of its calls.
        projected = {name: match.project(states) for name, match in self._matches if isinstance(match, MatchedLoss)}
        rows = []
        for row in range(len(next(iter(states.values())))):
            mask, documents = (None if x is None else x[row : row + 1] for x in (token_mask, document_ids))
            own, first, *others = (
                {site: x[row : row + 1] for site, x in each.items()}
                for each in (states, targets.states, *targets.others)
            )
            of_row = targets._replace(states=first, others=tuple(others))
            widened = {name: [x[row : row + 1] for x in each] for name, each in projected.items()}
            rows.append(torch.stack(list(self._match_sums(own, of_row, mask, documents, widened).values())).double())
        results = torch.stack(rows)
        return results.sum(0) @ results.new_tensor(list(self.weights.values())), results

    def divide_by(self, deviations: Mapping[Site, Tensor]) -> None:
        """Have hidden states divided by these standard deviations [H], by the teacher's site."""
        for _, match in self._matches:
            if isinstance(match, MatchedLoss):
                match.deviations = {site: deviations[site] for site in match.divided}

    def _evaluate(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        masked = labels >= 0
        # as one sequence: fake quantization leaves a layer exact that reads one token of each
        transformed = self.family.mlm_transform(self.model, hidden[masked][None])[0]
        logits = self.family.get_decoder(self.model)(transformed)
        return judge_guesses(logits, labels[masked])


def sites_of(objectives: Iterable[Objective]) -> tuple[tuple[Site, ...], tuple[Site, ...]]:
    """Return what several objectives need: (of the first teacher, of that what they need of further teachers too)."""
    every = list(objectives)
    return (
        tuple(dict.fromkeys(site for one in every for site in one.teacher_sites)),
        tuple(dict.fromkeys(site for one in every for site in one.averaged_sites)),
    )


def judge_guesses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return (the summed masked-LM loss, float64 [N, 2]: the loss of each token, and 1 where its top-1 is right).

    Args:
        logits: [N, V], any float dtype.
        labels: [N] int64.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none").double()
    correct = logits.argmax(-1) == labels
    return losses.sum(), torch.stack([losses, correct.double()], dim=1)


def _rename_widen(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Read a checkpoint of an earlier version, which knew one projection between widths, `widen`."""
    if (weight := state.pop(f"{prefix}widen.weight", None)) is not None:
        state[f"{prefix}matches.cosine.projection.weight"] = weight
