"""The plan of a training run: memory, time, speed, what limits it, and what to change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from headway.models.gpt import GPTConfig, preset
from headway.plan.cards import Cluster, Efficiency
from headway.plan.counts import Parameters, Work, parameters
from headway.plan.memory import Memory, memory
from headway.plan.seconds import Times, seconds
from headway.training import speed
from headway.training.settings import TrainingConfig

# The fraction of a card's memory that a plan fills: the rest is for fragments, the buffers of NCCL
# and the libraries.
USABLE = 0.92
WORTH = 1.03  # a change is suggested if it makes a step this many times as fast
HIDDEN = 0.1  # up to this fraction of a step, exposed communication is not remarked on
MOST = 2**16  # the largest number of GPUs that is tried

# Tokens of a tokenizer for which the recipe names no vocabulary: those of Shakespeare's plays by
# characters, and the defaults of `data.tokenizers.tokenizer_for`.
VOCABULARY = {"char": 65, "byte": 256, "bpe": 1024}

LIMITS = {
    "products": "matrix products",
    "attention": "attention",
    "memory": "kernels that wait for memory (norms, activations, the loss)",
    "update": "the update of the parameters",
    "exposed": "communication that no computation hides",
}


@dataclass(frozen=True)
class Estimate:
    """What a training run needs and how long it takes.

    batch: windows of a step, on all GPUs together. speed: tokens per second of all GPUs. mfu: model
    FLOPs utilization, as `headway train` prints it, but of the peak of the data sheet. suggestions:
    sentences; the first names what to do if the run does not fit.
    """

    work: Work
    cluster: Cluster
    batch: int
    steps: int
    parameters: Parameters
    memory: Memory
    times: Times
    speed: float
    mfu: float
    hours: float
    suggestions: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether the memory of a card is enough."""
        return _fits(self.memory, self.cluster)

    @property
    def limit(self) -> str:
        """What takes most of the time."""
        times = asdict(self.times)
        return LIMITS[max(times, key=lambda name: times[name])]

    def to_json(self) -> dict[str, Any]:
        """All numbers, in bytes and seconds."""
        return {
            "card": self.cluster.card.title,
            "gpus": self.cluster.gpus,
            "per_node": self.cluster.per_node,
            "batch": self.batch,
            "windows_per_gpu": self.work.rows * self.work.micro_batches,
            "windows_at_a_time": self.work.rows,
            "tokens_per_step": self.batch * self.work.tokens,
            "parameters": {**asdict(self.parameters), "total": self.parameters.total},
            "memory": {**asdict(self.memory), "total": self.memory.total},
            "memory_of_the_card": self.cluster.card.memory,
            "fits": self.fits,
            "seconds": {**asdict(self.times), "total": self.times.total},
            "tokens_per_second": self.speed,
            "mfu": self.mfu,
            "hours": self.hours,
            "limit": self.limit,
            "suggestions": list(self.suggestions),
        }


def model_of(settings: Mapping[str, Any]) -> tuple[GPTConfig, bool]:
    """The model of a recipe, and whether its vocabulary is an assumption.

    Raises ValueError for a recipe without a GPT, and for one whose vocabulary is unknown.
    """
    if settings.get("task", "next-token") != "next-token":
        raise ValueError(f"only a GPT can be planned (the task is {settings['task']!r})")
    if settings.get("rung") is not None:
        raise ValueError("a rung of the ladder cannot be planned; remove the setting rung")
    given = dict(settings["model"])
    if not given:
        raise ValueError("the recipe has no [model]; choose another one, such as gpt2-small")
    kind = settings.get("tokenizer", "bpe")
    is_assumed = "vocabulary" not in given
    if is_assumed:
        if kind not in VOCABULARY:
            raise ValueError(f"the vocabulary of {kind} is unknown; add --vocabulary")
        given["vocabulary"] = VOCABULARY[kind]
    return preset(given.pop("preset", "gpt2"), given), is_assumed


