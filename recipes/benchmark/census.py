"""What ``hf_nm.sparsify`` does to every architecture that transformers knows, on the meta device.

    python recipes/benchmark/census.py --output census.json

Each architecture is built from its default config, without weights, with a head where it has one.
Per architecture: how much of the matrices inside its blocks became N:M, which were left dense for a
reason that counts as a miss, and whether a head, an embedding or a router was touched.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import hf_nm
from hf_nm.targets.blocks import transformer_blocks
from hf_nm.targets.rule import OUTSIDE_BLOCKS

# The only reasons for which a matrix inside a block may stay dense.
ACCEPTED = re.compile(
    "is not a multiple of m|tied to an embedding|an embedding|a router|a relative-position table|"
    "a bias|a PEFT adapter|dtype .* cannot be N:M"
)
# The first of these tasks that an architecture has a class for: those with a head come first.
TASKS = [
    *("CausalLM", "LMHeadModel", "ForConditionalGeneration", "SequenceClassification"),
    *("ImageClassification", "MaskedLM", "ObjectDetection", "ForCTC", "AudioClassification"),
    *("Segmentation", "DepthEstimation", "PreTraining", "QuestionAnswering", "For[A-Z]", ""),
]
# Parts of names that only heads, poolers and routers have. (Attention and multi-head projections carry
# "head" in longer names, and some models keep a whole tower under their embeddings.)
NEVER_SPARSE = re.compile(r"(^|\.)((?!q_|k_|v_)[a-z]+_)?(heads?|classifier|pooler|router)(\.|$)")


def model_classes() -> Iterator[tuple[str, type, list[type]]]:
    """Each model type with its config class and its model classes, those with a head first."""
    mappings = [
        value
        for name, value in vars(modeling_auto).items()
        if re.fullmatch(r"MODEL.*_MAPPING", name)
    ]
    for model_type in CONFIG_MAPPING:
        config_class = CONFIG_MAPPING[model_type]
        found: dict[str, type] = {}
        for mapping in mappings:
            try:
                classes = mapping[config_class] if config_class in mapping.keys() else ()  # noqa: SIM118
            except ValueError:  # a name in the mapping that has no class in this transformers
                continue
            for model_class in classes if isinstance(classes, list | tuple) else [classes]:
                found[model_class.__name__] = model_class
        rank = {name: next(i for i, t in enumerate(TASKS) if re.search(t, name)) for name in found}
        yield (
            model_type,
            config_class,
            [found[name] for name in sorted(found, key=rank.__getitem__)],
        )


def built(config_class: type, classes: list[type]) -> tuple[nn.Module | None, str]:
    """The first class that builds from its default config, on the meta device; else why none does."""
    why = "no model class of its own"
    for model_class in classes:
        try:
            with torch.device("meta"):
                return model_class(config_class()), ""
        except Exception as error:  # any of several hundred constructors
            why = f"{type(error).__name__}: {error}".splitlines()[0][:160]
    return None, why


def is_matrix(shape: tuple[int, ...]) -> bool:
    """More than a vector: at least two dimensions are larger than one."""
    return sum(size > 1 for size in shape) >= 2


def look(model: nn.Module, n: int, m: int) -> dict[str, Any]:
    """Sparsify one model and count."""
    total = sum(p.numel() for p in model.parameters() if is_matrix(tuple(p.shape)))
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    transformer: Any = model
    for get in (transformer.get_input_embeddings, transformer.get_output_embeddings):
        try:
            layer = get()
        except NotImplementedError:
            continue
        embeddings |= {id(p) for p in getattr(layer, "parameters", list)()}
    blocks = transformer_blocks(model)
    if not blocks:
        return {"class": type(model).__name__, "blocks": 0}
    hf_nm.sparsify(model, n, m)
    report = hf_nm.report(model)
    missed = {
        row.name: f"{list(row.shape)} {row.reason}"
        for row in report.skipped
        if row.reason != OUTSIDE_BLOCKS and is_matrix(row.shape) and not ACCEPTED.search(row.reason)
    }
    sizes = {row.name: math.prod(row.shape) for row in report.skipped}
    covered = report.weights
    touched = [
        w.name
        for w in hf_nm.sparse_weights(model)
        if id(w.weight) in embeddings or NEVER_SPARSE.search(w.name)
    ]
    return {
        "class": type(model).__name__,
        "blocks": len(blocks),
        "nm_weights": len(report.layers),
        "nm_entries": covered,
        "share_of_all_matrices": covered / total,
        "coverage": covered / (covered + sum(sizes[name] for name in missed)),
        "missed": missed,
        "reasons": Counter(row.reason for row in report.skipped if row.reason != OUTSIDE_BLOCKS),
        "touched": touched,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=2)
    parser.add_argument("--m", type=int, default=4)
    parser.add_argument("--only", help="a glob over model types")
    parser.add_argument("--output", type=Path, help="a JSON file with a row per architecture")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")

    rows: dict[str, dict[str, Any]] = {}
    not_built, failed, without_blocks = {}, {}, {}
    for model_type, config_class, classes in model_classes():
        if args.only and not Path(model_type).match(args.only):
            continue
        model, why = built(config_class, classes)
        if model is None:
            not_built[model_type] = why
            continue
        try:
            row = look(model, args.n, args.m)
        except Exception as error:  # what the census is there to find
            failed[model_type] = f"{type(model).__name__}: {type(error).__name__}: {error}"
            print(f"{model_type:36} FAILED {failed[model_type].splitlines()[0]}", flush=True)
            continue
        if not row["blocks"]:
            without_blocks[model_type] = row["class"]
            print(f"{model_type:36} has no block", flush=True)
            continue
        rows[model_type] = row
        print(
            f"{model_type:36} {row['coverage']:8.2%} of the blocks' matrices, "
            f"{row['share_of_all_matrices']:7.2%} of all; {row['nm_weights']:5} weights in "
            f"{row['blocks']:4} blocks; heads, embeddings, routers touched: {len(row['touched'])}",
            flush=True,
        )
    high = sum(row["coverage"] >= 0.99 for row in rows.values())
    print(
        f"\n{len(rows) + len(failed) + len(without_blocks)} architectures build (and "
        f"{len(not_built)} do not); {len(without_blocks)} without blocks; {len(failed)} fail; "
        f"at least 99% covered in {high} of {len(rows)} "
        f"({high / max(1, len(rows)):.1%}); touched in "
        f"{sum(bool(row['touched']) for row in rows.values())}"
    )
    if args.output:
        args.output.write_text(
            json.dumps(
                {
                    "transformers": transformers.__version__,
                    "pattern": f"{args.n}:{args.m}",
                    "architectures": rows,
                    "failed": failed,
                    "without_blocks": without_blocks,
                    "not_built": not_built,
                },
                indent=1,
            )
        )


if __name__ == "__main__":
    main()
