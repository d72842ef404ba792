"""A Trainer under accelerate's FSDP2, for ``test_gpu.py``: ``accelerate launch`` of this file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from trainers import build, figures, one_layer_bert, train_logs

import hf_nm


def run(folder: Path, resume: str | None = None) -> list[dict]:
    trainer = build(
        folder,
        model=hf_nm.sparsify(one_layer_bert()),
        use_cpu=False,
        average_tokens_across_devices=False,
        save_strategy="steps",
        save_steps=6,
    )
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(str(folder / "final"))
    return [
        {"step": line["step"], "loss": line["loss"], **figures(line)}
        for line in train_logs(trainer)
    ]


def main(folder: Path) -> None:
    whole = run(folder / "whole")
    resumed = run(folder / "resumed", str(folder / "whole" / "checkpoint-6"))
    (folder / "logs.json").write_text(json.dumps({"whole": whole, "resumed": resumed}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