def work_of(model: GPTConfig, training: TrainingConfig, gpus: int) -> Work:
    """What each GPU does in a step. Raises ValueError for a batch that the GPUs cannot share."""
    batch = training.batch
    if batch < gpus:
        raise ValueError(
            f"batch must be at least the number of GPUs, so that each has a window of text "
            f"(got {batch:,} and {gpus:,})"
        )
    if batch % gpus:
        raise ValueError(f"batch must be a multiple of gpus (got {batch:,} and {gpus:,})")
    tokens = training.length or model.context
    if tokens > model.context:
        raise ValueError(
            f"length must be at most the context of the model, {model.context:,} (got {tokens:,})"
        )
    windows = batch // gpus
    rows = min(training.micro_batch or windows, windows)
    return Work(
        model,
        tokens,
        rows,
        -(-windows // rows),
        itemsize=4 if training.precision == "float32" else 2,
        muon=training.optimizer == "muon",
        recomputed=float(training.activation_checkpointing),
        compiled=training.compile is not False,
    )


def estimate(
    model: GPTConfig, training: TrainingConfig, cluster: Cluster, efficiency: Efficiency
) -> Estimate:
    """Plan a training run. Raises ValueError for settings that do not match."""
    work = work_of(model, training, cluster.gpus)
    count = parameters(model)
    times, needed = seconds(work, cluster, efficiency), memory(work, cluster.gpus)
    tokens = training.batch * work.tokens
    rate = tokens / times.total
    operations = speed.operations(model, count.total, work.tokens)
    return Estimate(
        work=work,
        cluster=cluster,
        batch=training.batch,
        steps=training.steps,
        parameters=count,
        memory=needed,
        times=times,
        speed=rate,
        mfu=rate * operations / (cluster.gpus * cluster.card.peak),
        hours=training.steps * times.total / 3600,
        suggestions=tuple(_suggestions(work, cluster, efficiency)),
    )


def _fits(memory: Memory, cluster: Cluster) -> bool:
    return memory.total <= USABLE * cluster.card.memory


def _choices(work: Work) -> Iterator[Work]:
    """The same windows with every number at a time, with and without checkpointing."""
    windows = work.rows * work.micro_batches
    for rows in range(1, windows + 1):
        if windows % rows == 0:
            for recomputed in (0.0, 1.0):
                yield replace(work, rows=rows, micro_batches=windows // rows, recomputed=recomputed)


def fastest(work: Work, cluster: Cluster, efficiency: Efficiency) -> Work | None:
    """The fastest choice that fits; None if none does.

    Of choices that take the same time up to three digits, one without checkpointing.
    """

    def cost(one: Work) -> tuple[float, float]:
        return float(f"{seconds(one, cluster, efficiency).total:.3g}"), one.recomputed

    fitting = [one for one in _choices(work) if _fits(memory(one, cluster.gpus), cluster)]
    return min(fitting, key=cost, default=None)


def _suggestions(work: Work, cluster: Cluster, efficiency: Efficiency) -> Iterator[str]:
    def total(one: Work) -> float:
        return seconds(one, cluster, efficiency).total

    fits = _fits(memory(work, cluster.gpus), cluster)
    best = fastest(work, cluster, efficiency)
    if best is None:
        yield _more_gpus(work, cluster)
        return
    if not fits:
        yield f"{_options(best)} fits, with {total(best):.3g} s a step"
    elif total(work) > WORTH * total(best):
        gain = 1 - total(best) / total(work)
        yield f"{_options(best)} fits too, and takes {gain:.0%} less time for a step"
    yield from _exposed(best, cluster, efficiency)


def _exposed(best: Work, cluster: Cluster, efficiency: Efficiency) -> Iterator[str]:
    """What hides communication: more windows per GPU."""
    now = seconds(best, cluster, efficiency)
    share = now.exposed / now.total
    if share <= HIDDEN:
        return
    for factor in (2, 4, 8, 16):
        more = replace(best, micro_batches=best.micro_batches * factor)
        more = fastest(more, cluster, efficiency) or more
        then = seconds(more, cluster, efficiency)
        if then.exposed / then.total <= HIDDEN or factor == 16:
            batch = more.rows * more.micro_batches * cluster.gpus
            yield (
                f"--batch {batch} {_options(more)} hides more communication: "
                f"{then.exposed / then.total:.0%} of a step is exposed instead of {share:.0%}; "
                "fewer GPUs with this batch do the same"
            )
            return


def _options(work: Work) -> str:
    checkpointing = "--activation-checkpointing" if work.recomputed else ""
    return f"--micro-batch {work.rows} {checkpointing}".strip()


def _more_gpus(work: Work, cluster: Cluster) -> str:
    """How many GPUs would be enough for one window each, with checkpointing."""
    least = replace(work, rows=1, micro_batches=1, recomputed=1.0)
    gpus = cluster.gpus
    while gpus < MOST:
        gpus *= 2
        if _fits(memory(least, gpus), cluster):
            return (
                f"no micro-batch fits on {cluster.gpus:,} of these cards, with checkpointing "
                f"neither; with parameters sharded over {gpus:,} of them one window fits"
            )
    return "no number of these cards is enough: a block or a window must become smaller"
