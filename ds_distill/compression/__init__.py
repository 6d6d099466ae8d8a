"""What makes a model smaller before it is distilled or exported, one idea per file."""
