"""Reports of a run's figures to TensorBoard and to experiment trackers, while it trains."""
