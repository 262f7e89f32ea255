"""A step that does not fit into memory is computed again in smaller pieces, as all ranks agree."""

import itertools
from collections.abc import Callable, Iterator

import torch

from sciml.data.graph_dataset import LoadedBatch
from sciml.errors import UserError
from sciml.graph import collate


def pieces_of(micro_batch: LoadedBatch, count: int) -> Iterator[LoadedBatch]:
    """Cut a micro-batch into ``count`` runs of its graphs, or as many as it has graphs.

    The denominators are those of the whole step, so the losses of the pieces sum to that of the micro-batch.
    """
    graphs = micro_batch.batch.num_graphs
    count = min(count, graphs)
    if count == 1:
        yield micro_batch
        return
    device = micro_batch.batch.positions.device
    ends = [round(index * graphs / count) for index in range(count + 1)]
    for first, last in itertools.pairwise(ends):
        batch = collate(micro_batch.batch.get_example(index) for index in range(first, last)).to(device)
        yield micro_batch._replace(batch=batch, items=micro_batch.items[first:last])


class SplitStep:
    """Sums the gradients of a step's micro-batches in ``pieces``, and doubles their number where memory runs out.

    ``backward`` adds the gradients of a (piece of a) micro-batch to the parameters of this rank alone, without a word
    to other ranks; ``reset`` drops what was summed; ``anywhere`` tells whether something holds on any rank. All ranks
    ask that once a micro-batch, so all of them compute again when one has to, and stay in step. A number of pieces is
    kept for later steps.
    """

    def __init__(
        self,
        backward: Callable[[LoadedBatch], None],
        reset: Callable[[], None],
        anywhere: Callable[[bool], bool],
    ) -> None:
        self.backward, self.reset, self.anywhere = backward, reset, anywhere
        self.pieces = 1
        self._done: list[LoadedBatch] = []

    def begin(self) -> None:
        """Begin an optimizer step."""
        self._done = []
        self.reset()

    def add(self, micro_batch: LoadedBatch) -> None:
        """Add the gradients of a micro-batch. Raises UserError, on all ranks, where a single graph does not fit."""
        self._done.append(micro_batch)
        missing = [micro_batch]
        while self.anywhere(not self._fits(missing)):
            if not self.anywhere(self.pieces < max(done.batch.num_graphs for done in self._done)):
                raise UserError(
                    "memory: a step does not fit, not even graph by graph; set trainer.recompute=true, give a smaller "
                    "model, or leave out the largest records with a smaller data.cutoff or another store."
                )
            self.pieces *= 2
            self.reset()
            missing = self._done

    def _fits(self, micro_batches: list[LoadedBatch]) -> bool:
        try:
            for micro_batch in micro_batches:
                for piece in pieces_of(micro_batch, self.pieces):
                    self.backward(piece)
        except torch.OutOfMemoryError:
            fits = False
        else:
            fits = True
        if not fits and torch.cuda.is_available():  # only here has the traceback let go of the tensors
            torch.cuda.empty_cache()
        return fits
