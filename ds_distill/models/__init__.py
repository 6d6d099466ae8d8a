"""Teacher, student and the families of encoders that they come from, without training and data."""
