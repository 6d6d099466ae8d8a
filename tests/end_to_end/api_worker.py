"""Run one rank of a script that uses the functions of the package one after the other; print what it was given.

Arguments: the folder of a teacher, a text file, the output folder.
"""

import json
import sys

from ds_distill import Recipe, distill, evaluate, export

if __name__ == "__main__":
    teacher, text, output = sys.argv[1:]
    recipe = Recipe()
    recipe.data.sequence_length, recipe.data.heldout_fraction = 32, 0.05
    recipe.training.global_batch_size, recipe.training.micro_batch_size, recipe.training.max_tokens = 8, 2, 500
    recipe.training.deepspeed = "ds_configs/deepspeed/zero2.json"
    first = evaluate(teacher, recipe=recipe, corpus=text, output=f"{output}/evaluated")
    made = distill(recipe, teacher=teacher, corpus=text, output=f"{output}/run")
    rows = evaluate([made.export, teacher], recipe=recipe, tokens=f"{output}/run/tokens")
    formats = export(made.export, formats=["torch-export"], output=f"{output}/files")
    told = {"first": first[0].heldout_mask_loss, "loss": made.loss, "rows": [row.heldout_mask_loss for row in rows]}
    print(json.dumps(told | {"formats": list(formats.get("formats", ()))}), flush=True)
