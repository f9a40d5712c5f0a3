"""Laws of the record: late but complete, one consistent history over kills and resumes, and exact failures."""

import io
import json
import math

import jax.numpy as jnp
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from cora.store import record
from cora.store.record import Clock, Diverged, Record, RecordError


def metrics(step, levels=2, loss=None):
    values = [step + i / 10 for i in range(levels)] if loss is None else loss
    return {"loss": jnp.array(values), "rank": jnp.arange(levels) + 1.0, "lr": jnp.float32(0.5)}


def run(folder, steps, *, start=0, live=False, total=100):
    with Record(folder, steps=total, start=start, live=live) as kept:
        for step in steps:
            kept.later(step, metrics(step))


def history(folder):
    return [row["step"] for row in record.read(folder / record.FILE)]


def events(folder):
    """Returns (step, tag, value) of every scalar, and the steps from which earlier events are purged."""
    found, purged = [], []
    for path in sorted((folder / record.EVENTS).iterdir()):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12:12 + size])
            data = data[16 + size:]
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            purged += [event.step] if event.HasField("session_log") else []
    return found, purged


def test_rows_are_written_one_call_late_and_none_is_lost_at_the_end(tmp_path):
    with Record(tmp_path, steps=3, start=0, live=False) as kept:
        seen = []
        for step in (1, 2, 3):
            kept.later(step, metrics(step))
            seen.append(history(tmp_path))
    assert seen == [[], [1], [1, 2]]
    assert history(tmp_path) == [1, 2, 3]


def test_an_interruption_loses_no_row(tmp_path):
    with pytest.raises(KeyboardInterrupt), Record(tmp_path, steps=9, start=0, live=False) as kept:
        kept.later(1, metrics(1))
        raise KeyboardInterrupt
    assert history(tmp_path) == [1]


def test_settling_writes_the_pending_row_once(tmp_path):
    with Record(tmp_path, steps=3, start=0, live=False) as kept:
        kept.later(1, metrics(1))
        kept.settle()
        assert history(tmp_path) == [1]
        kept.later(2, metrics(2))
    assert history(tmp_path) == [1, 2]


def test_a_row_holds_lists_for_levels_floats_for_scalars_and_the_timing(tmp_path):
    run(tmp_path, [1])
    row = json.loads((tmp_path / record.FILE).read_text())
    assert row["step"] == 1 and row["lr"] == 0.5 and row["rank"] == [1.0, 2.0]
    assert row["loss"] == pytest.approx([1.0, 1.1])
    assert {"seconds", "clips_per_second", "wait_share"} <= set(row)


def test_resuming_drops_what_came_after_the_checkpoint_and_a_line_cut_short(tmp_path):
    run(tmp_path, range(1, 8))
    with (tmp_path / record.FILE).open("a") as file:
        file.write('{"step": 8, "lo')
    run(tmp_path, range(6, 9), start=5)
    assert history(tmp_path) == list(range(1, 9))


def test_a_whole_line_without_its_newline_counts_as_cut_short(tmp_path):
    path = tmp_path / record.FILE
    path.write_text('{"step": 1}\n{"step": 2}')
    assert [row["step"] for row in record.read(path)] == [1]
    record.truncate(path, 5)
    assert path.read_text() == '{"step": 1}\n'


def test_a_new_run_in_an_old_folder_starts_its_history_anew(tmp_path):
    run(tmp_path, range(1, 4))
    run(tmp_path, [1])
    assert history(tmp_path) == [1]


def test_truncating_keeps_numbers_that_are_not_finite(tmp_path):
    path = tmp_path / record.FILE
    path.write_text('{"step": 1, "rank": [null, 2.0]}\n{"step": 2}\n')
    record.truncate(path, 1)
    assert path.read_text() == '{"step": 1, "rank": [null, 2.0]}\n'
    assert math.isnan(record.read(path)[0]["rank"][0])


@pytest.mark.parametrize("line", ["{oops", "[1]", '{"loss": 1}'])
def test_a_broken_line_in_the_middle_is_named(tmp_path, line):
    path = tmp_path / record.FILE
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(RecordError, match=r"metrics\.jsonl, line 2"):
        record.read(path)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_step_and_level_and_is_on_record(tmp_path, bad):
    with Record(tmp_path, steps=9, start=0, live=False) as kept:
        kept.later(1, metrics(1))
        kept.later(2, metrics(2, loss=[0.5, bad]))
        with pytest.raises(Diverged, match=r"level 1 .* step 2") as hit:
            kept.later(3, metrics(3))
    assert (hit.value.step, hit.value.level) == (2, 1)
    assert history(tmp_path) == [1, 2]
    assert "NaN" not in (tmp_path / record.FILE).read_text()


