"""Options that are the fields of dataclasses: all of them, described, and only those given."""

from dataclasses import dataclass, fields

import pytest
from cyclopts import App

from headway.check.declaration import Declaration
from headway.cli.options import options
from headway.cli.train import train
from headway.models.gpt import GPTConfig
from headway.models.seq2seq import Seq2SeqConfig
from headway.training.settings import TrainingConfig


@dataclass(frozen=True)
class Inner:
    """Inner.

    Attributes
    ----------
    heads
        How many heads.
    width
        The inner width.
    """

    heads: int = 2
    width: int | None = None


@dataclass(frozen=True)
class Outer:
    """Outer.

    Attributes
    ----------
    width
        The width.
    inner
        More.
    learning_rate
        The rate.
    fast
        Whether it is fast.
    """

    width: int
    inner: Inner = Inner()
    learning_rate: float = 0.1
    fast: bool | None = None


Given = options(Outer)


def parsed(*words):
    app, results = App(exit_on_error=False, print_error=False), []

    @app.default
    def command(*, given: Given = None):
        results.append(given)

    app(list(words), result_action="return_value")
    return results[0]


def test_only_what_is_given_reaches_the_command():
    assert parsed() is None
    assert parsed("--width", "3", "--no-fast") == {"width": 3, "fast": False}
    assert parsed("--lr", "0.5") == parsed("--learning-rate", "0.5") == {"learning_rate": 0.5}
    assert parsed("--heads", "4", "--inner.width", "5") == {"inner.heads": 4, "inner.width": 5}


@pytest.mark.parametrize("config", [TrainingConfig, GPTConfig, Seq2SeqConfig, Declaration])
def test_every_field_is_an_option_with_a_description(config):
    keys = options(config).__origin__.__args__[0].__annotations__
    tables = {key.partition(".")[0] for key in keys}
    assert tables == {field.name for field in fields(config)}
    assert all(annotated.__metadata__[0].help for annotated in keys.values())


def test_help_of_train_names_them(capsys):
    App(default_command=train, result_action="return_value")(["--help"])
    printed = capsys.readouterr().out
    for option in ("--steps", "--lr", "--heads", "--kv-heads", "--mlp.width", "--recipe"):
        assert option in printed
