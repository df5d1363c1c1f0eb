"""Memory: every strategy selects from a pool of 20,000 under a limit of address space; some make no copy at all."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

# MiB that a selection may take over the round. In float32, with N = 20,000, C = 50, D = 80, T = 28, b = 1,500: N x N is
# 1,526 MiB, N x C D 305, b x N 114, T x N x C 107.
LIMIT = 104
MORE = {  # 290: less than N x C D
    "batchbald": "joint entropies of its leaders' configurations",
    "corelog": "changes at 150 points for each candidate, and as long a row for each that is clustered",
    "coremse": "T x T numbers for each candidate, and those that are clustered once more",
    "falcun": "factors in double precision",
    "kmeans": "distances of 512 proposals to 16,384 rows, and 1,500 centres",
    "saal": "as kmeans",
    "typiclust": "as kmeans",
    "dropquery": "three passes with dropout in blocks, and k-means with 1,500 centres",
    "probcover": "features of length 1 with and without labelled ones, centred, in two precisions",
    "max_herding": "kernels that oneDNN compiles and keeps for some 40 shapes of blocks, 100 MB",
    "uncertainty_herding": "as max_herding",
    "similar": "gradients' factors in blocks against 2,048 candidates",
}
EXCEPT = {"bait": "a step inverts matrices of C D = 4,000 parameters, 64 MB each, and takes minutes"}

EVERY = r"""
import json, os, resource, signal, sys, warnings
import torch
from alenv import library
from alenv.round import Round
from alenv.streams import Streams

torch.set_num_threads(1)
limit, more, skipped = int(sys.argv[1]), sys.argv[2].split(","), sys.argv[3].split(",")
GIVEN = {"probs", "logits", "embeddings", "labeled_embeddings", "discarded_embeddings", "labels", "head", "mc_probs"}


def a_round(n, classes=50, dim=80, known=400):
    draw = Streams(0)("arrays")
    centres = 2 * torch.randn(classes, dim, generator=draw)
    x = centres[torch.arange(n + known) % classes] + torch.randn(n + known, dim, generator=draw)
    weight, bias = torch.randn(classes, dim, generator=draw) / 4, torch.zeros(classes)
    heads = weight + torch.randn(28, classes, dim, generator=draw) / 16
    return Round.from_arrays(
        logits=x[:n] @ weight.T, probs=(x[:n] @ weight.T).softmax(1), embeddings=x[:n], head=(weight, bias),
        labels=torch.arange(n, n + known) % classes, labeled_embeddings=x[n:], discarded_embeddings=x[:0],
        mc_probs=torch.stack([(x[:n] @ head.T).softmax(1) for head in heads]),
    )


def size():
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1])


now, tiny = a_round(20_000), a_round(150)
for name in library.names("strategy"):
    strategy = library.build("strategy", name)
    if not strategy.needs <= GIVEN or strategy.heads() or name in skipped:
        continue
    if (pid := os.fork()) == 0:
        warnings.simplefilter("ignore")
        strategy.select(tiny, 10)  # what libraries keep for themselves
        resource.setrlimit(resource.RLIMIT_AS, (size() + (290 if name in more else limit) * 2**20,) * 2)
        try:
            said = len(set(strategy.select(now, 1500).tolist()))
        except (MemoryError, RuntimeError) as error:
            said = str(error).splitlines()[0]
        print(json.dumps([name, said]), flush=True)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if status:
        print(json.dumps([name, f"ended with {status}"]), flush=True)
"""

COPIES = r"""
import ctypes, sys
from pathlib import Path
import torch
from alenv import library
from alenv.round import Round
from alenv.streams import Streams

torch.set_num_threads(1)


def resident(field):
    return int(next(line for line in open("/proc/self/status") if line.startswith(field)).split()[1]) / 1024


draw, classes, dim = Streams(0)("arrays"), 250, 512
for n in (1000, 48_000):  # the first call of a library is not the strategy's
    x = torch.nn.functional.normalize(torch.randn(n, dim, generator=draw))
    weight = torch.nn.functional.normalize(torch.randn(classes, dim, generator=draw))
    logits = 12 * x @ weight.T
    now = Round.from_arrays(
        probs=logits.softmax(1), logits=logits, embeddings=x, labeled_embeddings=x[:500].clone(),
        head=(weight, torch.zeros(classes)),
    )
    strategy = library.build("strategy", sys.argv[1])
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    strategy.select(now, 500)
print(resident("VmHWM") - before)
"""


def run(script, *arguments):
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PATH": ""}
    one["MALLOC_MMAP_THRESHOLD_"] = "1000000"  # arrays go back to the system when they are freed
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False, env=one, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's limits of address space")
def test_no_strategy_makes_an_array_of_pairs_of_gradients_or_of_picks_by_candidates():
    found = dict(map(json.loads, run(EVERY, str(LIMIT), ",".join(MORE), ",".join(EXCEPT))))
    assert len(found) > 35
    assert {name: said for name, said in found.items() if said != 1500} == {}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's figures of memory")
@pytest.mark.parametrize("name", ["badge", "coreset", "base", "margin"])
def test_a_large_array_of_the_round_is_not_copied(name):
    taken = float(run(COPIES, name)[-1])
    assert taken < 45  # probabilities take 46 MB, embeddings 94
