"""Short names of models, the ones the Neurosurgeon replica uses among them."""

from __future__ import annotations

from collections.abc import Mapping

SHORT_NAMES: Mapping[str, str] = {
    "alexnet": "torchvision:alexnet",
    "vgg16_bn": "torchvision:vgg16_bn",
    "mobilenet_v2": "torchvision:mobilenet_v2",
    "lenet": "zoo:lenet5",
    "alex_net": "torchvision:alexnet",
    "vgg_net": "torchvision:vgg16_bn",
    "mobile_net": "torchvision:mobilenet_v2",
    "le_net": "zoo:lenet5",
}
