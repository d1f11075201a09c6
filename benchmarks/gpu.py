"""All measurements on one GPU: training, head and loss, attention, generation, JAX.

    python -m benchmarks.gpu --output docs/bench/gpu.json

It takes about 15 minutes on an H200, half of it in torch.compile. It writes the file and the tables
of docs/performance.md after each row; `--only` replaces the rows of some sections in the file. Both
sides of a ratio run in turns in one process,
in bfloat16, with random weights and GPT-2's size (12 layers, 12 heads, width 768, vocabulary
50,304). A section that fails is recorded with its error. `--small` runs tiny models, on a CPU too,
to test this script.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from benchmarks import report
from benchmarks.plain import GPT2, PlainTrainer, Sizes
from torch import Tensor, nn

import headway
from headway.attention.masks import causal, documents
from headway.bench.machine import machine
from headway.models.gpt import GPTConfig, preset
from headway.torch import GPT
from headway.torch.generate import generate
from headway.torch.loss import linear_cross_entropy
from headway.torch.tasks import NextToken
from headway.torch.train import Trainer
from headway.training.settings import TrainingConfig
from headway.training.speed import operations, peak

TINY = Sizes(layers=2, heads=2, width=32, context=64, batch=4)
Run = Callable[[], object]


class Bench:
    """The sizes and the device of all sections."""

    def __init__(self, *, small: bool, device: str) -> None:
        self.sizes, self.vocabulary = (TINY, 307) if small else (GPT2, 50304)
        self.rounds, self.device = (2 if small else 20), device
        self.tokens = np.random.default_rng(0).integers(0, self.vocabulary, 2_000_000)

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def milliseconds(self, sides: dict[str, Run], at_once: int = 1) -> dict[str, list[float]]:
        """The times of all sides, which run in turns; the first rounds do not count."""
        times: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(3 + self.rounds):
            for name, run in sides.items():
                self.wait()
                began = time.perf_counter()
                for _ in range(at_once):
                    run()
                self.wait()
                if number >= 3:
                    times[name].append(1000 * (time.perf_counter() - began) / at_once)
        return times

    def memory(self, run: Run) -> float | None:
        """The peak memory while something runs, in GiB, with what was there before."""
        if self.device != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats()
        run()
        self.wait()
        return round(torch.cuda.max_memory_allocated() / 2**30, 2)

    def config(self, name: str, **changes: Any) -> GPTConfig:
        layers, heads, width, context, _ = self.sizes
        sizes = {"vocabulary": self.vocabulary, "context": context, "width": width}
        return preset(name, {**sizes, "layers": layers, **changes}, attention={"heads": heads})

    def headway(self, name: str, batch: int, dropout: float = 0.0, **settings: Any) -> Trainer:
        training = TrainingConfig(
            **{"steps": 2000, "batch": batch, "evaluate_every": 10**6, "evaluation_windows": 1},
            **{"precision": "bfloat16", **settings},
        )
        model = GPT(self.config(name, dropout=dropout)).to(self.device)
        task = NextToken(model, self.tokens[:-5000], self.tokens[-5000:], training)
        return Trainer(model, task, training)

    def plain(self, batch: int, *, compiled: bool) -> PlainTrainer:
        return PlainTrainer(
            torch.from_numpy(self.tokens),
            self.vocabulary,
            sizes=self.sizes._replace(batch=batch),
            device=self.device,
            compiled=compiled,
            bfloat16=True,
        )


def training(bench: Bench) -> Iterator[dict[str, Any]]:
    """Steps, each side against the compiled plain trainer; the last rows have twice the batch."""
    batch = bench.sizes.batch
    most = peak(bench.headway("gpt2", batch, compile=False).product, bench.device)
    yield {"what": "matrix products", "TFLOP/s": round(most / 1e12, 1)}
    sides: dict[str, Callable[[], Any]] = {
        "plain, eager": lambda: bench.plain(batch, compiled=False),
        "gpt2, AdamW, compiled": lambda: bench.headway("gpt2", batch, compile=True),
        "gpt2, AdamW, eager": lambda: bench.headway("gpt2", batch, compile=False),
        "modern, Muon, compiled": lambda: bench.headway(
            "modern", batch, optimizer="muon", compile=True
        ),
        "modern, Muon, eager": lambda: bench.headway(
            "modern", batch, optimizer="muon", compile=False
        ),
        "modern, Muon, dropout 0.1, compiled": lambda: bench.headway(
            "modern", batch, 0.1, optimizer="muon", compile=True
        ),
        "modern, Muon, dropout 0.1, eager": lambda: bench.headway(
            "modern", batch, 0.1, optimizer="muon", compile=False
        ),
        "gpt2, AdamW, compiled, twice the batch": lambda: bench.headway(
            "gpt2", 2 * batch, compile=True
        ),
    }
    plain = bench.plain(batch, compiled=True)
    for name, make in sides.items():
        gc.collect()
        if bench.device == "cuda":
            torch.cuda.empty_cache()
        began, before = time.perf_counter(), bench.memory(lambda: None)
        side = make()
        side.start()
        bench.wait()
        first = time.perf_counter() - began
        memory = bench.memory(lambda side=side: [side.start() for _ in range(3)])
        times = bench.milliseconds({"plain": plain.start, "side": side.start}, at_once=3)
        model: Any = side.model
        rows = side.sizes.batch if isinstance(side, PlainTrainer) else side.config.batch
        config = bench.config("gpt2") if isinstance(side, PlainTrainer) else model.config
        parameters = sum(p.numel() for p in model.parameters())
        per_token = operations(config, parameters, bench.sizes.context)
        speed = rows * bench.sizes.context / (report.middle(times["side"]) / 1000)
        yield {
            "what": name,
            "ms": report.middle(times["side"]),
            "plain, compiled, ms": report.middle(times["plain"]),
            "ratio": report.ratio(times["side"], times["plain"]),
            "tokens/s": round(speed),
            "MFU": round(speed * per_token / most, 3),
            "GiB": None if memory is None else round(memory - (before or 0), 2),
            "first step, s": round(first, 1),
        }
        del side, model
    yield {"what": "plain, compiled", "GiB": bench.memory(plain.start)}


def head_and_loss(bench: Bench) -> Iterator[dict[str, Any]]:
    """The loss in parts of several sizes against its matrix products, forward and backward."""
    rows, width = bench.sizes.batch * bench.sizes.context, bench.sizes.width
    x = torch.randn(rows, width, device=bench.device).bfloat16().requires_grad_()
    weight = torch.randn(bench.vocabulary, width, device=bench.device).bfloat16().requires_grad_()
    targets = torch.randint(0, bench.vocabulary, (rows,), device=bench.device)

    def products() -> None:
        with torch.no_grad():
            logits = x @ weight.mT
            _ = logits @ weight, logits.mT @ x

    def plain() -> Tensor:
        return nn.functional.cross_entropy((x @ weight.mT).float(), targets)

    def in_parts(at_once: int) -> Callable[[], Tensor]:
        return lambda: linear_cross_entropy(x, weight, targets, logits_at_once=at_once)

    makers = {"plain": plain, **{f"2^{n}": in_parts(2**n) for n in (24, 25, 26, 27, 28)}}
    for name, make in makers.items():
        torch.compiler.reset()
        loss = torch.compile(make)

        def run(loss: Callable[[], Tensor] = loss) -> None:
            torch.autograd.grad(loss(), (x, weight))

        run()
        times = bench.milliseconds({"products": products, "loss": run}, at_once=3)
        before = bench.memory(lambda: None)
        memory = bench.memory(run)
        yield {
            "what": name,
            "ms": report.middle(times["loss"]),
            "products, ms": report.middle(times["products"]),
            "ratio": report.ratio(times["loss"], times["products"]),
            "GiB": None if memory is None else round(memory - (before or 0), 2),
        }


def forward_and_backward(arrays: list[Tensor], kernel: str | None, options: dict[str, Any]) -> None:
    output = headway.attend(*arrays, kernel=kernel, **options)
    torch.autograd.grad(output.sum(), arrays)


def attention(bench: Bench) -> Iterator[dict[str, Any]]:
    """Forward and backward: the kernel that `attend` chooses, and all others that run the call."""
    small = bench.sizes is TINY
    shapes = [(2, 2, 64, 16)] if small else [(4, 12, 1024, 64), (4, 16, 4096, 128)]
    for batch, heads, tokens, features in shapes:
        arrays = [
            torch.randn(batch, heads, tokens, features, device=bench.device).bfloat16()
            for _ in range(3)
        ]
        arrays = [x.requires_grad_() for x in arrays]
        ids = torch.arange(tokens, device=bench.device).expand(batch, -1) // (tokens // 4)
        cases: dict[str, dict[str, Any]] = {
            "causal": {"causal": True},
            "dropout 0.1": {"causal": True, "dropout": 0.1, "seed": 0},
            "softcap 30": {"causal": True, "softcap": 30.0},
            "window 1/8": {"window": tokens // 8},
            "documents": {"mask": causal & documents(ids)},
        }
        for case, options in cases.items():
            sides = {}
            for kernel in (None, "sdpa", "sdpa-cudnn", "sdpa-flash", "triton", "flex", "tiled"):
                run = partial(forward_and_backward, arrays, kernel, options)
                try:
                    run()
                except Exception as error:  # a kernel that does not run here
                    reason = str(error).splitlines()[0][:120]
                    yield {"what": f"{case}, {kernel}", "error": reason}
                else:
                    sides[kernel or "attend"] = run
            times = bench.milliseconds(sides)
            yield {
                "what": f"{case}, {batch} x {heads} x {tokens} x {features}",
                "attend takes": headway.explain(*arrays, **options).chosen,
                **{name: report.middle(values) for name, values in times.items()},
            }


def generation(bench: Bench) -> Iterator[dict[str, Any]]:
    """Tokens per second against `transformers.generate`, both in bfloat16, top-k 200."""
    from transformers import GPT2Config, GPT2LMHeadModel

    layers, heads, width, context, _ = bench.sizes
    theirs = GPT2LMHeadModel(
        GPT2Config(
            **{"vocab_size": bench.vocabulary, "n_positions": context, "n_embd": width},
            **{"n_layer": layers, "n_head": heads, "bos_token_id": 0, "eos_token_id": None},
        )
    )
    theirs = theirs.to(bench.device, torch.bfloat16).eval()
    ours = GPT(bench.config("gpt2")).to(bench.device, torch.bfloat16).eval()
    count = 20 if bench.sizes is TINY else 200
    for batch in (1, 16):
        prompts = [np.array([number % 7 + 1] * 8) for number in range(batch)]
        inputs = torch.tensor(np.stack(prompts), device=bench.device)

        def we(prompts: list[np.ndarray] = prompts) -> None:
            for _ in generate(ours, prompts, tokens=count, top_k=200):
                pass

        def they(inputs: Tensor = inputs) -> None:
            options = {"max_new_tokens": count, "min_new_tokens": count, "pad_token_id": 0}
            theirs.generate(inputs, do_sample=True, top_k=200, **options)

        rounds, bench.rounds = bench.rounds, 3
        times = bench.milliseconds({"headway": we, "transformers": they})
        bench.rounds = rounds
        yield {
            "what": f"batch {batch}, {count} tokens",
            "headway, tokens/s": round(batch * count / (report.middle(times["headway"]) / 1000)),
            "transformers, tokens/s": round(
                batch * count / (report.middle(times["transformers"]) / 1000)
            ),
            "times as fast": report.ratio(times["transformers"], times["headway"]),
        }


def muon(bench: Bench) -> Iterator[dict[str, Any]]:
    """The loss after 300 steps with Muon's iteration in bfloat16 and in float32, three seeds."""
    steps = 3 if bench.sizes is TINY else 300
    text = np.random.default_rng(1).zipf(1.3, 400_000) % 65
    for seed in range(3):
        losses = {}
        for dtype in (torch.bfloat16, None):
            sizes = {"vocabulary": 65, "context": 64, "width": 128, "layers": 4}
            model = GPT(preset("modern", sizes, attention={"heads": 4}), seed=seed)
            training = TrainingConfig(
                **{"steps": steps, "batch": 64, "optimizer": "muon", "learning_rate": 6e-3},
                **{"evaluate_every": steps, "precision": "float32", "compile": False},
                seed=seed,
            )
            model = model.to(bench.device)
            trainer = Trainer(
                model, NextToken(model, text[:-9000], text[-9000:], training), training
            )
            trainer._optimizer._muon_dtype = dtype
            for _ in range(steps - 1):
                trainer.start()
            losses[dtype] = trainer.advance().validation
        bfloat16, float32 = losses.values()
        yield {"what": f"seed {seed}", "bfloat16": bfloat16, "float32": float32}


