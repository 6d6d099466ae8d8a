"""The clients: where each runs, what it loads, and what is its own limit, not the files'."""

from __future__ import annotations

import re
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
    """What a client cannot do with anybody's files.

    Args:
        error: A regular expression that its error's line matches.
        why: Said in the table instead of the error.
        exports, formats: Where it applies; everywhere when empty.
    """

    error: str
    why: str
    exports: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()

    def covers(self, export: str, form: str, error: str) -> bool:
        """Whether this limit is the reason of an error."""
        where = (not self.exports or export in self.exports) and (not self.formats or form in self.formats)
        return where and re.search(self.error, error) is not None


@dataclass(frozen=True)
class Client:
    """A program that loads what ds-distill writes.

    Args:
        name: In the table, and of its file of results.
        environment: A key of ENVIRONMENTS.
        script: A file of tests/clients/scripts.
        way: How it loads them, in a few words for the table.
        tasks: Of the exports that it loads.
        formats: That it loads.
        exports: Names of the exports where its tasks do not tell; all of its tasks when empty.
        limits: What it cannot do.
        minutes: After which it is stopped.
        in_page: The script is a page for a browser.
        own_copy: It gets copies of the folders, with their modes, in a place that every user may enter.
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

    def takes(self, export: Export) -> bool:
        """Whether it is given this export."""
        return export.task in self.tasks and (not self.exports or export.name in self.exports)


ONNX = ("onnx", "onnx-int8")

CLIENTS = {
    client.name: client
    for client in (
        Client("transformers 4.46", "transformers-4.46", "transformers_pipelines.py", "`pipeline` with its defaults, `AutoModel…`"),
        Client("transformers 4.57", "transformers-4.57", "transformers_pipelines.py", "`pipeline` with its defaults, `AutoModel…`"),
        Client("transformers 5", "deploy", "transformers_pipelines.py", "`pipeline` with its defaults, `AutoModel…`"),
        Client("another user", "deploy", "another_user.py", "as `nobody`: every file read, `AutoModel…`", own_copy=True),
        Client("torch alone", "torch", "torch_alone.py", "`torch.export.load`, nothing else installed", formats=("torch-export",)),
        Client("shipped examples", "deploy", "shipped_examples.py", "each `example_*.py`, in a process of its own",
               formats=("onnx", "onnx-int8", "openvino-int8", "torch-export")),
        Client("ONNX Runtime", "deploy", "onnxruntime_sessions.py", "`InferenceSession`", formats=ONNX),
        Client("ONNX Runtime 1.18", "onnxruntime-1.18", "onnxruntime_sessions.py", "`InferenceSession`", formats=ONNX),
        Client("OpenVINO", "deploy", "openvino_models.py", "`compile_model`", formats=("openvino-int8", *ONNX)),
        Client("transformers.js in Node", "javascript", "transformers_js.mjs", "`pipeline` with its defaults; pairs by tokenizer and model", formats=ONNX),
        Client("transformers.js in a page", "javascript", "transformers_js.html", "the same in headless Chromium, on WebAssembly", formats=ONNX,
               in_page=True),
        Client("onnxruntime-node", "javascript", "onnxruntime_node.mjs", "`InferenceSession.create`", formats=ONNX),
        Client("sentence-transformers 6", "sentence-transformers", "sentence_transformers_encode.py", "`SentenceTransformer(FOLDER)`; pairs by `CrossEncoder`",
               tasks=("fill-mask", "feature-extraction", "text-classification", "regression")),
        Client("sentence-transformers 5", "optimum", "sentence_transformers_encode.py", "`SentenceTransformer(FOLDER)`; pairs by `CrossEncoder`",
               tasks=("fill-mask", "feature-extraction", "text-classification", "regression")),
        Client("sentence-transformers 5, backends", "optimum", "sentence_transformers_encode.py", '`SentenceTransformer(EMBEDDER, backend="onnx")`, "openvino"',
               tasks=("feature-extraction",), formats=(*ONNX, "openvino-int8")),
        Client("optimum-onnx", "optimum", "optimum_models.py", "`ORTModel…`", formats=ONNX),
        Client("optimum-intel", "optimum", "optimum_models.py", '`OVModel…`, `subfolder="openvino"`', formats=("openvino-int8",)),
        Client("fastembed", "fastembed", "fastembed_custom.py", "`TextEmbedding.add_custom_model`", tasks=("feature-extraction",), formats=ONNX),
        Client("SetFit", "sentence-transformers", "setfit_trained.py", "loaded, trained, saved, loaded again", tasks=("fill-mask", "feature-extraction")),
        Client("PEFT", "peft", "peft_lora.py", "LoRA put on, trained, saved, loaded again, merged", tasks=("text-classification", "regression")),
        Client("spaCy", "spacy", "spacy_transformer.py", "spacy-transformers' pipe", tasks=("fill-mask", "feature-extraction")),
        Client("ExecuTorch", "executorch", "executorch_lowered.py", "`torch/model.pt2` lowered to XNNPACK", formats=("torch-export",), minutes=40,
               exports=("student", "roberta", "sentences", "bert-pairs", "questions", "encoder")),
    )
}  # fmt: skip


def checks_of(client: Client) -> list[tuple[Export, str]]:
    """Return the exports that a client is given, each with each format that it loads."""
    return [(export, form) for export in EXPORTS.values() if client.takes(export) for form in client.formats]
