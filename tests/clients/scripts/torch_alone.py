"""torch and nothing else: load torch/model.pt2 and run it on token ids."""

import importlib.util

import torch
from checks import numbers, run_checks

if importlib.util.find_spec("transformers"):
    raise SystemExit("transformers is installed here, and may help to load the file")


def load(check):
    program = torch.export.load(f"{check['folder']}/torch/model.pt2").module()

    def answer(given):
        ids = torch.tensor([given["ids"]])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if given["type_ids"]:
            inputs["token_type_ids"] = torch.tensor([given["type_ids"]])
        return {"logits": numbers(list(program(**inputs).values()))}

    return answer


run_checks(load, ["torch"])
