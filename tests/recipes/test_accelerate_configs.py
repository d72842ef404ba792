"""The files that `accelerate launch` is given: accelerate's own loader reads them."""

import dataclasses

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import FullyShardedDataParallelPlugin
from recipe_loading import TRANSLATION
from transformers.models.marian import modeling_marian

FILES = sorted((TRANSLATION / "configs").glob("accelerate_*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_read_by_accelerate(path):
    """Red if a key is none of accelerate's, which then refuses to launch."""
    config = load_config_from_file(str(path))
    given = yaml.safe_load(path.read_text("utf-8"))
    processes = 2 if "cpu2" in path.stem else 8
    assert config.num_processes == given["num_processes"] == processes
    assert config.mixed_precision == ("no" if "cpu2" in path.stem else "bf16")


def test_fsdp2():
    """Red if a key of FSDP is ignored: accelerate takes what is in this part as it is."""
    config = load_config_from_file(str(TRANSLATION / "configs" / "accelerate_fsdp2_gpu8.yaml"))
    fields = {field.name for field in dataclasses.fields(FullyShardedDataParallelPlugin)}
    named = {
        "version": "fsdp_version",
        "offload_params": "cpu_offload",
        "transformer_layer_cls_to_wrap": "transformer_cls_names_to_wrap",
    }
    for key in config.fsdp_config:
        assert (short := key.removeprefix("fsdp_")) != key
        assert named.get(short, short) in fields, key
    assert (config.distributed_type, config.fsdp_config["fsdp_version"]) == ("FSDP", 2)
    for layer in config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"].split(","):
        assert hasattr(modeling_marian, layer)
