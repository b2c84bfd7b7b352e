"""Attacks: synchronised BatchNorm that is not BatchNorm over all samples (output, gradients, running statistics), and
passes that leave a trace in running statistics.

Run: pytest tests/network/test_sync_batch_norm.py
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from swav import dist
from swav.errors import ConfigError
from swav.network.heads import build_network
from swav.network.sync_batch_norm import SynchronisedBatchNorm, running_statistics_kept, synchronised
from swav.recipe_files import load_recipe

CPU = torch.device("cpu")
SAMPLES, CHANNELS = 12, 5
LAYERS: dict[str, tuple[type[nn.Module], tuple[int, ...], dict[str, Any]]] = {
    "features": (nn.BatchNorm1d, (), {}),
    "maps": (nn.BatchNorm2d, (4, 3), {}),
    "volumes": (nn.BatchNorm3d, (2, 2, 3), {}),
    "another momentum": (nn.BatchNorm2d, (4, 3), {"momentum": 0.7}),
    "cumulative": (nn.BatchNorm2d, (4, 3), {"momentum": None}),
    "without weight and bias": (nn.BatchNorm2d, (4, 3), {"affine": False}),
    "without running statistics": (nn.BatchNorm2d, (4, 3), {"track_running_stats": False}),
}


def three_steps(name: str, channels_last: bool = False) -> dict[str, Tensor]:
    """This process's share of three forwards and backwards in train mode, and one forward in eval mode."""
    kind, spatial, options = LAYERS[name]
    torch.manual_seed(3)
    layer: nn.Module = kind(CHANNELS, **options).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    if dist.is_active():
        layer = synchronised(layer, CPU)
        assert isinstance(layer, SynchronisedBatchNorm)
    inputs = [torch.randn(SAMPLES, CHANNELS, *spatial).double() * (i + 1) + 10 * i for i in range(4)]
    targets = torch.randn(SAMPLES, CHANNELS, *spatial).double()
    found: dict[str, Tensor] = {}
    for i, x in enumerate(inputs):
        own = x.chunk(dist.world_size())[dist.rank()].clone()
        if channels_last:
            own = own.contiguous(memory_format=torch.channels_last)
        own.requires_grad_()
        layer.train(i < 3 or not options.get("track_running_stats", True))
        output = layer(own)
        layer.zero_grad()
        (output.sin() * targets.chunk(dist.world_size())[dist.rank()]).sum().backward()
        assert own.grad is not None
        found |= {f"output {i}": output.detach(), f"gradient {i}": own.grad}
        found |= {f"sum: {key} {i}": p.grad.clone() for key, p in layer.named_parameters() if p.grad is not None}
        found |= {f"same: {key} {i}": tensor.clone() for key, tensor in layer.named_buffers()}
        assert output.is_contiguous(memory_format=torch.channels_last) or not channels_last
    return found


@pytest.mark.parametrize("name", LAYERS)
def test_over_two_processes_it_is_batchnorm_over_all_samples(two_processes, name):
    expected, parts = three_steps(name), two_processes(three_steps, name)
    for key, value in expected.items():
        shares = [part[key] for part in parts]
        if key.startswith("same"):
            assert all(torch.equal(share, shares[0]) for share in shares)
            found = shares[0]
        else:
            found = torch.stack(shares).sum(dim=0) if key.startswith("sum") else torch.cat(shares)
        torch.testing.assert_close(found, value, rtol=1e-11, atol=1e-11)


@pytest.mark.slow
def test_over_four_processes_and_with_channels_last_too(four_processes):
    expected, parts = three_steps("maps"), four_processes(three_steps, "maps", True)
    for key in ("output 2", "gradient 2"):
        torch.testing.assert_close(torch.cat([part[key] for part in parts]), expected[key], rtol=1e-11, atol=1e-11)


