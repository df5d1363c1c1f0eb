"""The YAML files of the command line, one per thing, by group (Hydra's console entry needs this to be a package)."""
