"""Messages about unknown keys: they name the key that was meant, also where another tool has another name for it."""

from __future__ import annotations

from ds_distill.config.renamed import RENAMED, current_name
from ds_distill.utils.errors import did_you_mean

# Names from Hugging Face's Trainer and scripts, from DistilBERT's authors and from DeepSpeed → keys
# here, with a value where one is meant. Of the keys in a tuple, the message gives all that the
# command has.
OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "lr": ("training.learning_rate", "finetune.learning_rate"),
    "seed": ("training.seed", "first_seed"),
    "batch": ("training.global_batch_size", "training.micro_batch_size", "finetune.batch_size"),
    "batch_size": ("training.global_batch_size", "training.micro_batch_size", "finetune.batch_size"),
    "train_batch_size": ("training.global_batch_size", "finetune.batch_size"),
    "global_batch_size": ("training.global_batch_size", "finetune.batch_size"),
    "micro_batch_size": ("training.micro_batch_size", "finetune.batch_size"),
    "train_micro_batch_size_per_gpu": ("training.micro_batch_size", "finetune.batch_size"),
    "per_device_train_batch_size": ("training.micro_batch_size", "finetune.batch_size"),
    "per_gpu_train_batch_size": ("training.micro_batch_size", "finetune.batch_size"),
    "gradient_accumulation_steps": ("training.global_batch_size",),
    "num_epochs": ("training.epochs", "finetune.epochs"),
    "num_train_epochs": ("training.epochs", "finetune.epochs"),
    "n_epoch": ("training.epochs", "finetune.epochs"),
    "num_tokens": ("training.max_tokens",),
    "train_tokens": ("training.max_tokens",),
    "max_steps": ("training.max_tokens", "finetune.epochs"),
    "max_train_steps": ("training.max_tokens", "finetune.epochs"),
    "warmup_ratio": ("training.warmup_ratio", "finetune.warmup_ratio"),
    "warmup_steps": ("training.warmup_ratio", "finetune.warmup_ratio"),
    "warmup_prop": ("training.warmup_ratio", "finetune.warmup_ratio"),
    "max_grad_norm": ("training.max_grad_norm",),
    "gradient_clipping": ("training.max_grad_norm",),
    "adam_beta1": ("training.betas",),
    "adam_beta2": ("training.betas",),
    "adam_epsilon": ("training.eps",),
    "optim": ("training.optimizer",),
    "fp16": ("training.precision fp16", "finetune.precision bf16"),
    "bf16": ("training.precision bf16", "finetune.precision bf16"),
    "fp32": ("training.precision fp32", "finetune.precision fp32"),
    "dtype": ("training.precision", "finetune.precision"),
    "use_cpu": ("training.device cpu",),
    "no_cuda": ("training.device cpu",),
    "torch_compile": ("training.compile on",),
    "resume_from_checkpoint": ("training.resume",),
    "overwrite_output_dir": ("fresh", "output"),
    "save_steps": ("training.save_every",),
    "checkpoint_interval": ("training.save_every",),
    "save_total_limit": ("training.save_total_limit",),
    "eval_steps": ("training.eval_every",),
    "max_eval_samples": ("training.eval_max_sequences",),
    "max_train_samples": ("finetune.max_train_samples",),
    "max_seq_length": ("data.sequence_length", "finetune.max_length"),
    "max_length": ("data.sequence_length", "finetune.max_length"),
    "seq_length": ("data.sequence_length", "finetune.max_length"),
    "block_size": ("data.sequence_length", "finetune.max_length"),
    "line_by_line": ("data.mode lines",),
    "text_column": ("data.column",),
    "mlm_probability": ("data.mlm_probability",),
    "mlm_mask_prop": ("data.mlm_probability",),
    "mlm_smoothing": ("data.mlm_smoothing",),
    "whole_word_mask": ("data.whole_word_masking true",),
    "num_workers": ("data.workers",),
    "num_proc": ("data.workers",),
    "preprocessing_num_workers": ("data.workers",),
    "dataloader_num_workers": ("data.workers",),
    "num_layers": ("student.num_layers",),
    "num_hidden_layers": ("student.num_layers", "model"),
    "n_layers": ("student.num_layers",),
    "hidden_size": ("student.hidden_size", "model"),
    "alpha_ce": ("losses.kl", "finetune.soft_label_weight"),
    "alpha_mlm": ("losses.mlm", "finetune.hard_label_weight"),
    "alpha_cos": ("losses.cosine", "finetune.match"),
    "alpha": ("losses.kl", "finetune.soft_label_weight"),
    "restrict_ce_to_mask": ("losses.kl_tokens masked",),
    "output_dir": ("output",),
    "out": ("output",),
    "o": ("output",),
    "dump_path": ("output",),
    "save_dir": ("output",),
    "model_name_or_path": ("teacher", "model"),
    "model_name": ("teacher", "model"),
    "model_path": ("teacher", "model"),
    "student_model": ("model",),
    "student": ("model",),
    "teacher_name": ("teacher",),
    "teacher_model": ("teacher",),
    "teacher_name_or_path": ("teacher",),
    "tokenizer_name": ("tokenizer",),
    "tokenizer_name_or_path": ("tokenizer",),
    "train_file": ("corpus", "data"),
    "train_data": ("corpus", "data"),
    "dataset": ("corpus", "data"),
    "dataset_name": ("corpus", "data"),
    "data_dir": ("corpus", "data"),
    "data_file": ("corpus", "data"),
    "validation_file": ("heldout", "data"),
    "eval_file": ("heldout", "data"),
    "test_file": ("heldout", "data"),
    "task_name": ("task", "tasks"),
    "checkpoint": ("run", "model"),
    "checkpoint_dir": ("run", "model"),
    "config_file": ("config",),
    "recipe": ("config",),
    "num_gpus": ("ranks",),
    "nproc_per_node": ("ranks",),
    "world_size": ("ranks",),
    "vocab_size": ("vocabulary",),
    "verbose": ("debug",),
}


