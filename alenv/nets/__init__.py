"""Task networks, one per file: each builds an `alenv.model.TaskModel`."""
