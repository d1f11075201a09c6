"""`headway eval`: the loss of a model on a text."""

from headway.cli.parameters import Device, DType, Engine, ModelName, Runs


def evaluate(
    model: ModelName,
    text: str,
    /,
    *,
    context: int | None = None,
    stride: int | None = None,
    engine: Engine = "torch",
    device: Device = None,
    dtype: DType = None,
    runs: Runs = "runs",
) -> None:
    """Measure the loss, perplexity and bits per byte of a model on a text.

    Bits per byte can be compared between models with different tokenizers.

    Parameters
    ----------
    text
        A file, a folder of text files, or the name of a text (manual, shakespeare, verdict).
    context
        Number of tokens in the sliding window; by default the context of the model, at most 1,024.
    stride
        Number of tokens by which the window moves; by default half of the window.
    """
    from headway.cli.progress import preparing  # late: `headway --help` is fast
    from headway.data import corpora
    from headway.engines import engine_named
    from headway.hf.stored import find
    from headway.training import evaluation

    stored = find(model, runs)
    if stored.gpt.is_masked:
        raise ValueError(f"{stored.path} predicts masked words, not the next one")
    most = stored.gpt.context
    context = min(most, 1024) if context is None else context
    if not 1 <= context <= most:
        raise ValueError(f"--context must be from 1 to {most:,}, the context of the model")
    loaded = stored.load(engine, device, dtype)
    with preparing("evaluating") as show:
        result = evaluation.evaluate(
            engine_named(engine),
            loaded,
            stored.tokenizer,
            corpora.read(text),
            context=context,
            stride=stride,
            show=show,
        )
    print(
        f"loss {result.loss:.4f} nats per token, perplexity {result.perplexity:,.2f}, "
        f"{result.bits_per_byte:.4f} bits per byte\n"
        f"{result.tokens:,} tokens ({result.size:,} bytes), window of {result.context:,} tokens, "
        f"stride {result.stride:,}"
    )
