"""The commands, parsed: each calls one function, prints its table, and returns its summary."""

from pathlib import Path

from ds_distill.cli.argument_checks import EVALUATED_IN
from ds_distill.cli.parser import check_command, recipe_of, section_of
from ds_distill.finetune.config import Tuning
from ds_distill.recipe import Recipe
from ds_distill.reporting.tables import table
from ds_distill.utils.console import is_first

EVALUATED = {"model": "model", "parameters": "parameters", "heldout_mlm_loss": "held-out MLM loss (nats)", "heldout_mlm_accuracy": "accuracy"}


def execute(command: str, options) -> dict:
    """Run a parsed command; returns its summary. The libraries are imported only here: --help and mistakes need not wait for them."""
    output = Path(options.output) if options.output else None
    if command == "finetune":
        return finetune(options, output)
    if command == "study":
        from ds_distill.study.plan import Study, run_study

        return run_study(Study(**{name: options[name] for name in Study.__dataclass_fields__}), output, check_command)
    if command == "report":
        from ds_distill.study.report import report

        return report(options.folders, output)
    from ds_distill.cli import demo
    from ds_distill.cli import env as environment
    from ds_distill.data.run_data import prepare_tokens, with_tokens
    from ds_distill.data.tokenizer import load_tokenizer
    from ds_distill.estimate import estimate as plan
    from ds_distill.models.loading import resolve_model_folder
    from ds_distill.preflight import job as checks
    from ds_distill.preflight import models as model_checks

    if command == "env":
        return print_environment(environment.describe())
    if command == "export":
        return export(options, output)
    recipe = recipe_of(options)
    if command == "plan":
        checks.check_deepspeed(recipe.training)
        if options.tokens:
            recipe = with_tokens(recipe, Path(options.tokens))
        found = plan.plan(recipe, options.teacher, options.tokens, options.ranks, options.memory_gib, options.tokens_per_second)
        plan.show(found)
        return found
    if command == "run" and not options.teacher:
        checks.check_encoder(dict(options.model), recipe)
        return demo.run(recipe, dict(options.model), output, corpus=options.corpus, megabytes=options.corpus_megabytes,
                        vocabulary=options.vocabulary, teacher_tokens=options.teacher_tokens, fresh=options.fresh)  # fmt: skip
    if command == "prepare":
        tokenizer = load_tokenizer(options.tokenizer or resolve_model_folder(options.teacher))
        if options.teacher:
            model_checks.warn_of_teacher(options.teacher, recipe, options.tokenizer)
        manifest = prepare_tokens(options.corpus, tokenizer, output, recipe)
        kept = ("mode", "blocks", "real_tokens", "documents", "found", "characters", "remarks", "unknown_share", "sources", "fingerprint")
        return {"output": str(output), **{key: manifest[key] for key in kept}}
    return train_or_evaluate(command, options, recipe, output)


def train_or_evaluate(command: str, options, recipe: Recipe, output: Path | None) -> dict:
    """run with a teacher, distill, pretrain and evaluate: all that can be checked, then the tokens, which may take hours, then the work."""
    from ds_distill import pipeline as runs
    from ds_distill.data.heldout import heldout_sets
    from ds_distill.data.run_data import tokens_for, with_tokens
    from ds_distill.preflight import job as checks

    tokens, training = Path(options.tokens) if options.tokens else None, command != "evaluate"
    if training:
        checks.check_machine(recipe)
    recipe = with_tokens(recipe, tokens) if tokens else recipe
    checks.check_texts([] if tokens else options.corpus, options.heldout if training else [], recipe)
    if command == "evaluate":
        tokenizer = checks.check_evaluated(options.model, recipe, tokens)
    elif command == "pretrain":
        tokenizer = options.tokenizer
        checks.check_encoder(options["from"] or dict(options.model), recipe, tokenizer, tokens)
    else:
        tokenizer = checks.check_teacher(options.teacher, recipe, tokens)
    if training:
        checks.check_engine(recipe)
        checks.check_output(output, recipe)
    if not tokens:
        tokens = tokens_for(options.corpus, tokenizer, recipe, (output or EVALUATED_IN) / "tokens", bound=output)
        recipe = with_tokens(recipe, tokens)
    if not training:
        rows = runs.evaluate_folders(options.model, tokens, recipe, options.untrained)
        if is_first():
            print(table(rows, EVALUATED))
        return rows[0] if len(rows) == 1 else {"models": rows}
    held = heldout_sets(options.heldout, tokens, recipe, output)
    if command == "pretrain":
        return runs.pretrain(recipe, options["from"] or dict(options.model), tokens, output, heldout=held)
    return runs.distill(recipe, options.teacher, tokens, output, heldout=held)


def export(options, output: Path) -> dict:
    from ds_distill import pipeline as runs
    from ds_distill.data.sources import pieces_of
    from ds_distill.export.formats import export_formats, formats_of, formats_table

    formats = [name for name in options.format if name != "hf"]
    formats_of(formats)  # a wrong name is said before the work begins
    if options.text:
        pieces_of(options.text)  # a file that is no text is said before the run's model is written
    summary = runs.export_run(Path(options.run), output, options.step) if options.run else {}
    if formats and is_first():
        found = export_formats(options.model or str(output), formats, output, text=options.text, data=options.data, encoder=options.encoder)
        print(formats_table(found["formats"]))
        summary |= found
    return summary


def finetune(options, output: Path) -> dict:
    from ds_distill.finetune import trainer as tune
    from ds_distill.finetune.config import grid_of
    from ds_distill.tasks.registry import task_of

    seeds = range(options.first_seed, options.first_seed + options.seeds)
    tuning = section_of(options.tuning, Tuning)
    summary = tune.finetune(task_of(options.task), options.model, output, points=grid_of(tuning, options.grid or []), seeds=list(seeds),
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
