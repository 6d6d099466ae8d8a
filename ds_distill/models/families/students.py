"""The classes that a student of another class than its teacher's can have, and how it takes over weights.

Weights go from one class to another under the names of BERT's: the teacher's family says what its own are called there,
and the student's family what it calls them (`Family.as_bert`). Which terms a student can learn by does not depend on
its class: it reads the same tokens, so that its hidden states and relations stand beside the teacher's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ds_distill.models.families.albert import ALBERT
from ds_distill.models.families.bert import BERT
from ds_distill.models.families.distilbert import DISTILBERT
from ds_distill.models.families.electra import ELECTRA
from ds_distill.models.families.family import Family
from ds_distill.models.families.modernbert import MODERNBERT
from ds_distill.utils.articles import with_article
from ds_distill.utils.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

NEW_POSITIONS = 512  # BERT's: more new position embeddings than a run reads would stay random
EMBEDDINGS = "bert.embeddings"
WORDS, POSITIONS, TYPES = (f"{EMBEDDINGS}.{name}_embeddings.weight" for name in ("word", "position", "token_type"))


@dataclass(frozen=True)
class StudentClass:
    """A student of another class than its teacher's, whose parameters have the same names and need none of this.

    Attributes:
        family: The student's family.
        make_config: (teacher's family, teacher's config) → a config of the student's class with everything that carries
            over, but for the sizes and dropouts of `ConfigNames`.
        fold: Takes the teacher's parameters under BERT's names and returns those that the student copies, in which
            parameters without a counterpart have become part of others.
    """

    family: Family
    make_config: Callable[[Family, Any], Any]
    fold: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda weights: weights


def get_student_class(teacher: Family, name: str | None = None) -> StudentClass | None:
    """Return the class of a student of the family `name`, by default the usual one; None for the teacher's own.

    Args:
        teacher: The teacher's family.
        name: The student's family.

    Raises:
        UserError: No student of that family can be made of this one.
    """
    name = name or teacher.student or teacher.name
    if name == teacher.name:
        return None
    if name not in STUDENT_CLASSES:
        names = list_students(teacher)
        raise UserError(
            f"student.family = {name}: a student of {with_article(teacher.name)} can be of the family "
            f"{', '.join(names[:-1])} or {names[-1]}; give one of these, or leave it out"
        )
    return STUDENT_CLASSES[name]


def list_students(teacher: Family) -> list[str]:
    """Return the families that a student of a family can have, the usual one first."""
    return list(dict.fromkeys((teacher.student or teacher.name, teacher.name, *STUDENT_CLASSES)))


def copies_layers(teacher: Family, student: Family) -> bool:
    """Return whether the layers of a student of another class can start from its teacher's."""
    return teacher.as_bert.layers and student.as_bert.layers


def copies_positions(teacher: Family, config: Any, student: Family, student_config: Any) -> bool:
    """Return whether a student of another class can start from a teacher's position embeddings, given both configs."""
    return teacher.has_positions(config) and copies_embeddings(teacher, config, student, student_config)


def copies_embeddings(teacher: Family, config: Any, student: Family, student_config: Any) -> bool:
    """Return whether a student of another class can start from a teacher's embeddings, given both configs.

    Those of an ELECTRA or an ALBERT may pass a projection on the width of the layers, which other classes do not have.
    """
    if not _has_projection(teacher, config):
        return True
    return teacher.factors is not None and student.factors is not None and _has_projection(student, student_config)


def _has_projection(family: Family, config: Any) -> bool:
    """Return whether the embeddings of a model of this config pass a projection on the width of its layers."""
    if family.factors and family.names.groups:
        return True  # an ALBERT's also do where the widths are the same
    embedding = getattr(config, "embedding_size", None) or family.embedding_width(config)  # DeBERTa's, where it differs
    return embedding != family.dims(config).width


