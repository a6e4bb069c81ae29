"""What a network on several devices needs, without several: which strategies, and BatchNorm over all of a batch."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy
from torch import nn

from cifar_resnet.compose import Composer
from cifar_resnet.errors import UsageError
from cifar_resnet.instantiation import instantiate
from cifar_resnet.models.parallel import check_strategy
from cifar_resnet.optim import SAM, frozen_statistics

SAM_OF_SGD = partial(SAM, base=torch.optim.SGD)
NETWORKS = (
    "model=speednet model.widths=[24,24,24]",
    "model=resnet_cifar model.depth=8 model.widths=[4,4,4]",
    "model=preact_resnet_cifar model.depth=11 model.widths=[4,4,4]",
    "model=custom_resnet model.stem_width=4 model.widths=[4,8,8]",
    "model=pyramidnet model.depth=20 model.alpha=8",
)


@pytest.mark.parametrize("settings", NETWORKS)
def test_sync_batchnorm_changes_how_a_network_normalises_and_nothing_else(settings):
    torch.manual_seed(0)
    cfg = Composer("train").jobs(settings.split())[0].cfg
    network = instantiate(cfg.model, num_classes=10, _convert_="all")
    images = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        network(images)  # moves the statistics
    network.eval()
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    parameters, state, expected = list(network.parameters()), copy.deepcopy(network.state_dict()), network(images)
    learns = [parameter.requires_grad for parameter in parameters]

    converted = TorchSyncBatchNorm().apply(network)  # as Lightning does before a training
    synced = [module for module in converted.modules() if isinstance(module, nn.SyncBatchNorm)]
    assert len(synced) == len(norms) > 0
    assert not any(isinstance(module, nn.BatchNorm2d) for module in converted.modules())
    assert [norm.momentum for norm in synced] == [norm.momentum for norm in norms]
    assert all(own is before for own, before in zip(converted.parameters(), parameters, strict=True))
    assert [parameter.requires_grad for parameter in converted.parameters()] == learns
    assert converted.state_dict().keys() == state.keys()
    assert torch.equal(converted(images), expected)

    converted.train()  # without other processes it is an ordinary BatchNorm; SAM's second pass leaves its statistics
    with torch.no_grad(), frozen_statistics(converted):
        converted(images)
    assert all(torch.equal(value, state[name]) for name, value in converted.state_dict().items())
    with torch.no_grad():
        converted(images)
    assert all(norm.num_batches_tracked == 2 for norm in synced)
    reverted = TorchSyncBatchNorm().revert(converted)
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in reverted.modules())


@pytest.mark.parametrize(
    ("strategy", "is_refused"),
    [
        (FSDPStrategy(), True),
        (SingleDeviceStrategy(), False),
        (DDPStrategy(parallel_devices=[torch.device("cpu")], cluster_environment=LightningEnvironment()), False),
    ],
)
def test_each_device_has_the_whole_network(strategy, is_refused):
    trainer = SimpleNamespace(strategy=strategy)
    if not is_refused:
        check_strategy(trainer)
        return
    with pytest.raises(UsageError, match=r"the whole network\. Got FSDPStrategy; give auto, or ddp"):
        check_strategy(trainer)
