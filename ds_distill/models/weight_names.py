"""Names of weights as training code saves them.

torch.compile, DistributedDataParallel, FSDP and custom modules put words before a model's own
names, or between them.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from ds_distill.utils.console import log_once_per_process

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Wrappers around a part of a model leave these words within a name: layer.0._orig_mod.output.
WITHIN = r"(?:\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)"


def renaming(names: list[str], model: PreTrainedModel, given: str) -> dict[str, str] | None:
    """Return from_pretrained's key_mapping that turns these names of weights into the model's own.

    The mapping is {pattern: replacement}, or None where the names need no change. The words that it
    removes are logged once.

    Args:
        names: The names in the files.
        model: The model.
        given: The beginning of the log line.
    """
    prefix = _prefix(names, model)
    wrapped = [re.findall(WITHIN, name.removeprefix(prefix)) for name in names]
    most = max(map(len, wrapped), default=0)
    if not prefix and not most:
        return None
    added = sorted({prefix} - {""} | {word for words in wrapped for word in words})
    log_once_per_process(
        f"{given}: names of its weights are read without {', '.join(added)}, "
        "which the training code that saved it has added"
    )
    mapping = {f"^{re.escape(prefix)}": ""} if prefix else {}
    return mapping | {f"(?#{turn}){WITHIN}": "" for turn in range(most)}  # each pattern is replaced once


def _prefix(names: list[str], model: PreTrainedModel) -> str:
    """Return the prefix of the model's own names, with its dot; empty where two prefixes tie, as two models would."""
    base = model.base_model_prefix + "."
    expected = set(model.state_dict())
    has_head = any(name.startswith(base) for name in expected)
    # transformers finds an encoder in a model with a head, and the other way round, itself
    expected |= {name.removeprefix(base) if has_head else base + name for name in expected}
    counts: Counter[str] = Counter()
    for name in names:
        for start in (0, *(dot.end() for dot in re.finditer(r"\.", name))):
            if re.sub(WITHIN, "", name[start:]) in expected:
                counts[name[:start]] += 1
    best = [prefix for prefix, count in counts.items() if count == max(counts.values())]
    shortest = min(best, key=len, default="")
    return shortest if all(prefix.startswith(shortest) for prefix in best) else ""
