"""Networks that were written without this package in mind: torchvision's, timm's, one's own."""

from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from torch import Tensor, nn

from cifar_resnet.constraints import check
from cifar_resnet.errors import innermost, one_line, refuse_if
from cifar_resnet.instantiation import instantiate
from cifar_resnet.models.classifier import Classifier

# arguments that fetch trained weights: a checkpoint has its own
OF_TRAINED_WEIGHTS = {"pretrained": False, "weights": None}


class Wrapped(Classifier):
    """Any module that takes images, (N, 3, H, W), and gives logits, (N, num_classes).

    net: what makes it: `_target_`, a class or a function by its full name, and its arguments.
    classes_as: the argument that is told the number of classes; None where there is none to tell.
    """

    def __init__(
        self,
        net: Mapping[str, Any],
        classes_as: str | None = "num_classes",
        **of_every_network: Any,
    ):
        super().__init__(**of_every_network)
        check(Wrapped, locals())
        num_classes = self.hparams["num_classes"]
        refuse_if(
            (given := net.get(classes_as, num_classes)) != num_classes,
            f"the data says how many classes there are: {num_classes}. Got model.net.{classes_as}={given}; leave that "
            f"out, or name another argument by model.classes_as",
        )
        told = {classes_as: num_classes} if classes_as else {}
        try:
            module = instantiate(dict(net), **told, _convert_="all")
        except InstantiationException as error:
            text = one_line(innermost(error))
            advice = "; model.classes_as names the argument that is told the number of classes, or is null"
            advice *= f"'{classes_as}'" in text
            raise ValueError(f"model.net is not made by {net['_target_']}: {text.rstrip('.')}{advice}") from error
        refuse_if(
            not isinstance(module, nn.Module),
            f"model.net makes a torch.nn.Module. Got {type(module).__name__} from {net['_target_']}; name what does",
        )
        self.net = module
        self.hparams["net"] = dict(net) | {key: none for key, none in OF_TRAINED_WEIGHTS.items() if key in net}

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)
