"""What is trained: transformers' Perceiver for optical flow, from a checkpoint or from scratch."""

from typing import Any

import torch
from flow_options import FlowArguments
from torch import nn
from transformers import AutoConfig, PerceiverForOpticalFlow

from hf_nm.experiments.options import new_config, opened

# Pixels of one unit of the output of checkpoints that do not say it: DeepMind's were trained so.
FLOW_SCALE = 20.0
# So many times the usual start of what reads the 3x3 patches: its outputs are then as large as the
# encoded positions beside them. At the usual one these are 93% of what the first layer norm sees, and
# a small model finds no motion in hundreds of updates.
PIXEL_GAIN = 4.0
TYPE = "perceiver"  # transformers has no Auto class for flow


def load_model(recipe: FlowArguments) -> PerceiverForOpticalFlow:
    """The model; its config's `flow_scale` says how many pixels one unit of its output is.

    Raises:
        ValueError: there is no such checkpoint, it is of another task, or an option is wrong.
    """
    if recipe.config_name:
        given = f"--config_name {recipe.config_name} --config_overrides {recipe.config_overrides}"
        kind = new_config(recipe.config_name, None, {}, {}).model_type
        if kind != TYPE:
            raise ValueError(
                f"--config_name {recipe.config_name}: optical flow is predicted by a {TYPE}, not a "
                f"{kind}; give --config_name {TYPE}."
            )
        config: Any = new_config(recipe.config_name, recipe.config_overrides, {}, {})
        config.flow_scale = recipe.flow_scale or getattr(config, "flow_scale", FLOW_SCALE)
        config.architectures = None
        size = list(config.train_size)
        if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
            raise ValueError(f"{given}: train_size must be a height and a width, but is {size}.")
        try:
            return _started(PerceiverForOpticalFlow(config))
        except (TypeError, ValueError, ZeroDivisionError) as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"{given}: {said}") from error
    start = str(recipe.model_name_or_path)
    config = opened(AutoConfig, "model_name_or_path", start)
    found = config.architectures or []
    if PerceiverForOpticalFlow.__name__ not in found:
        raise ValueError(
            f"--model_name_or_path {start}: a {', '.join(found) or config.model_type}, but optical flow "
            f"starts from a {PerceiverForOpticalFlow.__name__}; or give --config_name {TYPE}."
        )
    model = opened(
        PerceiverForOpticalFlow,
        "model_name_or_path",
        start,
        dtype=torch.float32,  # small updates round away in a bf16 checkpoint's own dtype
    )
    model.config.flow_scale = recipe.flow_scale or getattr(config, "flow_scale", FLOW_SCALE)
    return model


def _started(model: PerceiverForOpticalFlow) -> PerceiverForOpticalFlow:
    """The model with new weights: normal with a variance of one over the inputs, as the original's
    layers start. (transformers has one small deviation for all; its checkpoints are loaded anyway.)"""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    preprocessor: Any = model.perceiver.input_preprocessor
    with torch.no_grad():
        preprocessor.conv_after_patches.weight *= PIXEL_GAIN
    return model
