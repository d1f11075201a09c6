"""Find the parameters of one model in another one, by their values, in any arrangement.

Ports transpose matrices, pack several into one, split them by heads, or exchange rows; the values
stay the same. A matrix is found row by row, a vector as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
CLOSE = 1e-5  # relative difference of values that were only multiplied by a number


class Piece(NamedTuple):
    """Rows of a parameter of A, and where they are in a parameter of B.

    axis, is_turned: the view of that parameter, see `_view`. factor: B's values / A's.
    """

    rows: Tensor
    name: str
    axis: int
    is_turned: bool
    their_rows: Tensor
    factor: float = 1.0


class Match(NamedTuple):
    """The pieces of a parameter of A; several if B has equal ones, such as norms of ones.

    is_turned: whether they are columns of it.
    """

    shape: tuple[int, ...]
    choices: tuple[tuple[Piece, ...], ...]
    is_turned: bool = False

    @classmethod
    def of_name(cls, name: str, value: Tensor) -> Match:
        """The parameter of B with this name, of the same shape."""
        rows = torch.arange(len(_rows(value)))
        return cls(tuple(value.shape), ((Piece(rows, name, value.ndim - 1, False, rows),),))

    def _turned(self, value: Tensor) -> Tensor:
        return value.T.contiguous() if self.is_turned else _rows(value)

    def choice(self, number: int) -> Match:
        """One of the choices."""
        return self._replace(choices=self.choices[number : number + 1])

    @property
    def is_scaled(self) -> bool:
        """Whether B has a multiple of the values."""
        return any(piece.factor != 1 for pieces in self.choices for piece in pieces)

    def gathered(self, tensors: Tensors, *, is_gradient: bool = False) -> Iterator[Tensor]:
        """What the tensors of B have in these places, in the shape of the parameter of A.

        is_gradient: if B has `factor` times a value of A, the gradient of A is `factor` times that
        of B.
        """
        for pieces in self.choices:
            output = self._turned(torch.empty(self.shape, dtype=torch.float64))
            for piece in pieces:
                view = _view(tensors[piece.name], piece.axis, piece.is_turned)
                rows = _like(output, view)[piece.their_rows].double()
                output[piece.rows] = rows * (piece.factor if is_gradient else 1.0)
            yield output.T.clone() if self.is_turned else output.reshape(self.shape)

    def scatter(self, value: Tensor, tensors: Tensors) -> None:
        """Write a tensor of A to these places in the tensors of B."""
        rows = self._turned(value)
        for pieces in self.choices:
            for piece in pieces:
                tensor = tensors[piece.name]
                view = _like(rows, _view(tensor, piece.axis, piece.is_turned)).clone()
                view[piece.their_rows] = rows[piece.rows].to(view)
                _set_view(tensor, piece.axis, piece.is_turned, view)


def matches_of(a: Tensors, b: Tensors) -> dict[str, Match]:
    """Find the parameters of A in those of B; those that are not there are left out."""
    widths = {size for x in a.values() if x.ndim > 1 for size in (len(_rows(x)), x.shape[-1])}
    table = _row_table(b, widths)
    output: dict[str, Match] = {}
    for name, value in sorted(a.items(), key=lambda pair: pair[1].ndim < 2):  # matrices first
        is_turned = False
        if value.ndim > 1:
            choices = _matrix(value, table)
            if not choices and value.ndim == 2:  # as in the files of GPT-2, packed
                choices, is_turned = _matrix(value.T, table), True
        else:
            choices = _bias(name, value, output, b) or _vector(value, b)
        if not choices:
            choices, is_turned = _scaled(value, b), False
        if choices:
            output[name] = Match(tuple(value.shape), tuple(choices), is_turned)
    return output


def _rows(x: Tensor) -> Tensor:
    """The rows of a parameter of A; a vector has rows of one number."""
    return x.reshape(-1, 1) if x.ndim < 2 else x.flatten(0, -2)


def _view(x: Tensor, axis: int, is_turned: bool) -> Tensor:
    """A matrix whose columns are one axis of a parameter, or (turned) all others."""
    matrix = x.reshape(-1, 1) if x.ndim < 2 else x.movedim(axis, -1).flatten(0, -2)
    return matrix.T if is_turned else matrix


def _like(rows: Tensor, view: Tensor) -> Tensor:
    return view if view.shape[-1] == rows.shape[-1] else view.reshape(-1, rows.shape[-1])


@torch.no_grad()
def _set_view(x: Tensor, axis: int, is_turned: bool, view: Tensor) -> None:
    if x.ndim < 2:
        x.copy_(view.reshape(x.shape))
        return
    matrix = view.T if is_turned else view
    moved = x.movedim(axis, -1)
    moved.copy_(matrix.reshape(moved.shape))


Row = tuple[str, int, bool, int]  # parameter, axis, is_turned, number


def _row_table(b: Tensors, widths: set[int]) -> dict[int, list[Row]]:
    """The places of all rows with these numbers of columns, by the hash of their bytes."""
    table: dict[int, list[Row]] = {}
    for name, value in b.items():
        for axis in range(value.ndim if value.ndim > 1 else 0):
            for is_turned in (False, True) if value.ndim > 2 else (False,):
                view = _view(value, axis, is_turned)
                if view.shape[1] not in widths:
                    continue
                for number, row in enumerate(view.double().contiguous().numpy()):
                    table.setdefault(hash(row.tobytes()), []).append(
                        (name, axis, is_turned, number)
                    )
    return table


def _matrix(value: Tensor, table: Mapping[int, Sequence[Row]]) -> list[tuple[Piece, ...]]:
    """Where all rows of a matrix are; equal rows are taken in order."""
    seen: dict[int, int] = {}
    groups: dict[tuple[str, int, bool], tuple[list[int], list[int]]] = {}
    copies: dict[tuple[str, int, bool], tuple[list[int], list[int]]] = {}
    for number, row in enumerate(_rows(value).double().contiguous().numpy()):
        key = hash(row.tobytes())
        places = table.get(key, ())
        if not places:
            return []
        count = seen[key] = seen.get(key, -1) + 1
        own = [place for place in places if place[:3] == places[0][:3]]
        *where, their = own[min(count, len(own) - 1)]
        ours, theirs = groups.setdefault((where[0], where[1], where[2]), ([], []))  # type: ignore[arg-type]
        ours.append(number)
        theirs.append(their)
        for place in places:
            if place[:3] != places[0][:3]:  # such as an output layer that is a copy
                ours, theirs = copies.setdefault(place[:3], ([], []))
                ours.append(number)
                theirs.append(place[3])
    choices = [tuple(_piece(key, *rows) for key, rows in groups.items())]
    whole = {key: rows for key, rows in copies.items() if len({*rows[0]}) == len(_rows(value))}
    return choices + [(_piece(key, *rows),) for key, rows in whole.items()]


def _piece(key: tuple[str, int, bool], ours: Sequence[int], theirs: Sequence[int]) -> Piece:
    return Piece(torch.tensor(ours), *key, torch.tensor(theirs))


def _bias(
    name: str, value: Tensor, known: Mapping[str, Match], b: Tensors
) -> list[tuple[Piece, ...]]:
    """Where a bias is, if B names it like its weights: biases are often 0, and all alike."""
    weight = known.get(f"{name.removesuffix('bias')}weight")
    if not name.endswith("bias") or weight is None or len(weight.shape) < 2:
        return []
    pieces = []
    for piece in weight.choices[0]:
        other, rows = f"{piece.name.removesuffix('weight')}bias", piece.their_rows
        if other not in b or b[other].ndim != 1 or max(map(len, (rows, piece.rows))) > len(value):
            return []
        if int(rows.max()) >= len(b[other]) or int(piece.rows.max()) >= len(value):
            return []
        if not torch.equal(b[other][rows].double(), value[piece.rows].double()):
            return []
        pieces.append(Piece(piece.rows, other, 0, False, rows))
    return [tuple(pieces)] if sum(len(piece.rows) for piece in pieces) == len(value) else []


def _vector(value: Tensor, b: Tensors) -> list[tuple[Piece, ...]]:
    """Where a vector is, as a part of another one, in pieces, or in another order."""
    vectors = {name: x.flatten().double() for name, x in b.items() if x.ndim < 2}
    value, size = value.flatten().double(), value.numel()
    choices: list[tuple[Piece, ...]] = []
    for name, other in vectors.items():
        for start in (other == value[0]).nonzero().flatten().tolist():
            if torch.equal(other[start : start + size], value):
                choices.append((_range(name, 0, start, size),))
                break
    if choices:
        return choices
    pieces: list[Piece] = []
    start = 0
    while start < size:  # a packed vector of A
        fits = (
            (name, x)
            for name, x in vectors.items()
            if torch.equal(value[start : start + len(x)], x)
            and name not in {p.name for p in pieces}
        )
        name, other = next(fits, ("", value[:0]))
        if not len(other):
            break
        pieces.append(_range(name, start, 0, len(other)))
        start += len(other)
    else:
        return [tuple(pieces)]
    ordered = value.sort()
    for name, other in vectors.items():
        theirs = other.sort()
        is_same = torch.equal(ordered.values, theirs.values)
        if is_same and len({*ordered.values.tolist()}) == size:
            return [(Piece(ordered.indices, name, 0, False, theirs.indices),)]
    return []


def _range(name: str, ours: int, theirs: int, size: int) -> Piece:
    rows = torch.arange(size)
    return Piece(rows + ours, name, 0, False, rows + theirs)


def _scaled(value: Tensor, b: Tensors) -> list[tuple[Piece, ...]]:
    """Where the values of a parameter are, multiplied by a number."""
    rows = _rows(value).double()
    norm = float(rows.norm())
    for name, other in b.items():
        if other.numel() != value.numel() or not norm or (other.ndim < 2) != (value.ndim < 2):
            continue
        for axis in range(max(other.ndim, 1)):
            view = _view(other, axis, False).double()
            if view.shape != rows.shape:
                continue
            factor = float((view * rows).sum()) / norm**2
            if factor and float((view - factor * rows).norm()) <= CLOSE * abs(factor) * norm:
                numbers = torch.arange(len(rows))
                return [(Piece(numbers, name, axis, False, numbers, factor),)]
    return []
