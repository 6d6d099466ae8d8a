"""The commands, parsed: each calls one function, prints its table, and returns its summary."""

from pathlib import Path

from ds_distill.console import is_first
from ds_distill.errors import UserError
from ds_distill.finetune.settings import Tuning
from ds_distill.parser import check_command, recipe_of, section_of
from ds_distill.report import table

EVALUATED_IN = Path("runs/evaluate")
EVALUATED = {"model": "model", "parameters": "parameters", "heldout_mlm_loss": "held-out MLM loss (nats)", "heldout_mlm_accuracy": "accuracy"}


def execute(command: str, options) -> dict:
    """Run a parsed command; returns its summary. The libraries are imported only here: --help and mistakes need not wait for them."""
    output = Path(options.output) if options.output else None
    if command == "finetune":
        return finetune(options, output)
    if command == "study":
        from ds_distill.finetune.study import Study, run_study

        return run_study(Study(**{name: options[name] for name in Study.__dataclass_fields__}), output, check_command)
    if command == "report":
        from ds_distill.evidence import report

        return report(options.folders, output)
    from ds_distill import demo, environment, plan, runs
    from ds_distill.data.batches import check_weights
    from ds_distill.data.sources import pieces_of
    from ds_distill.data.tokenizer import load_tokenizer
    from ds_distill.models.folder import resolve_model_folder
    from ds_distill.tokens import heldout_sets, prepare_tokens, tokens_for, with_tokens

    if command == "env":
        return print_environment(environment.describe())
    if command == "export":
        return export(options, output)
    recipe = recipe_of(options)
    recipe.check()
    if recipe.data.weights and options.corpus and command not in ("evaluate", "plan"):
        check_weights(recipe.data.weights, len(options.corpus))
    if command == "plan":
        if not options.teacher:
            raise UserError("--teacher is missing")
        if options.tokens:
            recipe = with_tokens(recipe, Path(options.tokens))
        found = plan.plan(recipe, options.teacher, options.tokens, options.ranks, options.memory_gib, options.tokens_per_second)
        plan.show(found)
        return found
    if command == "run" and not options.teacher:
        runs.check_encoder(dict(options.model), recipe)
        if options.heldout or options.tokens:
            raise UserError("--teacher is missing: --heldout and --tokens are for a teacher of yours; the demo makes its own")
        return demo.run(recipe, dict(options.model), output, corpus=options.corpus, megabytes=options.corpus_megabytes,
                        vocabulary=options.vocabulary, teacher_tokens=options.teacher_tokens, fresh=options.fresh)  # fmt: skip
    if command == "run" and options.fresh:
        raise UserError("--fresh: of the job without --teacher only; choose another --output, or remove the folder")
    if command == "prepare":
        if not (options.tokenizer or options.teacher) or not options.corpus:
            raise UserError("prepare needs --tokenizer, or a recipe with a teacher, and --corpus")
        pieces_of(options.corpus, column=recipe.data.column, streaming=recipe.data.streaming)  # a wrong path is said before a wrong tokenizer
        tokenizer = load_tokenizer(options.tokenizer or resolve_model_folder(options.teacher))
        manifest = prepare_tokens(options.corpus, tokenizer, output, recipe)
        kept = ("mode", "blocks", "real_tokens", "documents", "found", "unknown_share", "sources", "fingerprint")
        return {"output": str(output), **{key: manifest[key] for key in kept}}
    if command == "pretrain":
        options.tokenizer = options.tokenizer or options["from"]
        runs.check_encoder(options["from"] or dict(options.model), recipe)
    source = {"run": "teacher", "distill": "teacher", "pretrain": "tokenizer", "evaluate": "model"}[command]
    if not options[source]:
        raise UserError(f"--{source} is missing")
    tokens = options.get("tokens")
    if not tokens and not options.corpus:
        raise UserError("--corpus (text) is missing; or --tokens, made by prepare")
    if command != "evaluate":
        runs.check_machine(recipe)
        if not tokens and not recipe.data.heldout_fraction:
            raise UserError("data.heldout_fraction = 0: a run is measured on text of its own corpus that it does not read; give a share above 0")
    if not tokens:
        tokenizer = options[source]
        if command in ("run", "distill"):
            tokenizer = runs.teacher_folder(tokenizer, recipe)
        elif command == "evaluate":
            tokenizer = str(resolve_model_folder(tokenizer[0], "--model"))
        tokens = tokens_for(options.corpus, tokenizer, recipe, (output or EVALUATED_IN) / "tokens", bound=output)
    recipe = with_tokens(recipe, Path(tokens))
    if command != "evaluate":
        held = heldout_sets(options.heldout, Path(tokens), recipe, output)
    if command in ("run", "distill"):
        return runs.distill(recipe, options.teacher, Path(tokens), output, heldout=held)
    if command == "pretrain":
        return runs.pretrain(recipe, options["from"] or dict(options.model), Path(tokens), output, heldout=held)
    rows = runs.evaluate_folders(options.model, Path(tokens), recipe, options.untrained)
    if is_first():
        print(table(rows, EVALUATED))
    return rows[0] if len(rows) == 1 else {"models": rows}