def test_the_last_row_can_diverge_too(tmp_path):
    with pytest.raises(Diverged, match=r"level 0 .* step 1"), Record(tmp_path, steps=9, start=0, live=False) as kept:
        kept.later(1, metrics(1, loss=[math.nan, 1.0]))


def test_steps_must_rise_also_over_a_resume(tmp_path):
    with Record(tmp_path, steps=9, start=4, live=False) as kept:
        with pytest.raises(RecordError, match=r"step 4 after step 4.*nearest: 5"):
            kept.later(4, metrics(4))
        kept.later(7, metrics(7))
        with pytest.raises(RecordError, match="step 7 after step 7"):
            kept.later(7, metrics(7))


def test_a_metric_with_two_axes_is_refused(tmp_path):
    with Record(tmp_path, steps=9, start=0, live=False) as kept:
        kept.later(1, metrics(1) | {"odd": jnp.zeros((2, 3))})
        with pytest.raises(RecordError, match=r"odd of shape \(2, 3\)"):
            kept.later(2, metrics(2))


def test_events_hold_each_level_and_a_resume_purges_later_ones(tmp_path):
    run(tmp_path, [1, 2, 3])
    run(tmp_path, [3], start=2)
    found, purged = events(tmp_path)
    assert (2, "loss/level_1", pytest.approx(2.1)) in found and (1, "lr", 0.5) in found
    assert sorted(step for step, tag, _ in found if tag == "loss/level_0") == [1, 2, 3, 3]
    assert sorted(purged) == [1, 3]


def test_a_file_gets_a_line_a_tenth_and_false_gets_nothing(tmp_path, capsys):
    out = io.StringIO()
    run(tmp_path / "a", range(1, 101), live=Console(file=out))
    lines = out.getvalue().splitlines()
    assert len(lines) == 11  # the first step, then one for each tenth
    assert lines[5].startswith("step 50/100  loss 50.0000 50.1000  rank 1.0 2.0")
    assert "waiting for data" not in lines[5] and lines[-1].endswith("0:00:00 left")
    run(tmp_path / "b", range(1, 101), live=False)
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_a_table_with_one_column_a_level(tmp_path):
    out = io.StringIO()
    run(tmp_path, [1, 2], live=Console(file=out, force_terminal=True, width=120))
    for text in ("level 0", "level 1", "2.1000", "step 2/100"):
        assert text in out.getvalue()


class Hands:
    """A clock face that the test moves."""

    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time


def turn(hands, clock, *, wait, work, clips=8):
    with clock.waiting():
        hands.time += wait
    hands.time += work
    clock.tick(clips)


def test_rates_leave_out_the_first_step_and_begin_anew_at_each_call():
    hands = Hands()
    clock = Clock(hands)
    turn(hands, clock, wait=50, work=50)
    for _ in range(2):
        turn(hands, clock, wait=1, work=3)
    assert clock.rates() == (2.0, 0.25)
    turn(hands, clock, wait=0, work=8)
    assert clock.rates() == (1.0, 0.0)
    assert clock.total() == (24 / 16, 2 / 16)
    assert clock.seconds() == 116


def test_rates_are_unknown_before_a_second_step():
    hands = Hands()
    clock = Clock(hands)
    assert all(map(math.isnan, clock.rates()))
    turn(hands, clock, wait=1, work=1)
    assert all(map(math.isnan, (*clock.rates(), *clock.total())))


def test_a_record_carries_the_rates_of_its_clock(tmp_path):
    hands = Hands()
    with Record(tmp_path, steps=3, start=0, live=False) as kept:
        kept.clock = Clock(hands)
        for step in (1, 2):
            turn(hands, kept.clock, wait=1, work=3)
            kept.later(step, metrics(step))
    first, second = record.read(tmp_path / record.FILE)
    assert math.isnan(first["clips_per_second"]) and first["seconds"] == 4
    assert (second["clips_per_second"], second["wait_share"], second["seconds"]) == (2.0, 0.25, 8)


def test_the_time_left_is_what_the_remaining_steps_will_take(tmp_path):
    out, hands = io.StringIO(), Hands()
    with Record(tmp_path, steps=30, start=10, live=Console(file=out)) as kept:
        kept.clock = Clock(hands)
        hands.time = 60.0
        kept.later(15, metrics(15))
    assert out.getvalue().rstrip().endswith("0:03:00 left")
