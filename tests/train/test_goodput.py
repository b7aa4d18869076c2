"""Wall time is accounted for, with an injected clock."""

import pytest

from mixcon.train.goodput import Goodput


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_all_time_is_claimed_by_one_kind():
    clock = Clock()
    goodput = Goodput(clock)
    for kind, seconds in (("compile", 5.0), ("step", 8.0), ("data_wait", 1.0), ("step", 10.0)):
        with goodput.measure(kind):
            clock.now += seconds
    clock.now += 1.0  # nobody's
    found = goodput.summary()
    assert (found["compile"], found["step"], found["data_wait"], found["other"], found["total"]) == (5, 18, 1, 1, 25)
    assert found["loop_overhead"] == pytest.approx(2 / 20)
    assert "step 18.0s (72%)" in goodput.line()


def test_time_is_claimed_even_when_the_block_fails():
    clock = Clock()
    goodput = Goodput(clock)

    def fail():
        with goodput.measure("eval"):
            clock.now += 2.0
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert goodput.summary()["eval"] == 2.0
