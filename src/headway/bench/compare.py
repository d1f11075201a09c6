"""One setting, every implementation: which are right, and what each of them costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, inf, log2
from statistics import median, quantiles
from typing import Literal

from torch import Tensor

from headway.attention.spec import Unsupported
from headway.bench import exact, measure
from headway.bench.measure import ratios
from headway.bench.settings import DTYPES, Setting
from headway.bench.sides import Candidate, Side, candidates, yardstick

# right: measured. wrong: not ranked. failed: it raised an error. skipped: too large or too slow.
Verdict = Literal["right", "waiting", "skipped", "failed", "wrong"]
ORDER: tuple[Verdict, ...] = ("right", "waiting", "skipped", "failed", "wrong")

PATIENCE = 4  # a run may take so many times the seconds of a row
PROBES = (256, 512)  # tokens
MARGIN = 1.25  # on memory that was extrapolated
_AGAIN = "the yardstick again"


@dataclass
class Row:
    """One implementation in one setting. Times in seconds, memory in bytes."""

    name: str
    verdict: Verdict = "waiting"
    reason: str = ""
    ran: str = ""
    seconds: list[float] = field(default_factory=list)  # one a round
    against: list[float] = field(default_factory=list)  # the yardstick's, in the same rounds
    once: float | None = None  # a warm call by itself
    compiling: float | None = None  # None where nothing is compiled
    building_mask: float | None = None  # None where that is a part of every call
    memory: int | None = None
    error: float | None = None  # see `Exact.error`; None where it is not finite

    @property
    def median(self) -> float | None:
        """The median round."""
        return median(self.seconds) if self.seconds else None

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """The first and the third, of the rounds."""
        return _quartiles(self.seconds)

    @property
    def speed(self) -> float | None:
        """How many times as fast as the yardstick, the median over the rounds."""
        found = ratios(self.seconds, self.against)
        return median(found) if found else None


@dataclass
class Table:
    """One setting and what was found in it."""

    setting: Setting
    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)  # name: reason
    skipped: str = ""  # why nothing was measured
    note: str = ""
    plain_error: float | None = None
    noise: list[float] = field(default_factory=list)  # the yardstick's speed against itself

    @property
    def noise_floor(self) -> tuple[float, float] | None:
        """The quartiles of the yardstick's speed against itself."""
        return _quartiles(self.noise)

    def ranked(self) -> list[Row]:
        """The fastest first; then what was not measured, and last what is wrong."""
        return sorted(self.rows, key=lambda row: (ORDER.index(row.verdict), row.median or inf))


def _quartiles(numbers: Sequence[float]) -> tuple[float, float] | None:
    if len(numbers) < 2:
        return None
    first, _, third = quantiles(numbers, n=4, method="inclusive")
    return first, third


class _Out(Exception):  # noqa: N818 - no error: a row that is not timed
    """Its verdict and the reason."""


