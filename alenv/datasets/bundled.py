"""Tables that scikit-learn carries: wine (178 x 13, 3 classes), breast_cancer (569 x 30, 2), iris (150 x 4, 3)."""

from typing import Literal

import torch

from alenv.task import Examples, Source, number_ids

TEST_SHARE = 1 / 3


def bundled(table: Literal["wine", "breast_cancer", "iris"]) -> Source:
    """Return one of the tables; the test examples are a fixed random third, features are standardised by the rest."""
    import sklearn.datasets

    loaders = {name: getattr(sklearn.datasets, f"load_{name}") for name in ("wine", "breast_cancer", "iris")}
    if table not in loaders:
        raise ValueError(f"expected table to be one of {', '.join(loaders)}, got '{table}'")
    bunch = loaders[table]()
    features, targets = torch.from_numpy(bunch.data).float(), torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    cut = int(TEST_SHARE * len(features))
    examples = Examples(features, targets, number_ids(len(features)))
    train, test = examples.take(order[cut:].sort().values), examples.take(order[:cut].sort().values)
    spread = train.inputs.std(0, unbiased=False).clamp(min=1e-6)
    return Source(table, train, test, tuple(str(name) for name in bunch.target_names), train.inputs.mean(0), spread)
