"""ResNets for small images: transformers' ResNet with a 3x3 first convolution and no pooling.

He et al. (2016), section 4.2, whose ResNet-20 has depths 3, 3, 3 and widths 16, 32, 64. transformers'
own ResNet begins with a 7x7 convolution of stride 2 and a pooling of stride 2 that no config takes away:
an image of 32 x 32 would be one of 8 x 8 before the first block.

This file is saved beside the weights and named in `config.json`, so it imports torch and transformers
alone, and `AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)` opens such a
checkpoint where nothing else is installed.
"""

from typing import Any

from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification


class CifarResNetConfig(ResNetConfig):
    """ResNet's, under a name of its own, so that nobody's 7x7 convolution meets a 3x3 weight."""

    model_type = "cifar_resnet"


class CifarResNetForImageClassification(ResNetForImageClassification):
    """A ResNet whose stem keeps the image's size: ``[batch, 3, height, width]`` in, logits out."""

    config: CifarResNetConfig
    config_class = CifarResNetConfig

    def __init__(self, config: CifarResNetConfig) -> None:
        super().__init__(config)
        stem: Any = self.resnet.embedder
        stem.embedder.convolution = nn.Conv2d(
            config.num_channels, config.embedding_size, kernel_size=3, padding=1, bias=False
        )
        stem.pooler = nn.Identity()
        self.post_init()  # the new convolution as the others
