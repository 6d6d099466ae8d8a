"""The jobs behind commands, from their inputs to a summary.

Ranks distill, pretrain and evaluate together. One process alone augments, prunes, trims, tunes on several tasks
(multitask) or exports a checkpoint.
"""
