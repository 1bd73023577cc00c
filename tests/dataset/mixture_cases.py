"""Mixtures of data sets that are numbers, and of sources that fail."""

import dataclasses
import os
import pathlib

import numpy as np

from openpi_b1k.data.b1k import BadSampleError
from openpi_b1k.data.mixture import Mixture, Source
from openpi_b1k.data.order.lanes import LaneOrder
from openpi_b1k.data.order.slots import Mixing

SPAN = 10
SPANS = Mixing(2, is_sequential=True)


@dataclasses.dataclass
class Numbers:
    """Samples whose every field is their number; it notes which worker process was asked for what, and in which run."""

    size: int
    bad: tuple[int, ...] = ()
    offset: int = 0
    notes: pathlib.Path | None = None

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        return self.get(i)

    def get(self, i, run=None):
        if self.notes is not None:
            with (self.notes / str(os.getpid())).open("a") as file:
                file.write(f"{i} {-1 if run is None else run[0]}\n")
        if i in self.bad:
            raise BadSampleError(f"sample {i} is bad")
        return {"number": i + self.offset}


@dataclasses.dataclass
class Table:
    """Spans of SPAN samples."""

    size: int

    @property
    def count(self):
        return np.full(self.size // SPAN, SPAN)

    @property
    def row(self):
        return np.zeros(self.size // SPAN, np.int64)

    def samples(self, span, epoch):
        return span * SPAN + np.arange(SPAN)


def to_model_sample(sample):
    number = np.array(sample["number"])
    images = {"head": number}
    names = ("state", "prompt_tokens", "prompt_mask", "actions", "action_mask")
    return {"images": images, "image_masks": images} | dict.fromkeys(names, number)


def source(dataset, weight=1.0, pipeline=to_model_sample, mixing=SPANS, seed=0):
    order = LaneOrder(Table(len(dataset)), np.zeros(1, np.int64), mixing, seed)
    return Source("numbers", weight, dataset, pipeline, order)


def numbers(size=1000, **changes):
    return Mixture([source(Numbers(size, **changes))])
