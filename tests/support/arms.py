"""Made-up folders of finished runs, of which a comparison is made."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import sacrebleu

from hf_nm.experiments.results import write_translations

LOG = logging.getLogger("recipe")
SIGNATURE = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"
WORDS = [
    "a",
    "man",
    "two",
    "dogs",
    "runs",
    "plays",
    "in",
    "the",
    "park",
    "with",
    "his",
    "hat",
    "red",
]


def sentences(seed: int, wrong: float) -> tuple[list[str], list[str]]:
    """Sixty translations and their references; a share of the words is another one."""
    random = np.random.default_rng(seed)
    references = [" ".join(np.random.default_rng(at).choice(WORDS, 9)) for at in range(60)]
    translations = [
        " ".join(random.choice(WORDS) if random.random() < wrong else word for word in text.split())
        for text in references
    ]
    return translations, references


def corpus_bleu(translations: list[str], references: list[str]) -> float:
    return sacrebleu.BLEU().corpus_score(translations, [references]).score


def left(
    folder: Path,
    method: str,
    seed: int,
    *,
    score: float | None = None,
    wrong: float | None = None,
    pattern: str | None = None,
    decay: float | None = None,
    sad: tuple[int, float] | None = None,
    seconds: float = 100.0,
    steps: int = 40,
    start: str | None = None,
    logged: list[dict[str, Any]] | None = None,
    layers: list[dict[str, int]] | None = None,
    **more: Any,
) -> Path:
    """What a run of a recipe left in its folder."""
    folder.mkdir(parents=True)
    if wrong is not None:
        translations, references = sentences(seed, wrong)
        write_translations(folder, references, translations, references)
        score = corpus_bleu(translations, references)
    command = f"python /clone/recipes/translation/train.py --seed {seed} --output_dir {folder}"
    run = {
        "method": method,
        "pattern": pattern,
        "decay": decay,
        "seed": seed,
        "data": "files",
        "score": {"metric": "BLEU", "test": score, "signature": SIGNATURE},
        "steps": steps,
        "time": {"train_s": seconds, "steps": steps},
        "sad": sad and {"total": sad[0], "mean_flip_rate": sad[1], "from_start": 1},
        "model": {"nm_weights": 128 if pattern else 0, "nm_weights_kept": 64 if pattern else 0},
        "sparsity": [
            {"name": name, "shape": [8, 8]} for name in ("model.a.weight", "model.b.weight")
        ],
        "command": command + (f" --model_name_or_path {folder.parent / start}" if start else ""),
        **more,
    }
    (folder / "results.json").write_text(json.dumps(run), "utf-8")
    state = {"global_step": steps, "log_history": logged or []}
    (folder / "trainer_state.json").write_text(json.dumps(state), "utf-8")
    lines = [
        {"step": 10 * (at + 1), "nm/sad": 1, "nm/flip_rate": 0.1, "nm/sad_init": 1}
        | {"layers": {name: {"sad": entries} for name, entries in row.items()}}
        for at, row in enumerate(layers or [])
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "nm_sad.jsonl").write_text(text, "utf-8")
    return folder


def sad_logged(*entries: int) -> list[dict[str, Any]]:
    return [
        {"step": 10 * at, "nm/sad": sad, "nm/flip_rate": 0.1, "nm/sad_init": 1}
        for at, sad in enumerate(entries, 1)
    ]


def two_seeds(root: Path) -> list[Path]:
    """Dense 30 and 32; STE 28; SR-STE 29 and 30; ASP 27 after a dense half."""
    return [
        left(root / "sr1", "sr-ste", 1, score=29.0, pattern="2:4", decay=2e-4, sad=(10, 0.01)),
        left(root / "sr2", "sr-ste", 2, score=30.0, pattern="2:4", decay=2e-4, sad=(30, 0.02)),
        left(root / "d1", "dense", 1, score=30.0, seconds=100.0),
        left(root / "d2", "dense", 2, score=32.0, seconds=300.0),
        left(root / "ste1", "ste", 1, score=28.0, pattern="2:4", sad=(50, 0.05), seconds=220.0),
        left(root / "half", "dense", 1, score=20.0, steps=10, seconds=30.0),
        left(
            root / "asp1",
            "fixed",
            1,
            score=27.0,
            pattern="2:4",
            steps=30,
            seconds=130.0,
            sad=(0, 0.0),
            start="half",
            steps_before=10,
        ),
    ]
