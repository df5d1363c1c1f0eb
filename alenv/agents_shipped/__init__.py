"""Trained agents that come with alenv; each JSON file says what made it."""
