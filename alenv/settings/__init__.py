"""Settings, one per file: how a source becomes the splits of a task."""
