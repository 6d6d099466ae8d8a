"""The catalog of clients: where each one runs, what it loads, and which limits are its own rather than the files'."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.clients.environments import Environment, pinned
from tests.clients.exports import EXPORTS, Export

TORCH, TRANSFORMERS = pinned("torch"), pinned("transformers")
RUNTIMES = (pinned("onnxruntime"), pinned("openvino"))
HEADS = ("fill-mask", "text-classification", "regression", "question-answering", "feature-extraction")

ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment("torch", (TORCH,)),
        Environment("transformers-4.46", (TORCH, "transformers==4.46.3")),
        Environment("transformers-4.57", (TORCH, "transformers==4.57.6")),
        Environment("deploy", (TORCH, TRANSFORMERS, *RUNTIMES)),
        Environment("javascript", ("@huggingface/transformers@4.3.2", "onnxruntime-node@1.30.0"), "npm"),
        Environment(
            "optimum",
            (
                TORCH,
                "transformers==4.57.6",
                "sentence-transformers==5.7.0",
                "optimum-onnx[onnxruntime]==0.1.0",
                "optimum-intel[openvino]==1.27.0",
            ),
        ),
        Environment("sentence-transformers", (TORCH, "sentence-transformers==6.2.0", "setfit==1.2.0")),
        Environment("fastembed", ("fastembed==0.9.1",)),
        Environment("peft", (TORCH, TRANSFORMERS, "peft==0.21.2")),
        Environment("spacy", (TORCH, "spacy==3.8.18", "spacy-transformers==1.4.0")),
        Environment("executorch", (TORCH, "executorch==1.5.1")),
        Environment("onnxruntime-1.18", ("onnxruntime==1.18.1", "numpy<2", "transformers==4.46.3")),
    )
}


@dataclass(frozen=True)
class Limit:
    """Something that a client cannot do with anybody's files.

    Args:
        error: A regular expression that the line of the client's error matches.
        why: The text that the table shows instead of the error.
        exports, formats: Where the limit applies; if empty, everywhere.
    """

    error: str
    why: str
    exports: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()

    def covers(self, export: str, form: str, error: str) -> bool:
        """Return whether this limit explains an error."""
        where = (not self.exports or export in self.exports) and (not self.formats or form in self.formats)
        return where and re.search(self.error, error) is not None


@dataclass(frozen=True)
class Client:
    """A program that loads what ds-distill writes.

    Args:
        name: The client's name in the table and in its file of results.
        environment: A key of ENVIRONMENTS.
        script: A file of tests/clients/scripts.
        way: How the client loads exports, in a few words for the table.
        tasks: The tasks of the exports that it loads.
        formats: The formats that it loads.
        exports: The names of the exports, if its tasks do not determine them; if empty, all of its
            tasks' exports.
        limits: What it cannot do.
        minutes: The time after which it is stopped.
        in_page: Whether the script is a page for a browser.
        cuts_last: Whether it cuts overlong texts after [SEP] has been added at their end, with
            anybody's models.
        own_copy: Whether it gets copies of the folders, with their modes, in a place that every
            user may enter.
    """

    name: str
    environment: str
    script: str
    way: str
    tasks: tuple[str, ...] = HEADS
    formats: tuple[str, ...] = ("hf",)
    exports: tuple[str, ...] = ()
    limits: tuple[Limit, ...] = ()
    minutes: float = 15
    in_page: bool = False
    own_copy: bool = False
    cuts_last: bool = False

    def takes(self, export: Export) -> bool:
        """Return whether the client is given this export."""
        return export.task in self.tasks and (not self.exports or export.name in self.exports)


ONNX, OPENVINO, TORCH_EXPORT = ("onnx", "onnx-int8"), ("openvino-int8",), ("torch-export",)
ONNX_INT4, OPENVINO_INT4 = ("onnx-int4",), ("openvino-int4",)  # where their operators are known
VECTORS = ("fill-mask", "feature-extraction")
SCORES = ("text-classification", "regression")
PAIRS = ("pairs", "bert-pairs", "roberta-pairs", "regression")
PIPELINE = "`pipeline` with its defaults, `AutoModel…`"
ENCODE, CROSS_ENCODER = "sentence_transformers_encode.py", "sentence_transformers_cross_encoder.py"


def _clients() -> Iterator[Client]:
    """Yield the clients, cheap and widespread ones first."""
    for version in ("4.46", "4.57"):
        yield Client(f"transformers {version}", f"transformers-{version}", "transformers_pipelines.py", PIPELINE)
    yield Client("transformers 5", "deploy", "transformers_pipelines.py", PIPELINE)
    yield Client("another user", "deploy", "another_user.py", "`nobody` reads every file, `AutoModel…`", own_copy=True)
    yield Client("torch alone", "torch", "torch_alone.py", "`torch.export.load`", formats=TORCH_EXPORT)
    yield Client(
        "shipped examples",
        "deploy",
        "shipped_examples.py",
        "`example_*.py`",
        formats=(*ONNX, *ONNX_INT4, *OPENVINO, *OPENVINO_INT4, *TORCH_EXPORT),
        minutes=45,  # more than eighty processes
    )
    yield Client("ONNX Runtime", "deploy", "onnxruntime_sessions.py", "`InferenceSession`", formats=(*ONNX, *ONNX_INT4))
    yield Client("ONNX Runtime 1.18", "onnxruntime-1.18", "onnxruntime_sessions.py", "`InferenceSession`", formats=ONNX)
    yield Client(
        "OpenVINO", "deploy", "openvino_models.py", "`compile_model`", formats=(*OPENVINO, *OPENVINO_INT4, *ONNX)
    )
    yield Client(
        "transformers.js in Node",
        "javascript",
        "transformers_js.mjs",
        "`pipeline` with its defaults",
        formats=(*ONNX, *ONNX_INT4),
        cuts_last=True,
    )
    yield Client(
        "transformers.js in a page",
        "javascript",
        "transformers_js.html",
        "the same, on WebAssembly",
        formats=ONNX,
        in_page=True,
        cuts_last=True,
    )
    yield Client(
        "onnxruntime-node",
        "javascript",
        "onnxruntime_node.mjs",
        "`InferenceSession.create`",
        formats=(*ONNX, *ONNX_INT4),
    )
    for version, environment in (("6", "sentence-transformers"), ("5", "optimum")):
        name = f"sentence-transformers {version}"
        yield Client(name, environment, ENCODE, "`SentenceTransformer(FOLDER)`", tasks=VECTORS)
        yield Client(
            f"{name}, pairs", environment, CROSS_ENCODER, "`CrossEncoder(FOLDER)`", tasks=SCORES, exports=PAIRS
        )
    yield Client(
        "sentence-transformers 5, ONNX and OpenVINO",
        "optimum",
        ENCODE,
        '`SentenceTransformer(FOLDER, backend="onnx")` and `"openvino"`',
        tasks=("feature-extraction",),
        formats=(*ONNX, *OPENVINO),
    )
    yield Client("optimum-onnx", "optimum", "optimum_models.py", "`ORTModel…`", formats=ONNX)
    yield Client("optimum-intel", "optimum", "optimum_models.py", "`OVModel…`", formats=OPENVINO)
    yield Client(
        "fastembed", "fastembed", "fastembed_custom.py", "a custom model", tasks=("feature-extraction",), formats=ONNX
    )
    yield Client("SetFit", "sentence-transformers", "setfit_trained.py", "trained, saved, loaded again", tasks=VECTORS)
    yield Client("PEFT", "peft", "peft_lora.py", "LoRA trained, saved, loaded again, merged", tasks=SCORES)
    yield Client("spaCy", "spacy", "spacy_transformer.py", "spacy-transformers' pipe", tasks=VECTORS, cuts_last=True)
    yield Client(
        "ExecuTorch",
        "executorch",
        "executorch_lowered.py",
        "`model.pt2` lowered to XNNPACK",
        formats=TORCH_EXPORT,
        exports=("student", "roberta", "sentences", "bert-pairs", "questions", "encoder"),  # each takes about a minute
        minutes=30,
        limits=(
            Limit(
                "execute.. failed with error 0x12",
                "its lowering fixes the batch of a question-answering model at the example's 2",
                exports=("questions",),
            ),
        ),
    )


CLIENTS = {client.name: client for client in _clients()}


def get_checks(client: Client) -> list[tuple[Export, str]]:
    """Return the exports that a client is given, each with each format that it loads."""
    return [(export, form) for export in EXPORTS.values() if client.takes(export) for form in client.formats]