def jax(bench: Bench) -> Iterator[dict[str, Any]]:
    """A step in JAX, in another process, because each library takes the memory for itself."""
    small = ["--small"] if bench.sizes is TINY else []
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--jax-step", *small],
        env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    trainer = bench.headway("gpt2", bench.sizes.batch, compile=True)
    torch_time = report.middle(bench.milliseconds({"torch": trainer.start}, at_once=3)["torch"])
    yield {"what": "gpt2, AdamW, PyTorch, compiled", "ms": torch_time}
    for row in json.loads(done.stdout.splitlines()[-1]):
        yield {**row, "ratio": round(row["ms"] / torch_time, 3)}


def jax_step(bench: Bench) -> None:
    """Print the times of steps in JAX as JSON."""
    from headway.engines import engine_named
    from headway.training.runs import RunConfig

    rows = []
    for name, settings in (("gpt2", {}), ("modern", {"optimizer": "muon"})):
        training = TrainingConfig(
            **{"steps": 2000, "batch": bench.sizes.batch, "evaluate_every": 10**6},
            **{"evaluation_windows": 1, "precision": "bfloat16", **settings},
        )
        config = RunConfig("next-token", "", "", "", "", None, bench.config(name), training)
        data = (bench.tokens[:-5000], bench.tokens[-5000:])
        trainer = engine_named("jax").trainer(config, data)
        began = time.perf_counter()
        trainer.advance()
        first = time.perf_counter() - began
        times = []
        for _ in range(bench.rounds):
            began = time.perf_counter()
            pending = [trainer.start() for _ in range(3)]
            pending[-1].result()
            times.append(1000 * (time.perf_counter() - began) / 3)
        rows.append(
            {"what": f"{name}, JAX", "ms": report.middle(times), "first step, s": round(first, 1)}
        )
    print(json.dumps(rows))


