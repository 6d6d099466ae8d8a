"""What the process that tests fork from has loaded: importing it takes longer than most runs."""

import deepspeed.runtime.zero.muon.original_muon  # noqa: F401  (what ZeRO imports when it begins)
import matplotlib.pyplot  # noqa: F401
import torch.utils.tensorboard  # noqa: F401
from transformers import (  # noqa: F401
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    DistilBertForMaskedLM,
    RobertaForMaskedLM,
)

import ds_distill.cli
import ds_distill.demo
import ds_distill.environment
import ds_distill.evidence
import ds_distill.finetune.tune
import ds_distill.parser
import ds_distill.plan
import ds_distill.runs  # noqa: F401
from ds_distill.training.kernels import build_optimizer

ds_distill.parser.build_parser()  # imports the parser's library
build_optimizer()
