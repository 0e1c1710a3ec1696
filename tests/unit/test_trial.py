"""How long suspects are on trial."""

from __future__ import annotations

from pgworker.model.trial import trial


def test_each_suspicion_makes_the_trial_longer_until_it_outlasts_any_job() -> None:
    seconds = [trial(suspicions) for suspicions in range(30)]
    assert seconds[:4] == [0.0, 0.5, 2.0, 8.0]
    assert seconds == sorted(seconds)
    assert seconds[8] > 1800.0, "longer than the timeout of a task that says nothing"
    assert seconds[-1] * 1e9 < 2**62, "fits into a word of the board"
