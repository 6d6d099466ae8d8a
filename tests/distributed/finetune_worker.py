"""Fine-tune, and tune on several tasks, in a process that has a process group of its own, as a distillation leaves it.

The argument is a folder to write to. Prints the losses' names and the steps of each as JSON.
"""

import json
import sys
from pathlib import Path

import torch

from ds_distill.distributed.process_group import start_distributed
from ds_distill.exporters.parity import SAMPLE
from ds_distill.finetune import runs
from ds_distill.finetune.config import FinetuneConfig
from ds_distill.jobs.multitask import multitask
from ds_distill.tasks.catalog import get_task
from tests.tiny import save_encoder

start_distributed()
assert torch.distributed.is_initialized()
folder = Path(sys.argv[1])
encoder = str(save_encoder("bert", folder / "encoder"))
for task, texts in (("rte", ("sentence1", "sentence2")), ("sst2", ("sentence",))):
    (folder / task).mkdir()
    rows = [{name: f"a word {i} {name}" for name in texts} | {"label": i % 2} for i in range(12)]
    for split in ("train", "validation"):
        (folder / task / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
point = FinetuneConfig(epochs=2, batch_size=4, precision="fp32")
options = {"seeds": [0], "data": str(folder / "rte"), "report_to": ()}
teacher = runs.finetune(get_task("rte"), encoder, folder / "teacher", points=[point], **options)
matched = FinetuneConfig(epochs=2, batch_size=4, precision="fp32", match=[{"loss": "cosine", "layers": "uniform"}])
student = runs.finetune(
    get_task("rte"), encoder, folder / "student", points=[matched], teachers=[teacher["export"]], **options
)
(folder / "text.txt").write_text("\n\n".join(SAMPLE.read_text().splitlines()))
both = multitask(
    [get_task("rte"), get_task("sst2")],
    encoder,
    folder / "both",
    settings=point,
    data=str(folder),
    corpus=[str(folder / "text.txt")],
    report_to=(),
)
print(json.dumps([student["metric"], sorted(both["tasks"])]))
