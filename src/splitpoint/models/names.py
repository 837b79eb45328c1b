"""Short names of models: the zoo's own, and those that the Neurosurgeon replica uses."""

from __future__ import annotations

from collections.abc import Mapping

SHORT_NAMES: Mapping[str, str] = {
    "efficientnet_lite0": "zoo:efficientnet_lite0",
    "lenet5": "zoo:lenet5",
    "alexnet": "torchvision:alexnet",
    "vgg16_bn": "torchvision:vgg16_bn",
    "mobilenet_v2": "torchvision:mobilenet_v2",
    "lenet": "zoo:lenet5",
    "alex_net": "torchvision:alexnet",
    "vgg_net": "torchvision:vgg16_bn",
    "mobile_net": "torchvision:mobilenet_v2",
    "le_net": "zoo:lenet5",
}
