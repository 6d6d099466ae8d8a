"""Teacher, student and the families of encoders they come from.  Knows no training and no data."""