def in_pairs() -> tuple[Tensor, Tensor, Tensor]:
    """This process's share of outputs and gradients, and its running variance, with statistics of two of the processes."""
    torch.manual_seed(5)
    layer, x, target = nn.BatchNorm2d(CHANNELS).double(), *torch.randn(2, SAMPLES, CHANNELS, 2, 3).double()
    if dist.is_active():
        layer = synchronised(layer, CPU, dist.neighbours(2))  # type: ignore[assignment]
    shares = [part.chunk(dist.world_size())[dist.rank()].clone() for part in (x, target)]
    own = shares[0].requires_grad_()
    output = layer(own)
    (output.sin() * shares[1]).sum().backward()
    assert own.grad is not None and layer.running_var is not None
    return output.detach(), own.grad, layer.running_var


@pytest.mark.slow
def test_groups_of_two_among_four_processes_are_two_independent_batchnorms(four_processes):
    torch.manual_seed(5)
    plain, x, target = nn.BatchNorm2d(CHANNELS).double(), *torch.randn(2, SAMPLES, CHANNELS, 2, 3).double()
    parts = four_processes(in_pairs)
    for pair, split, its_target in zip((parts[:2], parts[2:]), x.chunk(2), target.chunk(2), strict=True):
        alone, given = nn.BatchNorm2d(CHANNELS).double(), split.clone().requires_grad_()
        output = alone(given)
        (output.sin() * its_target).sum().backward()
        assert given.grad is not None and alone.running_var is not None
        for place, expected in enumerate((output.detach(), given.grad)):
            found = torch.cat([part[place] for part in pair])
            torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
        for part in pair:
            torch.testing.assert_close(part[2], alone.running_var, rtol=1e-11, atol=1e-11)
    assert not torch.allclose(parts[0][0], plain(x)[: SAMPLES // 4], atol=1e-3)  # over all it is another


def test_alone_it_is_batchnorm_and_its_gradients_are_those_of_finite_differences():
    layer = SynchronisedBatchNorm(3).double()
    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)

    def called(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        made: Tensor = torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))
        return made

    assert torch.autograd.gradcheck(called, (x, *layer.parameters()))
    torchs, ours = nn.BatchNorm1d(3).double(), SynchronisedBatchNorm(3).double()
    for layer_of_them in (torchs, ours):
        layer_of_them(x.detach())
    for key, value in torchs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_normalised_in_float32_and_come_back_as_they_were(dtype):
    layer = SynchronisedBatchNorm(4)
    x = (torch.randn(64, 4) + 50).to(dtype)
    output = layer(x)
    assert output.dtype == dtype
    torch.testing.assert_close(output.float(), nn.BatchNorm1d(4)(x.float()), rtol=0, atol=0.02)
    assert layer.running_mean is not None and layer.running_mean.dtype == torch.float32


def test_a_network_keeps_its_names_values_and_mode():
    network = build_network(load_recipe("tiny"))
    before = {name: tensor.data_ptr() for name, tensor in network.state_dict().items()}
    network.eval()
    assert synchronised(network, CPU) is network
    assert {name: tensor.data_ptr() for name, tensor in network.state_dict().items()} == before
    kinds = [type(module) for module in network.modules() if "BatchNorm" in type(module).__name__]
    assert set(kinds) == {SynchronisedBatchNorm} and len(kinds) == 21  # 20 in a ResNet-18, one in the head
    assert not any(module.training for module in network.modules())


def test_a_variety_that_nothing_can_stand_for_is_refused():
    class BatchNormAct(nn.BatchNorm2d):
        pass

    with pytest.raises(ConfigError, match=r"found BatchNormAct at 1; use sync_bn=false"):
        synchronised(nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct(4)), CPU)


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, SynchronisedBatchNorm])
def test_a_pass_without_trace_normalises_by_its_batch_and_leaves_running_statistics_even_of_a_nan(kind):
    layer, x = kind(3), torch.randn(8, 3, 2, 2)
    expected = layer(x)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    with running_statistics_kept(nn.Sequential(layer)):
        assert torch.equal(layer(x), expected)
        layer(x * float("nan"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())
    layer(x)
    assert not torch.equal(layer.running_mean, before["running_mean"])
