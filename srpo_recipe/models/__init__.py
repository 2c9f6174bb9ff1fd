"""Models that come without a model hub."""
