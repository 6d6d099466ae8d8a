"""ExecuTorch: lower torch/model.pt2 to XNNPACK and run it in ExecuTorch's own runtime."""

import torch
from checks import numbers, run_checks
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime


def load(check):
    program = torch.export.load(f"{check['folder']}/torch/model.pt2")
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    buffer = lowered.buffer
    loaded = Runtime.get().load_program(buffer)
    method = loaded.load_method("forward")
    kept = (buffer, loaded)  # the method reads both but keeps no reference to them

    def answer(given):
        ids = torch.tensor([given["ids"]])
        values = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "token_type_ids": torch.tensor([given["type_ids"] or given["ids"]]),
        }
        names = [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
        assert kept
        return {"logits": numbers(method.execute([values[name] for name in names]))}

    return answer


run_checks(load, ["executorch", "torch"])