@dataclass(frozen=True)
class Bench:
    """How a run measures.

    seconds: of a row, for its rounds. peak: floating-point operations a second that the machine
    reaches, by dtype. kernels: those only. yours: candidates more. stopped: whether somebody
    pressed Ctrl-C. show: called with a table, and what is being done, whenever that changes.
    """

    seconds: float
    peak: Callable[[str], float]
    kernels: Sequence[str] | None = None
    yours: Sequence[Candidate] = ()
    stopped: Callable[[], bool] = lambda: False
    show: Callable[[Table, str], object] = lambda table, doing: None

    def compare(self, setting: Setting, shorter: Table | None = None) -> Table:
        """The table of a setting. shorter: that of the same setting with fewer tokens."""
        table = Table(setting, skipped=self._refused(setting))
        if not table.skipped:
            with measure.no_collection():
                self._fill(table, shorter)
        return table

    def _fill(self, table: Table, shorter: Table | None) -> None:
        setting = table.setting
        some = [*candidates(setting, self.kernels), *self.yours]
        table.rows = [Row(candidate.name) for candidate in some]
        self.show(table, "what is right")
        table.plain_error = exact.exact(setting).plain_error
        given = exact.inputs(setting)
        ready: dict[str, Side] = {}
        for candidate, row in zip(some, [*table.rows], strict=True):
            if self.stopped():
                break
            self.show(table, candidate.name)
            try:
                if shorter is not None:
                    self._would_end(row, setting, shorter)
                side = candidate.make(setting, given)
                self._prepare(candidate, side, row, setting)
            except Unsupported as refused:
                table.left_out[row.name] = str(refused)
                table.rows.remove(row)
            except _Out as out:
                row.verdict, row.reason = out.args
            except (Exception, SystemExit) as error:  # of anybody's code
                if not self.stopped():  # Ctrl-C reaches a compiler at work, too
                    row.verdict, row.reason = "failed", _said(error)
            else:
                ready[row.name] = side
        self._time(table, ready)

    def affordable(self, setting: Setting) -> Setting:
        """The setting, its batch halved until one run of plain may end in time."""
        if setting.batch == 1 or self._refused(setting):
            return setting
        one = replace(setting, batch=1, compiled=False)
        plain = candidates(one)[0].make(one, exact.inputs(one))
        seconds, batch = measure.Side(plain.work, plain.finish).seconds(), setting.batch
        while batch > 1 and seconds * batch > self._longest:
            batch //= 2
        return replace(setting, batch=batch)

    @property
    def _longest(self) -> float:
        """Seconds that one run may take."""
        return PATIENCE * self.seconds

    def _refused(self, setting: Setting) -> str:
        """Why nothing can be measured; empty when something can."""
        need, free = exact.size(setting), measure.memory(device=setting.device)
        if free is not None and need > free:
            return f"the inputs alone would need about {size(need)}, {size(free)} are free"
        least = setting.flops / self.peak(setting.dtype)
        if least > self._longest:
            return f"at this machine's peak one run would take {least:,.0f} s{self._advice(least)}"
        return ""

    def _advice(self, seconds: float) -> str:
        wanted = ceil(seconds / PATIENCE)
        return f", and may take {self._longest:g} s: --seconds {wanted} would allow it"

    def _in_time(self, seconds: float, what: str) -> None:
        if seconds > self._longest:
            raise _Out("skipped", f"{what} {seconds:.3g} s{self._advice(seconds)}")

    def _would_end(self, row: Row, setting: Setting, shorter: Table) -> None:
        """Raise _Out where it must take too long: no attention grows slower than its tokens."""
        before = next((each for each in shorter.rows if each.name == row.name), None)
        spent = before and (before.median or before.once)
        if spent:
            least = spent * setting.tokens / shorter.setting.tokens
            if least > self._longest:
                row.once = least
            self._in_time(least, "judging by fewer tokens, one run takes at least")

    def _prepare(self, candidate: Candidate, side: Side, row: Row, setting: Setting) -> None:
        """Everything of a row but its rounds. Raises _Out for one that gets none."""
        need, free = self._need(candidate, side, setting), measure.memory(device=setting.device)
        if need is not None and free is not None and need > free:
            raise _Out("skipped", f"would need about {size(need)}, {size(free)} are free")
        began = time.perf_counter()
        found = side.first_row()
        row.once = first = time.perf_counter() - began
        row.building_mask = side.builds_mask
        self._go_on()
        complaint = self._complaint(candidate, side, found, row, setting)
        if not complaint and not side.compiled:
            self._in_time(first, "one run took")
        row.ran, compiled = side.ran()
        if complaint:
            raise _Out("wrong", complaint)
        if side.compiled and not compiled:
            raise RuntimeError(f"nothing was compiled: {row.ran} ran")
        self._go_on()
        took: list[float] = []
        timed = measure.Side(side.work, side.finish)
        row.memory = measure.peak_memory(lambda: took.append(timed.seconds()), setting.device)
        (row.once,) = took
        if setting.device == "cuda" and side.needs is not None:
            row.memory = side.needs  # JAX's, which PyTorch's allocator does not see
        if compiled:
            row.compiling = max(0.0, first - row.once) if side.compiles is None else side.compiles
        else:  # to measure memory costs time
            row.once = min(first, row.once)
        self._in_time(row.once, "one run took")
        row.verdict = "right"

    def _go_on(self) -> None:
        if self.stopped():
            raise _Out("waiting", "")

    def _complaint(
        self, candidate: Candidate, side: Side, found: list[Tensor], row: Row, setting: Setting
    ) -> str:
        """What is wrong; empty when nothing is."""
        if not all(bool(each.isfinite().all()) for each in found):
            return "gives numbers that are not finite"
        truth = exact.exact(setting) if candidate.right is None else candidate.right(setting)
        row.error = None if truth is None else truth.error(found)
        if candidate.complaint or truth is None or truth.excess(found) <= 1:
            return candidate.complaint
        if setting.mask is not None and side.sees_the_future():
            return "attends to the future"
        return f"its error is {truth.excess(found):,.3g} times what rounding allows"

    def _need(self, candidate: Candidate, side: Side, setting: Setting) -> float | None:
        """Bytes that a run would take, from runs of few tokens; 0 where any attention has room."""
        if side.needs is not None:
            return side.needs
        free = measure.memory(device=setting.device)
        scores = setting.batch * setting.heads * setting.tokens**2 * DTYPES[setting.dtype]
        if free is None or 4 * scores * setting.head_dim < free:
            return 0.0  # even a vector for each pair of a query and a key fits, four times
        found = []
        for tokens in PROBES:
            small = replace(setting, batch=1, tokens=tokens, compiled=False)
            probe = candidate.make(small, exact.inputs(small))
            probe.work()
            found.append(measure.peak_memory(probe.work, setting.device))
        short, long = (max(each or 0, 1) for each in found)
        growth = min(2.0, max(1.0, log2(long / short)))
        return MARGIN * setting.batch * long * (setting.tokens / PROBES[1]) ** growth

    def _time(self, table: Table, ready: Mapping[str, Side]) -> None:
        """The rounds of those that are ready."""
        own = {row.name: row.once for row in table.rows}
        sides = {n: measure.Side(s.work, s.finish, own[n]) for n, s in ready.items()}
        base = yardstick(table.setting)
        if base in sides:
            sides[_AGAIN] = sides[base]

        def after(found: measure.Found) -> None:
            for row in table.rows:
                row.seconds = found.get(row.name, [])
                row.against = found.get(base, [])
            table.noise = ratios(found.get(_AGAIN, []), found.get(base, []))
            self.show(table, f"round {len(found.get(base, []))}")

        found = measure.in_turns(
            sides, seconds=self.seconds, yardstick=base, stopped=self.stopped, after=after
        )
        after(found)


def size(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _said(error: BaseException) -> str:
    """An error in one line."""
    first = (str(error).strip().splitlines() or [""])[0][:160]
    kind = type(error)
    compiler = kind.__module__.startswith(("torch._dynamo", "torch._inductor"))
    what = "compile failed:" if compiler else "raised"
    return f"{what} {kind.__name__}{': ' if first else ''}{first}"
