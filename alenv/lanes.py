"""Many runs side by side in one process: each goes on alone until it trains, and trainings that wait are computed together."""

import queue
import threading
from collections.abc import Callable, Sequence

import torch

from alenv.job import Job
from alenv.model import TaskModel
from alenv.trainer import Trainer

Errand = Callable[["LaneTrainer"], None]


class LaneTrainer(Trainer):
    """A trainer whose `fit` waits for the other lanes. Only `run_lanes` makes it work.

    Args:
        trainer: what it does everything else like, and who fits in the end.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.__dict__.update(trainer.__dict__)
        self._wake = threading.Semaphore(0)
        self._asked: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._model: TaskModel

    def fit(self, job: Job) -> TaskModel:
        """Hand `job` over, let the others go on, and return the model once all of them wait or are done."""
        self._asked.put(job)
        self._wake.acquire()
        return self._model

    def next_job(self) -> Job | None:
        """Let this lane run until it needs a training, and return that; None if it is done."""
        self._wake.release()
        return self._asked.get()

    def answer(self, model: TaskModel) -> None:
        """Give it the model it waits for, at its next turn."""
        self._model = model

    def live(self, errand: Errand) -> None:
        """Do the errand, in the thread this is called in."""
        self._wake.acquire()
        torch.set_num_threads(1)  # a setting of each thread
        try:
            errand(self)
        finally:
            self._asked.put(None)


def run_lanes(errands: Sequence[Errand], trainer: Trainer) -> None:
    """Do all errands, each with a trainer of its own; `trainer.fit_many` computes what they train.

    One errand runs at a time: the threads only remember where each of them was, so nothing needs to be thread-safe and nothing
    depends on timing. Errands keep their errors to themselves.
    """
    lanes = [LaneTrainer(trainer) for _ in errands]
    for lane, errand in zip(lanes, errands, strict=True):
        threading.Thread(target=lane.live, args=(errand,), daemon=True).start()
    while lanes:
        asked = [(lane, job) for lane in lanes if (job := lane.next_job()) is not None]
        if not asked:
            return
        for (lane, _), model in zip(asked, trainer.fit_many([job for _, job in asked]), strict=True):
            lane.answer(model)
        lanes = [lane for lane, _ in asked]
