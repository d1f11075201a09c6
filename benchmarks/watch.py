"""What headway.watch costs where nothing is traced, and the memory of a trace of a long text.

    python benchmarks/watch.py              # time and memory, compared with sdpa, GPT-2's size
    python benchmarks/watch.py long 32000   # a trace of one head and 16 rows, and of weights alone

Time is the median of the ratios of 60 alternating pairs. Memory is the peak of a process of its
own (resident set), because a process never gives all of its memory back.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from contextlib import nullcontext
from statistics import median

import torch
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

import headway

PAIRS = 60


def gpt2(tokens: int) -> tuple[torch.nn.Module, torch.Tensor]:
    config = GPT2Config(n_positions=max(1024, tokens), attn_implementation="sdpa")
    model = GPT2LMHeadModel(config).eval()
    return model, torch.randint(0, 50_000, (1, tokens))


def seconds(model: torch.nn.Module, tokens: torch.Tensor, past: bool) -> float:
    start = time.perf_counter()
    with torch.no_grad():
        if past:  # token by token, where each call is short
            cache = None
            for column in range(8):
                output = model(tokens[:, column : column + 1], past_key_values=cache)
                cache = output.past_key_values
        else:
            model(tokens)
    return time.perf_counter() - start


def ratio(tokens: int, past: bool) -> float:
    model, text = gpt2(tokens)
    for _ in range(3):
        seconds(model, text, past)
    ratios = []
    for pair in range(PAIRS):
        times = {}
        for is_watched in (pair % 2 == 0, pair % 2 == 1):
            with headway.watch(model) if is_watched else nullcontext():
                times[is_watched] = seconds(model, text, past)
        ratios.append(times[True] / times[False])
    return median(ratios)


def peak(mode: str, tokens: int) -> float:
    """The peak memory of a child process, in MiB."""
    command = [sys.executable, __file__, "child", mode, str(tokens)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(output.split()[-1])


def child(mode: str, tokens: int) -> None:
    torch.manual_seed(0)
    if mode in ("sdpa", "watch"):
        model, text = gpt2(tokens)
        with headway.watch(model) if mode == "watch" else nullcontext(), torch.no_grad():
            for _ in range(3):
                model(text)
    else:  # a text of which one whole matrix of weights is tokens**2 * heads * 4 bytes
        config = MistralConfig(
            vocab_size=256,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            sliding_window=4096 if "window" in mode else None,
            max_position_embeddings=tokens,
            attn_implementation="sdpa",
        )
        model = MistralForCausalLM(config).eval()
        text = torch.randint(0, 256, (1, tokens))
        padding = torch.ones_like(text)
        if "padded" in mode:
            padding[:, : tokens // 10] = 0
        parts = {"only": "blocks.1.attention.weights"} if "rows" in mode else {"only": "logits"}
        if "rows" in mode:
            parts |= {"rows": slice(tokens - 16, tokens), "heads": slice(1, 2)}
        start = time.perf_counter()
        with torch.no_grad(), headway.watch(model), headway.trace(**parts) as steps:
            model(text, attention_mask=padding, logits_to_keep=1)
        shapes = {name: tuple(step.shape) for name, step in steps.items()}
        print(mode, shapes, f"{time.perf_counter() - start:.1f} s")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1:2] == ["long"]:
        tokens = int(sys.argv[2])
        print(f"one whole matrix of weights of 4 heads: {tokens**2 * 16 / 2**20:.0f} MiB")
        for mode in ("logits", "rows", "rows-window", "rows-padded", "rows-window-padded"):
            print(f"{mode}: peak {peak(mode, tokens):.0f} MiB")
    else:
        for tokens, past in ((128, False), (8, True)):
            what = "token by token" if past else f"{tokens} tokens"
            print(f"{what}: a watched model takes {ratio(tokens, past):.3f} of the time of sdpa")
        print(f"memory: {peak('watch', 512) / peak('sdpa', 512):.3f} of the peak of sdpa")


if __name__ == "__main__":
    main()
