"""`headway export`: write a model as a Hugging Face folder."""

from pathlib import Path

from headway.cli.parameters import ModelName, Runs


def export(model: ModelName, folder: Path, /, *, runs: Runs = "runs") -> None:
    """Write a model as a Hugging Face folder that transformers and other tools load.

    Parameters
    ----------
    folder
        The folder to write: config.json, model.safetensors and the tokenizer. It must not exist or
        be empty.
    """
    from headway.hf.export import export as write  # late: `headway --help` is fast
    from headway.hf.stored import find

    architecture = write(find(model, runs), folder)
    size = (folder / "model.safetensors").stat().st_size
    loader = "AutoModelForMaskedLM" if "Masked" in architecture else "AutoModelForCausalLM"
    print(
        f"{folder}: {architecture}, {size / 1e6:,.1f} MB\n"
        f'load it with: transformers.{loader}.from_pretrained("{folder}")'
    )
