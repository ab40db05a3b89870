"""Weights or losses that are not finite: noticed two steps late at the latest, and never saved."""

import pytest
import torch
from torch import nn

from hf_i2v.training.finite import LAG, MAX_SKIPPED, FiniteCheck, NotFiniteError

FINE = torch.tensor(1.0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["loss", "weight"])
def test_noticed_a_few_steps_late_or_at_once_when_asked(bad, where):
    parameters = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(0)), nn.Parameter(torch.ones(2, 2))]
    check, other = FiniteCheck(parameters), FiniteCheck(parameters)
    for step in (1, 2):
        check.after_step(step, FINE)
    check.now()
    loss = FINE
    if where == "loss":
        loss = torch.tensor(bad)
    else:
        parameters[2].data[1, 0] = bad
    other.after_step(3, loss)
    with pytest.raises(NotFiniteError, match=r"not finite after step 3\. Nothing is saved.*lower --learning_rate"):
        other.now()
    for late in range(LAG):
        check.after_step(3 + late, loss)
    with pytest.raises(NotFiniteError, match="after step 3"):
        check.after_step(3 + LAG, loss)


def test_steps_that_fp16_skips_are_no_error():
    check = FiniteCheck([nn.Parameter(torch.ones(3))])
    nan = torch.tensor(torch.nan)
    for step in range(MAX_SKIPPED - 1):
        check.after_step(step, nan, skipped=True)
    check.after_step(step + 1, FINE)
    check.now()
    for step in range(MAX_SKIPPED - 1):
        check.after_step(step, nan, skipped=True)
    with pytest.raises(NotFiniteError, match=f"in fp16 in {MAX_SKIPPED} steps in a row"):
        check.after_step(step, nan, skipped=True)


def test_large_weights_are_finite():
    check = FiniteCheck([nn.Parameter(torch.full((9,), 1e30))])
    check.after_step(1, FINE)
    check.now()
