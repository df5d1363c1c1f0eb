"""Encoders, one per file: how stored inputs become features for strategies that ask for them by name."""
