"""``trainer.profile=true``: where the time of some steps goes, as a trace and as a table."""

from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from sciml.files import write_text
from sciml.train.progress import say

SKIPPED, RECORDED = 3, 3  # optimizer steps; the first ones compile kernels and fill caches
ROWS = 25


class Profile(Callback):
    """Records a few optimizer steps of the first process after the first ones.

    Writes ``trace.json``, which chrome://tracing and Perfetto show, and ``table.txt`` with the dearest operations.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._first = 0
        self._profiler: torch.profiler.profile | None = None
        self._written = False

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self._first = trainer.global_step + min(SKIPPED, max(module.total_steps - trainer.global_step - 1, 0))

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        due = trainer.is_global_zero and not self._written and trainer.global_step >= self._first
        if due and self._profiler is None:
            self._profiler = torch.profiler.profile()
            self._profiler.start()

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step >= self._first + RECORDED:
            self._write()

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        self._write()

    def on_exception(self, trainer: lightning.Trainer, module: Any, exception: BaseException) -> None:
        self._write()

    def _write(self) -> None:
        """Stop recording, and write what was recorded; once."""
        if self._profiler is None:
            return
        profiler, self._profiler, self._written = self._profiler, None, True
        profiler.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self.folder / "trace.json"))
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=50)
        write_text(self.folder / "table.txt", table)
        say(f"profile of {RECORDED} steps: {self.folder / 'table.txt'} and trace.json, for ui.perfetto.dev")
