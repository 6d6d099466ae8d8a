"""From text to tokens to batches; this package knows no model."""