def export(options, output: Path) -> dict:
    from ds_distill import runs
    from ds_distill.data.sources import pieces_of
    from ds_distill.export.formats import export_formats, formats_of, formats_table

    if bool(options.run) == bool(options.model):
        raise UserError("export needs one of --run, the --output folder of distill or pretrain, and --model, a Hugging Face folder")
    formats = [name for name in options.format if name != "hf"]
    formats_of(formats)  # a wrong name is said before the work begins
    if options.run and (options.encoder or options.data):
        option = "--encoder" if options.encoder else "--data"
        raise UserError(f"{option}: not with --run, whose model has a masked-LM head; give what was exported, or fine-tuned, as --model")
    if options.text:
        pieces_of(options.text)  # a wrong path is said before the run's model is written
    if options.model and not formats:
        raise UserError(f"--model {options.model} is a Hugging Face folder already: give a --format")
    summary = runs.export_run(Path(options.run), output, options.step) if options.run else {}
    if formats and is_first():
        found = export_formats(options.model or str(output), formats, output, text=options.text, data=options.data, encoder=options.encoder)
        print(formats_table(found["formats"]))
        summary |= found
    return summary


def finetune(options, output: Path) -> dict:
    from ds_distill.finetune import tune
    from ds_distill.finetune.settings import grid_of
    from ds_distill.tasks.catalog import task_of

    for key in ("task", "model"):
        if not options[key]:
            raise UserError(f"--{key} is missing")
    if options.seeds < 1:
        raise UserError(f"--seeds {options.seeds}: at least one")
    seeds = list(range(options.first_seed, options.first_seed + options.seeds))
    if not 0 <= seeds[0] <= seeds[-1] < 2**32:
        raise UserError(f"--first_seed {options.first_seed}: seeds lie between 0 and 2^32 − 1")
    tuning = section_of(options.tuning, Tuning)
    tuning.check()
    summary = tune.finetune(task_of(options.task), options.model, output, points=grid_of(tuning, options.grid or []), seeds=seeds,
                       teacher=options.teacher, data=options.data)  # fmt: skip
    rows = [{"seed": str(row["seed"])} | row for row in summary["seeds"]]
    print(table(rows + [{"seed": "median"} | summary["metrics"]], {"seed": "seed"} | {name: name.replace("_", " ") for name in summary["metrics"]}))
    return summary


def print_environment(found: dict) -> dict:
    if is_first():
        versions = [{"package": package, "version": version} for package, version in found["versions"].items()]
        print(table(versions, {"package": "package", "version": "version"}))
        devices = [{"what": key.replace("_", " ").replace("gib", "GiB"), "value": ", ".join(value) or None if isinstance(value, list) else value}
                   for key, value in found["devices"].items()]  # fmt: skip
        print("\n" + table(devices, {"what": "device", "value": ""}))
        rows = [{"kernel": row["kernel"], "active": "yes" if row["active"] else "no", "why": row["why"]} for row in found["kernels"]]
        print("\n" + table(rows, {"kernel": "fused kernel", "active": "active", "why": "why"}) + "\n")
    return found
