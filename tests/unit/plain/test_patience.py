"""Who works in silence says so, and nobody else."""

from __future__ import annotations

import pytest

from kdump_elftool.plain.patience import Patience


@pytest.fixture
def world():
    """``now[0]`` is the time; what was said."""
    now, said = [100.0], []
    return now, said, Patience(said.append, lambda: now[0])


def test_a_silent_command_is_heard_of_every_three_seconds(world):
    now, said, patience = world
    with patience.at_work("kd-bt"):
        for _ in range(15):
            now[0] += 0.5
            patience.tick()
    assert said == [
        "(kd-bt is still at work after 3 s; Ctrl-C ends it)\n",
        "(kd-bt is still at work after 6 s; Ctrl-C ends it)\n",
    ]


def test_output_is_enough(world):
    now, said, patience = world
    with patience.at_work("kd-list"):
        for _ in range(20):
            now[0] += 1
            patience.heard()
            patience.tick()
    assert said == []


def test_nothing_is_said_between_commands(world):
    now, said, patience = world
    with pytest.raises(KeyError), patience.at_work("ps"):
        raise KeyError
    now[0] += 100
    patience.tick()
    assert said == []


def test_what_is_called_in_turn_is_part_of_it(world):
    now, said, patience = world
    with patience.at_work("ps"):
        now[0] += 2
        with patience.at_work("$kd_task"):
            now[0] += 2
        patience.tick()
    assert said == ["(ps is still at work after 4 s; Ctrl-C ends it)\n"]
