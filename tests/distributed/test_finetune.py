"""Fine-tuning after a distillation, in one process of Python: its process group concerns fine-tuning in nothing."""

import json

from tests.start import run_ranks


def test_a_process_group_of_its_own_is_no_matter(tmp_path):
    output = run_ranks(1, "tests.distributed.finetune_worker", str(tmp_path))
    assert json.loads(output.splitlines()[-1]) == ["accuracy", ["rte", "sst2"]]