# They place a node among several, which is not a command's business but that of what starts its ranks.
LAUNCHER_OPTIONS = ("nnodes", "node_rank", "master_addr", "master_port")


def unknown_key_message(unknown_key: str, keys: list[str], dashes: str = "--") -> str:
    """Return the sentence for `unknown_key`, which is none of a command's `keys`.

    The sentence names the key that was meant, or the nearest one.

    Args:
        unknown_key: The unknown key.
        keys: The command's keys.
        dashes: The prefix of a key; empty for keys in a file.
    """
    key = unknown_key.lstrip("-").replace("-", "_")
    *_, leaf = key.split(".")
    renamed_key = current_name(key)
    candidates = [key] if key in keys else []
    if renamed_key and (renamed_key in keys or renamed_key.partition(".")[0] in keys and "tuning" in key):
        candidates.append(renamed_key)
    candidates = candidates or [known for known in keys if known.split(".")[-1] == leaf]
    candidates = candidates or [new for old, new in RENAMED.items() if old.split(".")[-1] == leaf and new in keys]
    if not candidates:
        candidates = [name for name in OTHER_NAMES.get(leaf.lower(), ()) if name.split()[0] in keys]
    if candidates:
        remedy = f"; write {' or '.join(dashes + name for name in candidates)}"
        if leaf == "seed" and "seeds" in keys:
            remedy += "; --seeds sets the number of seeds"
    elif leaf in LAUNCHER_OPTIONS:
        remedy = f"; start ./launch.sh with --{leaf}, or torchrun"
    else:
        remedy = did_you_mean(key, keys) or did_you_mean(leaf, [known.split(".")[-1] for known in keys], 0.5)
    return f"{unknown_key.lstrip('-')}: no such key{remedy} (--help lists all keys)"