SECTIONS = {
    "training": training,
    "head and loss": head_and_loss,
    "attention": attention,
    "generation": generation,
    "jax": jax,
    "muon": muon,
}


def tables(results: report.Report) -> str:
    """One table per section. An empty cell: the kernel refuses the call."""
    parts = [report.about(results["machine"])]
    for section, content in results["sections"].items():
        rows = [row for row in content["rows"] if "error" not in row or row["what"] == "failed"]
        parts += [f"**{section}** ({content['seconds']:.0f} s)", report.table(rows)]
    return "\n\n".join(parts)


def main() -> None:
    parser = report.options(__doc__)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--jax-step", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.small:
        parser.error("this needs a GPU; --small tests the script on a CPU")
    bench = Bench(small=options.small, device=device)
    if options.jax_step:
        jax_step(bench)
        return
    output = options.output
    results: dict[str, Any] = {"machine": machine(device), "sections": {}}
    if output and output.exists() and options.only != list(SECTIONS):
        results["sections"] = json.loads(output.read_text(encoding="utf-8"))["sections"]
    for name in options.only:
        began = time.perf_counter()
        section = results["sections"][name] = {"seconds": 0.0, "rows": []}
        for row in rows_of(SECTIONS[name], bench):
            section["rows"].append(row)
            section["seconds"] = round(time.perf_counter() - began, 1)
            print(f"{name}: {json.dumps(row)}", flush=True)
            if output:
                output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
                if output.resolve() == report.BENCH / "gpu.json":
                    report.write_pages("gpu")


def rows_of(
    section: Callable[[Bench], Iterator[dict[str, Any]]], bench: Bench
) -> Iterator[dict[str, Any]]:
    """The rows of a section; if it fails, the last one is the error."""
    try:
        yield from section(bench)
    except Exception as error:
        traceback.print_exc()
        yield {"what": "failed", "error": str(error).splitlines()[:1]}


if __name__ == "__main__":
    main()
