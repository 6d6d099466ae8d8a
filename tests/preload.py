"""The modules that are loaded in the process from which tests fork.

Importing them takes longer than most runs.
"""

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

import ds_distill.cli.app
import ds_distill.cli.parser
import ds_distill.demo.run
import ds_distill.environment
import ds_distill.estimate.estimate
import ds_distill.finetune.trainer
import ds_distill.pipeline  # noqa: F401
import ds_distill.study.report
from ds_distill.builds.fused_adam import build_optimizer

ds_distill.cli.parser.build_parser()  # imports the parser's library
build_optimizer()
