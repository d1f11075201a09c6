"""Compare all implementations in one setting: correctness, time and memory."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, inf, log2
from statistics import median, quantiles
from typing import Literal

from torch import Tensor

from headway.attention.spec import Unsupported
from headway.bench import expected, measure
from headway.bench.implementations import Candidate, Implementation, baseline, candidates
from headway.bench.measure import ratios
from headway.bench.settings import DTYPES, Setting

# right: measured; wrong: not ranked; failed: raised an error; skipped: too large or too slow
Verdict = Literal["right", "waiting", "skipped", "failed", "wrong"]
ORDER: tuple[Verdict, ...] = ("right", "waiting", "skipped", "failed", "wrong")

PATIENCE = 4  # the maximum time of one run, relative to the seconds per row
PROBES = (256, 512)  # tokens
MARGIN = 1.25  # for extrapolated memory
_AGAIN = "the baseline again"


@dataclass
class Row:
    """One implementation in one setting. Times in seconds, memory in bytes."""

    name: str
    verdict: Verdict = "waiting"
    reason: str = ""
    ran: str = ""
    seconds: list[float] = field(default_factory=list)  # one per round
    against: list[float] = field(default_factory=list)  # of the baseline, in the same rounds
    once: float | None = None  # a single warm call
    compiling: float | None = None  # None if nothing is compiled
    building_mask: float | None = None  # None if every call builds it
    memory: int | None = None
    error: float | None = None  # see `Expected.error`; None if it is not finite

    @property
    def median(self) -> float | None:
        """The median of the rounds."""
        return median(self.seconds) if self.seconds else None

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """The first and the third quartile of the rounds."""
        return _quartiles(self.seconds)

    @property
    def speed(self) -> float | None:
        """The speed relative to the baseline in the same round, the median."""
        speeds = ratios(self.seconds, self.against)
        return median(speeds) if speeds else None


@dataclass
class Table:
    """The results of one setting."""

    setting: Setting
    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)  # name: reason
    skipped: str = ""  # the reason, if nothing was measured
    note: str = ""
    plain_error: float | None = None
    noise: list[float] = field(default_factory=list)  # the baseline's speed relative to itself

    @property
    def noise_floor(self) -> tuple[float, float] | None:
        """The quartiles of `noise`."""
        return _quartiles(self.noise)

    def ranked(self) -> list[Row]:
        """Return the rows: the fastest first, then those not measured, the wrong ones last."""
        return sorted(self.rows, key=lambda row: (ORDER.index(row.verdict), row.median or inf))


def _quartiles(numbers: Sequence[float]) -> tuple[float, float] | None:
    if len(numbers) < 2:
        return None
    first, _, third = quantiles(numbers, n=4, method="inclusive")
    return first, third


class _NotTimed(Exception):  # noqa: N818 - not an error
    """A row is not timed: its verdict and the reason."""


@dataclass(frozen=True)
class Bench:
    """How to measure.

    seconds: per row, for its rounds. peak: floating-point operations per second that the machine
    reaches, by dtype. kernels: only these. custom: further candidates. stopped: whether Ctrl-C was
    pressed. show: called with a table, and what is being done, whenever that changes.
    """

    seconds: float
    peak: Callable[[str], float]
    kernels: Sequence[str] | None = None
    custom: Sequence[Candidate] = ()
    stopped: Callable[[], bool] = lambda: False
    show: Callable[[Table, str], object] = lambda table, doing: None

    def compare(self, setting: Setting, shorter: Table | None = None) -> Table:
        """Measure one setting. shorter: the table of the same setting with fewer tokens."""
        table = Table(setting, skipped=self._too_large(setting))
        if not table.skipped:
            with measure.no_collection():
                self._fill(table, shorter)
        return table

    def _fill(self, table: Table, shorter: Table | None) -> None:
        setting = table.setting
        chosen = [*candidates(setting, self.kernels), *self.custom]
        table.rows = [Row(candidate.name) for candidate in chosen]
        self.show(table, "the expected results")
        table.plain_error = expected.compute(setting).plain_error
        inputs = expected.inputs(setting)
        ready: dict[str, Implementation] = {}
        for candidate, row in zip(chosen, [*table.rows], strict=True):
            if self.stopped():
                break
            self.show(table, candidate.name)
            try:
                if shorter is not None:
                    self._check_growth(row, setting, shorter)
                implementation = candidate.make(setting, inputs)
                self._prepare(candidate, implementation, row, setting)
            except Unsupported as refused:
                table.left_out[row.name] = str(refused)
                table.rows.remove(row)
            except _NotTimed as reason:
                row.verdict, row.reason = reason.args
            except (Exception, SystemExit) as error:  # of any code
                if not self.stopped():  # Ctrl-C also reaches a running compiler
                    row.verdict, row.reason = "failed", _one_line(error)
            else:
                ready[row.name] = implementation
        self._time(table, ready)

    def affordable(self, setting: Setting) -> Setting:
        """Halve the batch until one run of plain may end in time."""
        if setting.batch == 1 or self._too_large(setting):
            return setting
        one = replace(setting, batch=1, compiled=False)
        plain = candidates(one)[0].make(one, expected.inputs(one))
        seconds, batch = measure.Workload(plain.work, plain.finish).seconds(), setting.batch
        while batch > 1 and seconds * batch > self._longest:
            batch //= 2
        return replace(setting, batch=batch)

    @property
    def _longest(self) -> float:
        """The maximum number of seconds of one run."""
        return PATIENCE * self.seconds

    def _too_large(self, setting: Setting) -> str:
        """Return why nothing can be measured, or ""."""
        need, free = expected.size(setting), measure.memory(device=setting.device)
        if free is not None and need > free:
            return f"the inputs alone would need about {size(need)}, {size(free)} are free"
        least = setting.flops / self.peak(setting.dtype)
        if least > self._longest:
            return f"at this machine's peak one run would take {least:,.0f} s{self._advice(least)}"
        return ""

    def _advice(self, seconds: float) -> str:
        wanted = ceil(seconds / PATIENCE)
        return f"; the limit is {self._longest:g} s, --seconds {wanted} would allow it"

    def _check_time(self, seconds: float, what: str) -> None:
        if seconds > self._longest:
            raise _NotTimed("skipped", f"{what} {seconds:.3g} s{self._advice(seconds)}")

    def _check_growth(self, row: Row, setting: Setting, shorter: Table) -> None:
        """Raise _NotTimed for a run that must take too long: every attention takes at least time
        in proportion to its tokens."""
        before = next((other for other in shorter.rows if other.name == row.name), None)
        spent = before and (before.median or before.once)
        if spent:
            least = spent * setting.tokens / shorter.setting.tokens
            if least > self._longest:
                row.once = least
            self._check_time(least, "judging by fewer tokens, one run takes at least")

    def _prepare(
        self, candidate: Candidate, implementation: Implementation, row: Row, setting: Setting
    ) -> None:
        """Fill a row except for its rounds. Raises _NotTimed if it will have no rounds."""
        need = self._need(candidate, implementation, setting)
        free = measure.memory(device=setting.device)
        if need is not None and free is not None and need > free:
            raise _NotTimed("skipped", f"would need about {size(need)}, {size(free)} are free")
        began = time.perf_counter()
        results = implementation.first_example()
        row.once = first = time.perf_counter() - began
        row.building_mask = implementation.builds_mask
        self._check_stop()
        complaint = self._complaint(candidate, implementation, results, row, setting)
        if not complaint and not implementation.compiled:
            self._check_time(first, "one run took")
        row.ran, compiled = implementation.profile()
        if complaint:
            raise _NotTimed("wrong", complaint)
        if implementation.compiled and not compiled:
            raise RuntimeError(f"nothing was compiled: {row.ran} ran")
        self._check_stop()
        seconds: list[float] = []
        workload = measure.Workload(implementation.work, implementation.finish)
        row.memory = measure.peak_memory(lambda: seconds.append(workload.seconds()), setting.device)
        (row.once,) = seconds
        if setting.device == "cuda" and implementation.needs is not None:
            row.memory = implementation.needs  # of JAX, which PyTorch's allocator does not see
        if compiled:
            spent = implementation.compiles
            row.compiling = max(0.0, first - row.once) if spent is None else spent
        else:  # measuring memory takes time
            row.once = min(first, row.once)
        self._check_time(row.once, "one run took")
        row.verdict = "right"

    def _check_stop(self) -> None:
        if self.stopped():
            raise _NotTimed("waiting", "")

    def _complaint(
        self,
        candidate: Candidate,
        implementation: Implementation,
        results: list[Tensor],
        row: Row,
        setting: Setting,
    ) -> str:
        """Return what is wrong with the results, or ""."""
        if not all(bool(result.isfinite().all()) for result in results):
            return "the results contain NaN or infinity"
        right = (candidate.expected or expected.compute)(setting)
        row.error = None if right is None else right.error(results)
        if candidate.complaint or right is None or right.excess(results) <= 1:
            return candidate.complaint
        if setting.mask is not None and implementation.leaks():
            return "attends to the future"
        return f"the error is {right.excess(results):,.3g} times the tolerance"

    def _need(
        self, candidate: Candidate, implementation: Implementation, setting: Setting
    ) -> float | None:
        """Estimate the bytes of a run from runs with few tokens; 0 if memory is abundant."""
        if implementation.needs is not None:
            return implementation.needs
        free = measure.memory(device=setting.device)
        scores = setting.batch * setting.heads * setting.tokens**2 * DTYPES[setting.dtype]
        if free is None or 4 * scores * setting.head_dim < free:
            return 0.0  # four vectors for every pair of query and key would fit
        peaks = []
        for tokens in PROBES:
            small = replace(setting, batch=1, tokens=tokens, compiled=False)
            probe = candidate.make(small, expected.inputs(small))
            probe.work()
            peaks.append(measure.peak_memory(probe.work, setting.device))
        short, long = (max(peak or 0, 1) for peak in peaks)
        growth = min(2.0, max(1.0, log2(long / short)))
        return MARGIN * setting.batch * long * (setting.tokens / PROBES[1]) ** growth

    def _time(self, table: Table, ready: Mapping[str, Implementation]) -> None:
        """Measure the rounds of all implementations that are ready."""
        once = {row.name: row.once for row in table.rows}
        workloads = {n: measure.Workload(i.work, i.finish, once[n]) for n, i in ready.items()}
        base = baseline(table.setting)
        if base in workloads:
            workloads[_AGAIN] = workloads[base]

        def after(timings: measure.Timings) -> None:
            for row in table.rows:
                row.seconds = timings.get(row.name, [])
                row.against = timings.get(base, [])
            table.noise = ratios(timings.get(_AGAIN, []), timings.get(base, []))
            self.show(table, f"round {len(timings.get(base, []))}")

        after(
            measure.alternate(
                workloads, seconds=self.seconds, baseline=base, stopped=self.stopped, after=after
            )
        )


def size(count: float) -> str:
    """Format a number of bytes."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _one_line(error: BaseException) -> str:
    """Format an error as one line."""
    first = (str(error).strip().splitlines() or [""])[0][:160]
    kind = type(error)
    compiler = kind.__module__.startswith(("torch._dynamo", "torch._inductor"))
    what = "compile failed:" if compiler else "raised"
    return f"{what} {kind.__name__}{': ' if first else ''}{first}"
