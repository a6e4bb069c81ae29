"""torch.compile as it is, beside the same step uncompiled."""

import pytest
import torch
import torch.nn.functional as F

from cifar_resnet.models import CustomResNet, PyramidNet, ResNet, SpeedNet

NETWORKS = {
    "speednet": lambda: SpeedNet(widths=[8, 16, 16]),
    "custom_resnet": lambda: CustomResNet(stem_width=8, widths=[8, 16, 16], dropout=0.0),
    "resnet": lambda: ResNet(depth=8, widths=[8, 8, 16]),
    "pyramidnet": lambda: PyramidNet(depth=8, alpha=8),
}


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_a_compiled_step_in_16_bits_has_the_gradients_of_one_uncompiled(network):
    torch.manual_seed(0)
    model = NETWORKS[network]().to(memory_format=torch.channels_last)
    images = torch.randn(32, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (32,))
    gradients = []
    for is_compiled in (False, True):
        if is_compiled:
            model.compile()
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.requires_grad]))
    uncompiled, compiled = gradients
    assert F.cosine_similarity(uncompiled, compiled, dim=0) > 0.95
