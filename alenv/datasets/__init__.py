"""Readers of data sets, one per file: each returns a `alenv.task.Source`."""
