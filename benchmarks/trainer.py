"""What training costs beside the plainest loop that does the same, and what reading cached embeddings costs.

    OMP_NUM_THREADS=1 python benchmarks/trainer.py [--repeats 5] [--only data_path resnet embeddings]

* data path: epochs of a linear layer and of small_cnn on 2,048 resident 3 x 32 x 32 byte images, shifted and flipped one by one,
  against a loop over tensors with the same augmentation, batches and optimiser (goal: at most 1.1 times the loop)
* ResNet-18: an epoch on 512 images of 32 x 32 in batches of 128 as the trainer runs it (bfloat16 and channels-last where they are
  native) against float32 as PyTorch runs it (goal: at least 2.3 times as fast): a first epoch with all it takes to begin, and
  what a further one adds; then the trainer's accuracy in both after some epochs
* embeddings: opening a checked, mapped file of 50,000 x 384 float32 (goal: under .2 s)
"""

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alenv import embedding
from alenv.augment import augmented
from alenv.device import has_native_bfloat16
from alenv.job import Job
from alenv.model import TaskModel
from alenv.nets.resnet import resnet as resnet18
from alenv.nets.small_cnn import small_cnn
from alenv.streams import Streams
from alenv.task import Augmentation
from alenv.trainer import Trainer

EPOCHS, BATCH = 8, 128  # of ResNet-18
SHIFTS = Augmentation(pad=4, flip=True)


def seconds(run: Callable[[], object]) -> float:
    """Return CPU seconds: what others do on the machine counts little. With one thread they are seconds of an idle machine."""
    start = time.process_time()
    run()
    return time.process_time() - start


def ratio(one: Callable[[], object], other: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """Return the median seconds of both, measured in turns, and the median ratio."""
    pairs = [(seconds(one), seconds(other)) for _ in range(repeats)]
    return (
        statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), statistics.median(a / b for a, b in pairs)
    )  # fmt: skip


def images(count: int, name: str = "images", classes: int = 10) -> tuple[Tensor, Tensor]:
    """Return noisy images of `classes` blurred patterns, and their classes."""
    draw = Streams(0)(name)
    patterns = F.interpolate(torch.rand(classes, 3, 4, 4, generator=Streams(0)("patterns")), 32, mode="bilinear")
    targets = torch.randint(0, classes, (count,), generator=draw)
    noisy = patterns[targets] * 255 + 60 * torch.randn(count, 3, 32, 32, generator=draw)
    return noisy.clamp(0, 255).to(torch.uint8), targets


def tiny() -> TaskModel:
    return TaskModel(nn.Sequential(nn.AvgPool2d(8), nn.Flatten()), 48, 10, mean=120.0, std=60.0)


def cnn() -> TaskModel:
    return small_cnn((3, 32, 32), 10, 120.0, 60.0, dropout=0.0)


def plain_loop(make: Callable[[], TaskModel], inputs: Tensor, targets: Tensor, epochs: int, batch: int) -> None:
    """Train as a person would who has tensors and no library."""
    net = make()
    body = nn.Sequential(net.body, net.linear).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.01, fused=True)
    generator = torch.Generator().manual_seed(0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs), generator=generator).split(batch):
            x = augmented(inputs[rows], SHIFTS, generator)
            loss = F.cross_entropy(body((x.float() - 120) / 60), targets[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()


def plain_resnet(inputs: Tensor, targets: Tensor, epochs: int, batch: int) -> nn.Module:
    """Train ResNet-18 in float32, channels first."""
    with Streams(0).scoped("init"):
        net = resnet18((3, 32, 32), 10, 120.0, 60.0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.01, fused=True)
    generator = torch.Generator().manual_seed(0)
    net.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs), generator=generator).split(batch):
            loss = F.cross_entropy(net(inputs[rows]), targets[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return net.eval()


def data_path(repeats: int) -> None:
    inputs, targets = images(2048)
    epochs, batch = 2, 64
    trainer = Trainer(device="cpu", epochs=epochs, min_steps=1, batch_size=batch, precision="float32")
    for name, net in {"a linear layer": tiny, "small_cnn": cnn}.items():
        job = Job(net, inputs, targets, Streams(0), augmentation=SHIFTS)

        def plain(make: Callable[[], TaskModel] = net) -> None:
            plain_loop(make, inputs, targets, epochs, batch)

        ours, loop, times = ratio(functools.partial(trainer.fit, job), plain, repeats)
        print(f"data path, {name}: {1e3 * ours / epochs:.0f} ms an epoch, loop {1e3 * loop / epochs:.0f} ms, ratio {times:.2f}")


def resnet(repeats: int) -> None:
    inputs, targets = images(512)
    print(f"bfloat16 is native here: {has_native_bfloat16(torch.device('cpu'))}; {torch.get_num_threads()} threads")

    def ours(epochs: int = 1, precision: Literal["auto", "float32"] = "auto") -> TaskModel:
        trainer = Trainer(device="cpu", epochs=epochs, min_steps=1, batch_size=BATCH, precision=precision)
        return trainer.fit(Job(lambda: resnet18((3, 32, 32), 10, 120.0, 60.0), inputs, targets, Streams(0)))

    first, further = [], []
    for _ in range(repeats):
        slow = [seconds(functools.partial(plain_resnet, inputs, targets, epochs, BATCH)) for epochs in (1, 2)]
        fast = [seconds(functools.partial(ours, epochs)) for epochs in (1, 2)]
        first.append((slow[0], fast[0]))
        further.append((slow[1] - slow[0], fast[1] - fast[0]))
    for what, pairs in {"a first epoch": first, "a further one": further}.items():
        plain, quick = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
        times = statistics.median(one / other for one, other in pairs)
        print(f"ResNet-18, 512 images, {what}: float32 {plain:.1f} s, trainer {quick:.1f} s, {times:.2f} times as fast")
    unseen, classes = images(500, "unseen")
    for precision in ("auto", "float32"):  # the same schedule, batches and initial weights
        logits = Trainer(device="cpu", precision=precision).outputs(ours(EPOCHS, precision), unseen).logits
        accuracy = float((logits.argmax(1) == classes).float().mean())
        print(f"accuracy after {EPOCHS} epochs, precision={precision}: {accuracy:.3f}")


def embeddings(repeats: int) -> None:
    shown = embedding.Shown(torch.randn(50_000, 384, generator=Streams(0)("rows")), None, torch.zeros(()), torch.ones(()))
    with tempfile.TemporaryDirectory() as folder:
        encoder = embedding.Given(nn.Identity(), batch_size=5000)
        once = seconds(lambda: embedding.embed(encoder, shown, torch.device("cpu"), Path(folder)))
        again = [seconds(lambda: embedding.embed(encoder, shown, torch.device("cpu"), Path(folder))) for _ in range(repeats)]
        file = next((Path(folder) / "embeddings").glob("*.npy"))
        checked = [seconds(lambda: embedding._read(file)) for _ in range(repeats)]
    print(
        f"embeddings 50,000 x 384: written in {once:.2f} s, opened again in {statistics.median(again):.3f} s "
        f"(checksum and mapping {statistics.median(checked):.3f} s, the rest is the hash of the data set)"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=["data_path", "resnet", "embeddings"])
    options = parser.parse_args()
    print(f"torch {torch.__version__}, medians of {options.repeats}")
    for measure in (data_path, resnet, embeddings):
        if measure.__name__ in options.only:
            measure(options.repeats)


if __name__ == "__main__":
    main()
