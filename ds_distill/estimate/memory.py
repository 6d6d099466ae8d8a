"""What a run will take, before it starts: parameters, floating-point operations, memory a rank by ZeRO stage, steps, hours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ds_distill.kernels.fused_linear import columns, live_bytes
from ds_distill.models.families import family_of
from ds_distill.recipe import Training

GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """Bytes a rank: weights, gradients, optimizer (masters and moments), buffers (DeepSpeed's), teacher, activations, loss."""

    weights: float
    gradients: float
    optimizer: float
    buffers: float
    teacher: float
    activations: float
    loss: float

    @property
    def peak(self) -> float:
        """The most at once: the end of the student's forward, or, where gradients outgrow activations, the end of the backward."""
        standing = self.weights + self.optimizer + self.teacher
        return standing + max(self.activations + self.loss, self.gradients + self.buffers)


def memory(
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
    """Memory of a rank at ZeRO `stage`. teacher: its bytes. activations: bytes of one micro-batch, from `activation_bytes`. device: its type.

    Source: Rajbhandari et al. 2020, section 3 (Adam: 12 bytes a parameter beside 16-bit weights), and DeepSpeed's code for what it copies.
    """
    count = sum(p.numel() for p in student.parameters())
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    size = dtype.itemsize
    shard = ranks if stage else 1
    masters = (
        0 if size == 4 and stage == 0 else 4 * trained / shard
    )  # a sharded optimizer has copies even of fp32 weights
    weights = size * count / (ranks if stage == 3 else 1)
    gathered = size * count if stage == 3 else 0  # while it runs; DeepSpeed keeps what a small model needs again
    gradients = {0: size * trained, 1: size * trained, 2: 4 * trained / ranks, 3: 4 * trained / ranks}[stage]
    if size == 2 and stage == 1:
        gradients += 4 * trained / ranks  # accumulated in fp32
    asked = training.deepspeed_json().get("zero_optimization", {}).get("reduce_bucket_size", "auto")
    bucket = 500_000_000 if asked == "auto" else int(asked)  # DeepSpeed's own
    config = student.config
    rows, width = training.micro_batch * length, family_of(student).measures(config)[2]
    passes = (
        "torch" if device == "cpu" or training.compile == "off" else "triton"
    )  # compiled, a CPU's temporaries are spared: not relied on
    loss = live_bytes(rows, config.vocab_size, size, device, passes) + 4 * rows * width + 4 * config.vocab_size * width
    if (wider := columns(config.vocab_size, device)) != config.vocab_size:
        loss += 2 * size * wider * width  # copies of both weights
    # measured on CPUs: from stage 2 on what holds a bucket is there in the next forward too
    buffers = min(bucket, trained) * 4.0 if stage else 0.0
    kept = (gradients if accumulation > 1 else 0.0) + (buffers if stage >= 2 else 0.0)
    return Memory(
        weights + gathered, gradients, masters + 8 * trained / shard, buffers, teacher, activations + kept, loss
    )


def activation_bytes(
    student: PreTrainedModel, sequences: int, length: int, dtype: torch.dtype, device: torch.device
) -> float:
    """What autograd keeps of the student's trunk and head transform for `sequences` × `length` tokens."""
    one, more = activation_bytes_fit(student, length, dtype, device)
    return one + more * (sequences - 1)


def activation_bytes_fit(
    student: PreTrainedModel, length: int, dtype: torch.dtype, device: torch.device
) -> tuple[float, float]:
    """The bytes of `activation_bytes` for one sequence, and for each further one: counted on one and on two. Leaves weights, mode and random state
    as they are."""
    family, counted = family_of(student), []
    for batch in (1, 2):
        seen: dict[int, int] = {}
        own = {p.untyped_storage().data_ptr() for p in student.parameters()}

        def keep(tensor: torch.Tensor, seen=seen, own=own) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        ids = torch.full((batch, length), student.config.vocab_size - 1, device=device)
        with torch.random.fork_rng(devices=[]), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            hidden = family.part(student, "trunk")(input_ids=ids, attention_mask=None).last_hidden_state
            head = family.transform(student, hidden)
        counted.append(sum(seen.values()))
        del hidden, head
    one, two = (count * dtype.itemsize / next(student.parameters()).dtype.itemsize for count in counted)
    return one, two - one
