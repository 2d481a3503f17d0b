"""Progress lines and the speed that they show."""

from types import SimpleNamespace

from runs import Answer, Compose, roles

from scalecap.interpreter.dispatch import RunUsage
from scalecap.run import progress
from scalecap.runner import run


def test_progress_lines_count_rows(compose: Compose, answer: Answer, monkeypatch, caplog):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    caplog.set_level("INFO", "scalecap")
    run(compose("data.limit=3"), engines=roles(answer))
    assert "0 of 3 rows" in caplog.text
    caplog.clear()
    run(compose("data.limit=4"), engines=roles(answer))
    assert "3 of 4 rows" in caplog.text
    assert "0 of 4 rows" not in caplog.text


async def test_no_line_after_the_end(monkeypatch, caplog):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    caplog.set_level("INFO", "scalecap")
    with progress.Progress(1, RunUsage(), live=False) as shown:
        shown.row(failed=False)
    assert "1 of 1 rows" in caplog.records[-1].message
    assert shown._next.cancelled()


async def test_speed_is_counted_from_the_first_row_and_not_while_a_model_loads(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))
    shown = progress.Progress(100, RunUsage(), live=False)
    now += 60  # the model loads
    with shown:
        for _ in range(50):
            shown.row(failed=False)
        now += 10
        assert str(shown).startswith("50 of 100 rows, 5.00 rows/s")
        assert str(shown).endswith("10 s left")
