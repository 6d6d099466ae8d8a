"""The memory per rank that a run will take at each ZeRO stage, before it starts."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import cast

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from ds_distill.kernels.fused_linear import live_bytes, padded_vocab_size
from ds_distill.models.families import get_family
from ds_distill.models.intermediates import run_encoder
from ds_distill.recipe import Training

GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """The memory of one rank, in bytes.

    Args:
        optimizer: Master weights and moments.
        buffers: DeepSpeed's buffers.
    """

    weights: float
    gradients: float
    optimizer: float
    buffers: float
    teacher: float
    activations: float
    loss: float

    @property
    def peak(self) -> float:
        """The most memory that is in use at one time.

        The peak is at the end of the student's forward or, where gradients outgrow activations, at
        the end of the backward.
        """
        standing = self.weights + self.optimizer + self.teacher
        return standing + max(self.activations + self.loss, self.gradients + self.buffers)


def estimate_memory(
    student: PreTrainedModel,
    teacher: float,
    training: Training,
    *,
    length: int,
    stage: int,
    ranks: int,
    dtype: torch.dtype,
    accumulation: int,
    activations: float,
    device: str,
) -> Memory:
    """Return the memory of one rank at ZeRO `stage`.

    Source: Rajbhandari et al. 2020, section 3 (Adam: 12 bytes per parameter besides 16-bit
    weights), and DeepSpeed's code for what it copies.

    Args:
        student: The student.
        teacher: The teacher's bytes.
        training: The recipe's training section, with the micro-batch as a number.
        length: Tokens per sequence.
        stage: The ZeRO stage.
        ranks: The number of ranks.
        dtype: The type of the student's weights.
        accumulation: Micro-batches per step.
        activations: Bytes of one micro-batch, from `activation_bytes`.
        device: The device's type.
    """
    count = sum(parameter.numel() for parameter in student.parameters())
    trained = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
    size = dtype.itemsize
    shard = ranks if stage else 1
    # A sharded optimizer has copies even of fp32 weights.
    masters = 0 if size == 4 and stage == 0 else 4 * trained / shard
    weights = size * count / (ranks if stage == 3 else 1)
    # The weights are gathered while the model runs; DeepSpeed keeps those that a small model needs
    # again.
    gathered = size * count if stage == 3 else 0
    gradients = {0: size * trained, 1: size * trained, 2: 4 * trained / ranks, 3: 4 * trained / ranks}[stage]
    if size == 2 and stage == 1:
        gradients += 4 * trained / ranks  # Gradients are accumulated in fp32.
    bucket_size = training.deepspeed_json().get("zero_optimization", {}).get("reduce_bucket_size", "auto")
    bucket = 500_000_000 if bucket_size == "auto" else int(bucket_size)  # DeepSpeed's own default
    config = student.config
    rows, width = cast(int, training.micro_batch_size) * length, get_family(student).dims(config).width
    # A compiled loss spares a CPU the temporaries, but the estimate does not rely on that.
    backend = "torch" if device == "cpu" or training.compile == "off" else "triton"
    loss = 4.0 * rows * width
    if get_family(student).has_head(student):
        width = get_family(student).embedding_width(config)
        loss += live_bytes(rows, config.vocab_size, size, device, backend) + 4 * config.vocab_size * width
        if (wider := padded_vocab_size(config.vocab_size, device)) != config.vocab_size:
            loss += 2 * size * wider * width  # Both weights are copied.
    # Measurements on CPUs show that from stage 2 on the memory of a bucket remains in the next
    # forward.
    buffers = min(bucket, trained) * 4.0 if stage else 0.0
    retained = (gradients if accumulation > 1 else 0.0) + (buffers if stage >= 2 else 0.0)
    return Memory(
        weights + gathered, gradients, masters + 8 * trained / shard, buffers, teacher, activations + retained, loss
    )


def activation_bytes(
    student: PreTrainedModel, sequences: int, length: int, dtype: torch.dtype, device: torch.device
) -> float:
    """Return the bytes that autograd keeps for `sequences` × `length` tokens.

    They are those of the student's encoder and head transform.
    """
    first_sequence, per_sequence = activation_bytes_fit(student, length, dtype, device)
    return first_sequence + per_sequence * (sequences - 1)


def activation_bytes_fit(
    student: PreTrainedModel,
    length: int,
    dtype: torch.dtype,
    device: torch.device,
    fused_attention: bool = False,
) -> tuple[float, float]:
    """Return the bytes of `activation_bytes` for one sequence, and for each further one.

    They are counted on one and on two sequences. Weights, mode and random state stay as they are.

    Args:
        student: The student, on `device`, which may be "meta": only shapes matter.
        length: Tokens per sequence.
        dtype: The type that the student will have.
        device: The student's device.
        fused_attention: Whether attention runs in a kernel that keeps no scores, as it does on a GPU. It
            matters on the meta device, where torch would keep them.
    """
    family, counted = get_family(student), []
    attention = _FusedAttentionMode() if fused_attention else contextlib.nullcontext()
    for batch in (1, 2):
        saved: dict[int, int] = {}
        # A storage on the meta device has no address, so storages are told apart as objects. Those
        # that are saved live until the end of the count.
        parameter_storages = {parameter.untyped_storage()._cdata for parameter in student.parameters()}

        def keep(tensor: torch.Tensor, saved=saved, parameter_storages=parameter_storages) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in parameter_storages:
                saved[storage._cdata] = storage.nbytes()
            return tensor

        ids = torch.full((batch, length), student.config.vocab_size - 1, device=device)
        with (
            torch.random.fork_rng(devices=[]),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            attention,
        ):
            hidden, _ = run_encoder(student, ids, None)
            head = family.mlm_transform(student, hidden) if family.has_head(student) else None
        counted.append(sum(saved.values()))
        del hidden, head
    first, both = (count * dtype.itemsize / next(student.parameters()).dtype.itemsize for count in counted)
    return first, both - first


class _FusedAttention(torch.autograd.Function):
    """Keeps what a fused attention kernel keeps for its backward: inputs, output and one number per row of scores."""

    @staticmethod
    def forward(ctx, query, key, value):
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1]))
        return output


class _FusedAttentionMode(TorchFunctionMode):
    """A context in which scaled_dot_product_attention computes nothing and keeps what `_FusedAttention` keeps."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is functional.scaled_dot_product_attention:
            return _FusedAttention.apply(*args[:3])
        return func(*args, **(kwargs or {}))
