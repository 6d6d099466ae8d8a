"""The jobs that ranks do together on prepared tokens: distill, pretrain, evaluate, and export a checkpoint."""
