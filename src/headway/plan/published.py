"""Published measurements of training speed, with their sources and settings.

The time model is fitted to the rows with an even number, in this order, and tested on the others
(`python -m benchmarks.plan`). The order and this rule were committed before the first fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from headway.models.gpt import GPTConfig, preset
from headway.plan.cards import Cluster, card_named
from headway.plan.counts import Work
from headway.plan.seconds import HEADWAY, Averaging

# Layers, width, heads.
MPT = {
    "125m": (12, 768, 12),
    "350m": (24, 1024, 16),
    "760m": (24, 1536, 12),
    "1b": (24, 2048, 16),
    "3b": (32, 2560, 20),
    "7b": (32, 4096, 32),
    "13b": (40, 5120, 40),
    "30b": (48, 7168, 56),
    "70b": (80, 8192, 64),
}
GPT2 = {
    "124M": (12, 768, 12),
    "350M": (24, 1024, 16),
    "774M": (36, 1280, 20),
    "1558M": (48, 1600, 25),
}
# Layers, width, heads, kv_heads, width of the MLP, vocabulary.
LLAMA = {
    "Llama 3.1 8B": (32, 4096, 32, 8, 14336, 128256),
    "Llama 3 70B": (80, 8192, 64, 8, 28672, 128256),
    "Llama 2 13B": (40, 5120, 40, 40, 13824, 32000),
    "Llama 2 70B": (80, 8192, 64, 8, 28672, 32000),
}


@dataclass(frozen=True)
class Row:
    """A measurement.

    Attributes
    ----------
    source
        Key of SOURCES.
    model
        Name of the model in the source.
    card
        Key of `cards.CARDS`.
    gpus
        Number of GPUs, 8 per node.
    work
        What each GPU does in a step.
    speed
        Tokens per second and GPU.
    averaging
        How gradients are averaged.
    """

    source: str
    model: str
    card: str
    gpus: int
    work: Work
    speed: float
    averaging: Averaging = HEADWAY

    @property
    def cluster(self) -> Cluster:
        """The cards of the measurement."""
        return Cluster(card_named(self.card), self.gpus, 8)


SOURCES = {
    "llm-foundry": "MosaicML LLM Foundry, scripts/train/benchmarking/README.md: MPT in bfloat16 "
    "with FSDP, all rows of 2,048 tokens, and of 8,192 tokens on 80 GB cards",
    "torchtitan": "torchtitan, benchmarks/llama3_h100_202412_torchtitan.md and docs/performance.md "
    "(2024): FSDP without float8; selective checkpointing repeats half of the operations",
    "llm.c": "llm.c, comments of scripts/run_gpt2_*.sh: fused CUDA kernels, so counted as compiled",
    "nanoGPT": "nanoGPT, README: 600,000 steps of 491,520 tokens in about four days",
    "H200": "measured by this project on one H200, November 2026, batch 16 x 1,024",
    "H200, later": "the same after changes to the loss, Muon and rotary positions: "
    "docs/bench/gpu.json",
}

# (model, gpus, windows at a time, micro-batches, checkpointing, tokens/s/GPU), by card and tokens.
_MPT_ROWS = {
    ("h100", 2048): [
        ("70b", 64, 8, 4, True, 1039), ("70b", 32, 2, 16, True, 882),
        ("30b", 32, 14, 3, True, 2308), ("30b", 16, 10, 3, True, 2263),
        ("30b", 8, 3, 21, True, 2002), ("13b", 64, 2, 1, False, 4800),
        ("13b", 32, 2, 1, False, 4811), ("13b", 16, 2, 1, False, 4767),
        ("13b", 8, 2, 1, False, 4792), ("7b", 8, 6, 1, False, 10643),
        ("3b", 64, 6, 3, False, 22525), ("3b", 32, 6, 3, False, 23021),
        ("3b", 16, 10, 3, False, 24142), ("1b", 64, 20, 1, False, 44402),
        ("1b", 32, 20, 1, False, 45130), ("1b", 16, 20, 1, False, 46037),
        ("1b", 8, 14, 1, False, 45455), ("760m", 32, 24, 1, False, 67971),
        ("760m", 16, 24, 1, False, 68551), ("760m", 8, 24, 2, False, 63147),
    ],
    ("h100", 8192): [
        ("30b", 8, 1, 21, True, 1384), ("7b", 8, 8, 2, True, 6935), ("3b", 8, 3, 6, False, 16578),
        ("1b", 8, 3, 4, False, 29157), ("760m", 8, 6, 2, False, 41825),
    ],
    ("a100", 2048): [
        ("70b", 64, 8, 4, True, 410), ("70b", 32, 2, 16, True, 373), ("30b", 8, 3, 21, True, 916),
        ("13b", 8, 2, 3, False, 2262), ("7b", 8, 6, 2, False, 4641), ("3b", 8, 10, 2, False, 10811),
        ("1b", 8, 14, 4, False, 20513), ("760m", 8, 24, 2, False, 32434),
        ("350m", 8, 32, 2, False, 58782), ("125m", 8, 40, 2, False, 142830),
        ("125m", 8, 32, 2, False, 141737),
    ],
    ("a100", 8192): [
        ("30b", 8, 1, 21, True, 574), ("13b", 8, 5, 3, True, 1795), ("7b", 8, 8, 2, True, 3206),
        ("3b", 8, 3, 6, False, 7695), ("1b", 8, 3, 4, False, 13814),
        ("760m", 8, 6, 2, False, 20933), ("350m", 8, 8, 2, False, 36569),
        ("125m", 8, 8, 2, False, 90392),
    ],
    ("a100-40gb", 2048): [
        ("70b", 128, 4, 1, True, 376), ("70b", 64, 2, 1, True, 276),
        ("30b", 128, 6, 1, True, 865), ("30b", 32, 4, 1, True, 857),
        ("13b", 128, 16, 1, True, 1972), ("13b", 64, 16, 1, True, 1976),
        ("13b", 32, 14, 1, True, 1998), ("13b", 16, 10, 1, True, 1993),
        ("13b", 8, 4, 16, True, 1668), ("7b", 128, 18, 1, True, 3623),
        ("7b", 64, 18, 1, True, 3665), ("7b", 32, 18, 1, True, 3725),
        ("7b", 16, 16, 1, True, 3645), ("7b", 8, 12, 4, True, 3679),
        ("3b", 128, 6, 1, False, 9538), ("3b", 64, 6, 1, False, 9736),
        ("3b", 32, 6, 1, False, 9914), ("3b", 16, 5, 1, False, 9750),
        ("3b", 8, 5, 8, False, 10065), ("1b", 128, 10, 1, False, 18647),
        ("1b", 64, 10, 1, False, 19001), ("1b", 32, 10, 1, False, 15555),
        ("1b", 16, 8, 1, False, 19085), ("1b", 8, 8, 8, False, 19271),
        ("760m", 128, 12, 1, False, 28940), ("760m", 64, 12, 1, False, 29344),
        ("760m", 32, 12, 1, False, 29648), ("760m", 16, 12, 1, False, 29607),
        ("760m", 8, 12, 4, False, 30173), ("350m", 128, 18, 1, False, 51934),
        ("350m", 64, 18, 1, False, 52689), ("350m", 32, 18, 1, False, 53811),
        ("350m", 16, 18, 1, False, 55413), ("350m", 8, 16, 4, False, 55995),
        ("125m", 128, 26, 1, False, 123936), ("125m", 64, 26, 1, False, 125234),
        ("125m", 32, 26, 1, False, 127122), ("125m", 16, 26, 1, False, 130535),
        ("125m", 8, 26, 3, False, 136334),
    ],
}  # fmt: skip

# (card, model, gpus, tokens, windows, repeated, compiled, tokens/s/GPU).
_TORCHTITAN_ROWS = [
    ("h100-500w", "Llama 3.1 8B", 8, 8192, 2, 0.5, False, 5762),
    ("h100-500w", "Llama 3.1 8B", 8, 8192, 2, 0.5, True, 6667),
    ("h100-500w", "Llama 3.1 8B", 128, 8192, 2, 0.5, False, 5605),
    ("h100-500w", "Llama 3.1 8B", 128, 8192, 2, 0.5, True, 6514),
    ("a100", "Llama 3.1 8B", 64, 8192, 1, 0.5, False, 2904),
    ("a100", "Llama 3.1 8B", 64, 8192, 1, 0.5, False, 2973),
    ("a100", "Llama 3 70B", 64, 8192, 1, 1.0, False, 331),
    ("a100", "Llama 2 13B", 64, 4096, 2, 0.0, False, 2162),
    ("a100", "Llama 2 13B", 64, 4096, 2, 0.5, False, 1914),
    ("a100", "Llama 2 13B", 64, 4096, 2, 0.5, False, 1904),
    ("a100", "Llama 2 70B", 64, 4096, 1, 0.5, False, 355),
    ("a100", "Llama 2 70B", 64, 4096, 2, 1.0, False, 353),
]

# (card, model, windows, micro-batches, seconds per step), on 8 GPUs.
_LLM_C_ROWS = [
    ("a100", "124M", 64, 1, 0.3),
    ("a100", "350M", 64, 1, 0.82),
    ("a100", "774M", 32, 2, 1.7),
    ("h100", "1558M", 16, 8, 2.8),
]

# (source, model, preset, Muon, compiled, ms per step).
_H200_ROWS = [
    ("H200", "nanoGPT", "gpt2", False, False, 42.2),
    ("H200", "nanoGPT", "gpt2", False, True, 33.3),
    ("H200", "Headway gpt2", "gpt2", False, False, 59.9),
    ("H200", "Headway gpt2", "gpt2", False, True, 44.1),
    ("H200", "Headway modern, Muon", "modern", True, False, 100.0),
    ("H200", "Headway modern, Muon", "modern", True, True, 66.9),
    ("H200", "Headway modern", "modern", False, True, 57.5),
    ("H200, later", "nanoGPT", "gpt2", False, False, 48.442),
    ("H200, later", "nanoGPT", "gpt2", False, True, 33.275),
    ("H200, later", "Headway gpt2", "gpt2", False, True, 42.418),
    ("H200, later", "Headway gpt2", "gpt2", False, False, 51.481),
    ("H200, later", "Headway modern, Muon", "modern", True, True, 44.529),
    ("H200, later", "Headway modern, Muon", "modern", True, False, 72.522),
]


def mpt(name: str, tokens: int) -> GPTConfig:
    """The config of an MPT model of MosaicML, with learned positions for this many tokens."""
    layers, width, heads = MPT[name]
    sizes = {"vocabulary": 50368, "context": tokens, "width": width, "layers": layers}
    return preset("gpt2", sizes, attention={"heads": heads})


def gpt2(name: str, kind: str = "gpt2") -> GPTConfig:
    """The config of a GPT-2 with a vocabulary of 50,304, or of this preset with its sizes."""
    layers, width, heads = GPT2[name]
    sizes = {"vocabulary": 50304, "context": 1024, "width": width, "layers": layers}
    return preset(kind, sizes, attention={"heads": heads})


def llama(name: str, tokens: int) -> GPTConfig:
    """The config of a Llama."""
    layers, width, heads, kv_heads, inside, vocabulary = LLAMA[name]
    return preset(
        "modern",
        {"vocabulary": vocabulary, "context": tokens, "width": width, "layers": layers},
        attention={"heads": heads, "kv_heads": kv_heads, "qk_norm": False},
        mlp={"width": inside},
        tied=False,
    )


def rows() -> list[Row]:
    """All measurements, in the order that decides which of them are fitted."""
    return [*_mpt_rows(), *_torchtitan_rows(), *_llm_c_rows(), _nanogpt_row(), *_h200_rows()]


def _mpt_rows() -> Iterator[Row]:
    for (card, tokens), table in _MPT_ROWS.items():
        for name, gpus, windows, steps, checkpoints, speed in table:
            work = Work(
                mpt(name, tokens), tokens, windows, steps, compiled=False, recomputed=checkpoints
            )
            itemsize = 2 if card == "a100-40gb" else 4  # "PURE": in bfloat16
            averaging = Averaging("full", itemsize, is_each=True)
            yield Row("llm-foundry", f"MPT {name}", card, gpus, work, speed, averaging)


def _torchtitan_rows() -> Iterator[Row]:
    for card, name, gpus, tokens, windows, repeated, compiled, speed in _TORCHTITAN_ROWS:
        work = Work(llama(name, tokens), tokens, windows, compiled=compiled, recomputed=repeated)
        yield Row("torchtitan", name, card, gpus, work, speed)


def _llm_c_rows() -> Iterator[Row]:
    for card, name, windows, steps, seconds in _LLM_C_ROWS:
        work = Work(gpt2(name), 1024, windows, steps)
        speed = work.tokens_per_step / seconds
        yield Row("llm.c", f"GPT-2 {name}", card, 8, work, speed, Averaging("none", 2))


def _nanogpt_row() -> Row:
    work = Work(gpt2("124M"), 1024, 12, 5)
    speed = 600_000 * work.tokens_per_step / (4 * 24 * 3600)
    return Row("nanoGPT", "GPT-2 124M", "a100-40gb", 8, work, speed, Averaging("none"))


def _h200_rows() -> Iterator[Row]:
    for source, name, kind, muon, compiled, ms in _H200_ROWS:
        work = Work(gpt2("124M", kind), 1024, 16, muon=muon, compiled=compiled)
        yield Row(source, name, "h200", 1, work, work.tokens_per_step / (ms / 1000))
