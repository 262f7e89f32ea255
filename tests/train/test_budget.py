"""Clocks of a run, by a clock of the test."""

from types import SimpleNamespace

from sciml.train.budget import TimeBudget


def test_a_slower_machine_shortens_the_run_to_what_fits_and_a_hiccup_is_forgotten(monkeypatch):
    now = 100.0
    monkeypatch.setattr("sciml.train.budget.time", SimpleNamespace(perf_counter=lambda: now))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(max_steps=1000))
    trainer, module = SimpleNamespace(global_step=0, fit_loop=loop), SimpleNamespace(total_steps=1000)
    built = SimpleNamespace(seconds=0.0)
    budget = TimeBudget(SimpleNamespace(built={"atoms": built}), 1000.0, start=now)
    budget.on_train_start(trainer, module)
    for pace, making, step, expected in (
        (0.7, 0.2, 50, 1000),  # slow because graphs are made, once
        (1.0, 0.0, 100, 1000),
        (2.0, 0.0, 150, 552),
        (1.0, 0.0, 200, 703),  # over the last tenth of the budget
        (1.0, 0.0, 250, 955),
        (0.5, 0.0, 300, 1000),  # no more than were planned
    ):
        now += 50 * (pace + making)
        built.seconds += 50 * making
        trainer.global_step = step
        budget.on_train_batch_end(trainer, module)
        assert module.total_steps == expected
    assert loop.epoch_loop.max_steps == 1000