def weights_as_bert(family: Family, config: Any, weights: Mapping[str, Tensor], embeddings: bool) -> dict[str, Tensor]:
    """Return an encoder's parameters, and its masked-LM head's, under BERT's names, for a student of another class.

    A BERT of these parameters gives the same hidden states and logits, but for what `AsBert.lost` names and for a
    projection of the embeddings, which it lacks: positions begin with the first token's, and where there are no token
    types they are zeros.

    Args:
        family: The family.
        config: The model's config.
        weights: The parameters by their names in a masked-LM model, with or without its head; those of layers that
            share them under the names of all these layers.
        embeddings: Whether the embeddings, and the head with them, are among what is returned.
    """
    renamed = {rename(name, family.as_bert.renames): parameter for name, parameter in weights.items()}
    renamed = family.as_bert.fold(config, renamed)
    if not embeddings:
        return {name: x for name, x in renamed.items() if not name.startswith((EMBEDDINGS, "cls."))}
    if POSITIONS in renamed:
        renamed[POSITIONS] = renamed[POSITIONS][family.first_position(config) :]
    renamed.setdefault(TYPES, renamed[WORDS].new_zeros(1, renamed[WORDS].shape[1]))
    return renamed


def rename(name: str, renames: Mapping[str, str]) -> str:
    """Return a parameter's name with each part in `renames` replaced, in this order."""
    for part, counterpart in renames.items():
        name = name.replace(part, counterpart)
    return name


def _common(teacher: Family, config: Any) -> dict[str, Any]:
    """Return what the configs of all classes call by the same names."""
    positions = teacher.positions(config)
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": positions if teacher.has_positions(config) else min(positions, NEW_POSITIONS),
        "pad_token_id": config.pad_token_id,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "initializer_range": getattr(config, "initializer_range", 0.02),
    }


def _common_with_bert(teacher: Family, config: Any) -> dict[str, Any]:
    """Return what configs of the classes that have BERT's token types and its eps call by the same names."""
    return {
        "type_vocab_size": getattr(config, "type_vocab_size", 0) or 1,
        "layer_norm_eps": teacher.eps or getattr(config, teacher.names.eps),
        **_common(teacher, config),
    }


def _bert_config(teacher: Family, config: Any) -> Any:
    from transformers import BertConfig

    return BertConfig(**_common_with_bert(teacher, config))


def _electra_config(teacher: Family, config: Any) -> Any:
    from transformers import ElectraConfig

    return ElectraConfig(embedding_size=teacher.embedding_width(config), **_common_with_bert(teacher, config))


def _albert_config(teacher: Family, config: Any) -> Any:
    from transformers import AlbertConfig

    return AlbertConfig(embedding_size=teacher.embedding_width(config), **_common_with_bert(teacher, config))


def _distilbert_config(teacher: Family, config: Any) -> Any:
    from transformers import DistilBertConfig

    return DistilBertConfig(**_common(teacher, config))


def _modernbert_config(teacher: Family, config: Any) -> Any:
    from transformers import ModernBertConfig

    # Its own ids of special tokens are those of a vocabulary that the student does not have. Its positions are no
    # embeddings, so it reads sequences as long as its teacher does.
    return ModernBertConfig(
        cls_token_id=config.bos_token_id,
        sep_token_id=config.eos_token_id,
        **_common(teacher, config) | {"max_position_embeddings": teacher.positions(config)},
    )


def _fold_token_types(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the embedding of token type 0 to each position: pretraining sees no other, so it is a constant vector."""
    if POSITIONS not in weights:
        return weights
    return weights | {POSITIONS: weights[POSITIONS].float() + weights[TYPES][0].float()}


STUDENT_CLASSES: dict[str, StudentClass] = {
    student.family.name: student
    for student in (
        StudentClass(BERT, _bert_config),
        StudentClass(DISTILBERT, _distilbert_config, _fold_token_types),
        StudentClass(ELECTRA, _electra_config),
        StudentClass(ALBERT, _albert_config),
        StudentClass(MODERNBERT, _modernbert_config),
    )
}
