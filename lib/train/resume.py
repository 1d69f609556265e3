"""The order in which training takes its rows, which a resumption must find again."""

import numpy as np
import torch
from transformers.trainer_pt_utils import get_length_grouped_indices


class Order(torch.utils.data.Sampler):
    """Rows of like length together (little padding), in an order that hangs on seed and epoch alone: the same on every
    rank, for any number of ranks, and after a resumption, for which transformers' own would draw a later epoch's order
    anew. An epoch's last step is filled up with rows of its first."""

    def __init__(self, trainer, rows: int):
        self.trainer, self.rows = trainer, rows
        self.lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]]

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.rows) * self.rows

    def __iter__(self):
        key = np.random.default_rng([self.trainer.args.seed, int(self.trainer.state.epoch or 0)]).integers(2**62)
        generator = torch.Generator().manual_seed(int(key))
        order = get_length_grouped_indices(self.lengths, self.rows, generator=generator)
        return iter((order * self.rows)[: len(self)])
