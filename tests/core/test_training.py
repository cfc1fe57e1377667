"""Training steps through our layers: optimizers, checkpointing and the tensors that are saved."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import momentnorm
from momentnorm.functional import instance_norm
from support.pairs import feature_map, norm_pair


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_activation_checkpointing(backend, use_reentrant, training):
    layer, _ = norm_pair(training)
    x = feature_map().requires_grad_()
    leaves = (x, *layer.parameters())
    for leaf in leaves:
        leaf.grad = None
    layer(x).pow(3).sum().backward()
    wanted = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    checkpoint(layer, x, use_reentrant=use_reentrant).pow(3).sum().backward()
    for leaf, gradient in zip(leaves, wanted, strict=True):
        torch.testing.assert_close(leaf.grad, gradient)


def test_saved_tensor_hooks_and_anomaly_mode(backend):
    layer, _ = norm_pair()
    x = feature_map().requires_grad_()
    (wanted,) = torch.autograd.grad(layer(x).pow(3).sum(), x)
    packed = []

    def pack(tensor):
        packed.append(tensor)
        return tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(x)
    assert packed
    with pytest.warns(UserWarning, match="Anomaly"), torch.autograd.detect_anomaly():
        (found,) = torch.autograd.grad(y.pow(3).sum(), x)
    torch.testing.assert_close(found, wanted)


def test_what_backward_saves_is_small(backend):
    if backend == "reference":
        pytest.skip("memory matters where kernels run")
    x = torch.randn(2, 3, 16, 16, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        instance_norm(x, weight=torch.ones(3, requires_grad=True))
    large = [t for t in saved if t.numel() == x.numel()]
    assert len(large) == 1
    assert large[0].data_ptr() == x.data_ptr()
    assert sum(t.numel() for t in saved) <= x.numel() + 3 + 2 * 6


def _model(norm):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        norm(4, affine=True, track_running_stats=True),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 2, 3),
        norm(2, affine=True),
    ).double()


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
        lambda p: torch.optim.Adam(p, 0.01, foreach=True),
        lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    ],
)
def test_training_takes_the_same_steps(backend, optimizer):
    x, target = feature_map(4, 3, 9, 9), feature_map(4, 2, 5, 5)
    losses = []
    for norm in (momentnorm.InstanceNorm2d, nn.InstanceNorm2d):
        model = _model(norm)
        steps = optimizer(model.parameters())
        for _ in range(5):
            steps.zero_grad()
            loss = F.mse_loss(model(x), target)
            loss.backward()
            steps.step()
        losses.append([loss.detach(), *model.state_dict().values()])
    for mine, right in zip(*losses, strict=True):
        torch.testing.assert_close(mine, right)


def test_distributed_data_parallel(backend, tmp_path):
    import torch.distributed as dist

    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = _model(momentnorm.InstanceNorm2d)
        parallel = nn.parallel.DistributedDataParallel(copy.deepcopy(model))
        x = feature_map(4, 3, 9, 9)
        for net in (model, parallel):
            net(x).square().sum().backward()
        for alone, shared in zip(model.parameters(), parallel.parameters(), strict=True):
            torch.testing.assert_close(shared.grad, alone.grad)
    finally:
        dist.destroy_process_group()
