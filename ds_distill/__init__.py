"""Distil pretrained encoders into small ones during pretraining, on DeepSpeed."""

__version__ = "0.1.0"
