"""check leaves the model, its input and torch's generators unchanged."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import momentnorm
from momentnorm import check
from support.checkup_cases import (
    every_library,
    noise,
)


class _Careless(nn.Module):
    """Model that changes its input, buffers, attributes and mode."""

    def __init__(self, library, fails):
        super().__init__()
        self.norm = library.BatchNorm2d(3)
        self.tracked = library.InstanceNorm2d(3, track_running_stats=True)
        self.gated = momentnorm.BatchInstanceNorm2d(3)
        self.gated.gate.data.fill_(2)
        self.register_buffer("steps", torch.zeros(1))
        self.fails = fails

    def forward(self, x):
        x.mul_(2)
        self.steps += 1
        self.steps = self.steps * 2
        self.new = x
        x = self.norm(x) + torch.randn_like(x)
        x = self.gated(self.tracked(x))
        self.eval()
        if self.fails:
            raise RuntimeError("on purpose")
        return x


@every_library
@pytest.mark.parametrize("fails", [True, False])
def test_the_model_is_unchanged(fails, library):
    model, x = _Careless(library, fails), noise()
    model.norm.eval()
    tensors = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    before = {name: (tensor, tensor.clone(), tensor._version) for name, tensor in tensors.items()}
    input_before, random = x.clone(), torch.get_rng_state()
    with torch.enable_grad():
        report = check(model, x)
        assert torch.is_grad_enabled()
    assert bool(report.of("exception")) is fails
    after = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    assert list(after) == list(before)
    for name, (tensor, value, version) in before.items():
        assert after[name] is tensor
        assert torch.equal(tensor, value), name
        assert tensor._version == version, name
    assert torch.equal(x, input_before)
    assert torch.equal(torch.get_rng_state(), random)
    assert (model.training, model.norm.training, model.tracked.training) == (True, False, True)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_keyboard_interrupt_leaves_the_model_unchanged():
    norm = nn.BatchNorm2d(3)

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = norm.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        check(norm, noise())
    assert norm.num_batches_tracked == 0
    assert list(norm._forward_hooks) == [handle.id]
