"""Write a model as a Hugging Face folder, which `transformers` and other tools load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from headway.data.tokenizers import Tokenizer
from headway.hf import configs, names
from headway.hf.folders import WEIGHTS
from headway.hf.stored import StoredModel


def export(stored: StoredModel, folder: Path) -> str:
    """Write a model and its tokenizer as a folder; return the name of the architecture.

    The weights keep their values and their dtype. Raises ValueError if the folder exists and is not
    empty, or if no architecture of Hugging Face's format computes the model.
    """
    from safetensors.torch import save_file  # late: PyTorch takes seconds to load

    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty; give another folder")
    if stored.rung is not None:
        raise ValueError(
            f"{stored.path} has the rung {stored.rung!r} as its attention, which has no equivalent "
            "in Hugging Face's format; train without --rung"
        )
    family, values = configs.write(stored.gpt)
    tokenizer = stored.tokenizer
    model = stored.load("torch", device="cpu")
    tensors = names.to_hf(family.names.table, dict(model.named_parameters()))
    tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    eos = sorted(tokenizer.eos)
    values |= {
        "architectures": [family.architecture],
        "dtype": str(model.embedding.weight.dtype).removeprefix("torch."),
        # Written even if there is none, because the families have default values.
        "bos_token_id": tokenizer.bos,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "pad_token_id": None,
    }
    temporary = folder.with_name(f".writing-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
    try:
        temporary.mkdir(parents=True)
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        tokenizer.save(temporary / "tokenizer.json")
        _write(temporary / "config.json", values)
        _write(temporary / "tokenizer_config.json", _tokenizer_config(stored, tokenizer))
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return family.architecture


def _tokenizer_config(stored: StoredModel, tokenizer: Tokenizer) -> dict[str, Any]:
    """The tokenizer_config.json; a model that came from a folder keeps its own."""
    original = stored.path / "tokenizer_config.json"
    if original.is_file():
        values: dict[str, Any] = json.loads(original.read_text(encoding="utf-8"))
        return {name: value for name, value in values.items() if name != "auto_map"}  # code
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": stored.gpt.context,
        "clean_up_tokenization_spaces": False,
    }


def _write(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
