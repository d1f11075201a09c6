"""The ports are right, and every planted fault changes the step that its table names."""

import math
import re
from collections import defaultdict
from functools import partial
from itertools import cycle, zip_longest

import pytest
import torch
from torch.overrides import TorchFunctionMode

import headway
from planted import (
    FAULTS,
    KINDS,
    PORTS,
    WITH_CACHE,
    changed,
    folders,
    load,
    logits,
    one_by_one,
    source,
    tokens,
)

SAME = 1e-9  # float64; larger differences are not due to rounding
TRAINING = ("loss", "gradients.", "updates.")

# Modules of a port -> the steps of Headway that their input and their output show; None: no step.
# Four steps: those of the first and of the second call in a layer.
# The input of an output projection shows how the heads are merged, which is part of the output.
MODULES = {
    "gpt2": {
        "h.*.ln_1": (None, "blocks.*.attention_norm"),
        "h.*.attn.c_proj": ("blocks.*.attention.output", "blocks.*.attention.output"),
        "h.*.ln_2": (None, "blocks.*.mlp_norm"),
        "h.*.mlp.c_proj": ("blocks.*.mlp.hidden", "blocks.*.mlp.output"),
        "h.*": (None, "blocks.*.after_mlp"),
        "ln_f": (None, "final_norm"),
        "": (None, "logits"),
    },
    "llama": {
        "tok_embeddings": (None, "embedded"),
        "layers.*.attention_norm": (None, "blocks.*.attention_norm"),
        "layers.*.attention.wo": ("blocks.*.attention.output", "blocks.*.attention.output"),
        "layers.*.ffn_norm": (None, "blocks.*.mlp_norm"),
        "layers.*.feed_forward.w2": ("blocks.*.mlp.hidden", "blocks.*.mlp.output"),
        "layers.*": (None, "blocks.*.after_mlp"),
        "norm": (None, "final_norm"),
        "": (None, "logits"),
    },
    "qwen3": {"layers.*": (None, "blocks.*.after_mlp"), "": (None, "logits")},
    "mistral": {
        "layers.*.attention_norm": (None, "blocks.*.attention_norm"),
        "layers.*.attention.rotary": (None, "blocks.*.attention.queries", None, None),
        "layers.*.attention.out": ("blocks.*.attention.output", "blocks.*.attention.output"),
        "layers.*.mlp_norm": (None, "blocks.*.mlp_norm"),
        "layers.*.mlp.down": ("blocks.*.mlp.hidden", "blocks.*.mlp.output"),
        "layers.*": (None, "blocks.*.after_mlp"),
        "final_norm": (None, "final_norm"),
        "": (None, "logits"),
    },
    "bert": {
        "embeddings": (None, "embedded"),
        "layers.*.attention.dense": ("blocks.*.attention.output", "blocks.*.attention.output"),
        "layers.*.up": ("blocks.*.after_attention", None),
        "layers.*.down": ("blocks.*.mlp.hidden", "blocks.*.mlp.output"),
        "layers.*": (None, "blocks.*.after_mlp"),
        "": (None, "logits"),
    },
}

# Functions of PyTorch that are called once per layer -> the steps that their arguments and their
# result show. The keys of `scaled_dot_product_attention` are already repeated. Headway does not tap
# `masked` in BERT, so that a mask belongs to the weights.
FUNCTIONS = {
    "gpt2": {"softmax": (("masked",), "weights")},
    "llama": {"scaled_dot_product_attention": (("queries", "scores"), "context")},
    "qwen3": {"softmax": (("masked",), "weights")},
    "mistral": {"softmax": (("masked",), "weights")},
    "bert": {"softmax": (("weights",), "weights")},
}

# The einsums of a layer of the port of Qwen 3, in order.
EINSUMS = [
    (("attention_norm",), "attention.unnormalized_queries"),
    ((), "attention.unnormalized_keys"),
    ((), "attention.values"),
    (("attention.queries", "attention.scores"), "attention.scores"),
    (("attention.weights", "attention.context"), "attention.context"),
    ((), "attention.output"),
    (("mlp_norm",), None),
    ((), None),
    (("mlp.hidden",), "mlp.output"),
]

# The parameters of a port -> those of Headway; several names are parts of the first axis.
PARAMETERS = {
    "gpt2": {
        "wte": "embedding",
        "lm_head": "head",
        "wpe": "position_embedding",
        "h.*.ln_1": "blocks.*.attention_norm",
        "h.*.attn.c_attn": "blocks.*.attention.q blocks.*.attention.k blocks.*.attention.v",
        "h.*.attn.c_proj": "blocks.*.attention.output",
        "h.*.ln_2": "blocks.*.mlp_norm",
        "h.*.mlp.c_fc": "blocks.*.mlp.up",
        "h.*.mlp.c_proj": "blocks.*.mlp.down",
        "ln_f": "final_norm",
    },
    "llama": {
        "tok_embeddings": "embedding",
        "output": "head",
        "layers.*.attention_norm": "blocks.*.attention_norm",
        "layers.*.attention.wq": "blocks.*.attention.q",
        "layers.*.attention.wk": "blocks.*.attention.k",
        "layers.*.attention.wv": "blocks.*.attention.v",
        "layers.*.attention.wo": "blocks.*.attention.output",
        "layers.*.ffn_norm": "blocks.*.mlp_norm",
        "layers.*.feed_forward.w1": "blocks.*.mlp.gate",
        "layers.*.feed_forward.w2": "blocks.*.mlp.down",
        "layers.*.feed_forward.w3": "blocks.*.mlp.up",
        "norm": "final_norm",
    },
    "qwen3": {
        "embed": "embedding",
        "layers.*.norm1": "blocks.*.attention_norm",
        "layers.*.norm2": "blocks.*.mlp_norm",
        "layers.*.q_norm": "blocks.*.attention.q_norm",
        "layers.*.k_norm": "blocks.*.attention.k_norm",
        "layers.*.w_q": "blocks.*.attention.q",
        "layers.*.w_k": "blocks.*.attention.k",
        "layers.*.w_v": "blocks.*.attention.v",
        "layers.*.w_o": "blocks.*.attention.output",
        "layers.*.w_gate": "blocks.*.mlp.gate",
        "layers.*.w_up": "blocks.*.mlp.up",
        "layers.*.w_down": "blocks.*.mlp.down",
        "norm": "final_norm",
    },
    "mistral": {
        "embedding": "embedding",
        "layers.*.attention_norm": "blocks.*.attention_norm",
        "layers.*.attention.qkv": "blocks.*.attention.q blocks.*.attention.k blocks.*.attention.v",
        "layers.*.attention.out": "blocks.*.attention.output",
        "layers.*.mlp_norm": "blocks.*.mlp_norm",
        "layers.*.mlp.gate_up": "blocks.*.mlp.gate blocks.*.mlp.up",
        "layers.*.mlp.down": "blocks.*.mlp.down",
        "final_norm": "final_norm",
        "head": "head",
    },
    "bert": {
        "embeddings.words": "embedding",
        "embeddings.positions": "position_embedding",
        "embeddings.types": "segment_embedding",
        "embeddings.norm": "embedding_norm",
        "layers.*.attention.query": "blocks.*.attention.q",
        "layers.*.attention.key": "blocks.*.attention.k",
        "layers.*.attention.value": "blocks.*.attention.v",
        "layers.*.attention.dense": "blocks.*.attention.output",
        "layers.*.attention_norm": "blocks.*.attention_norm",
        "layers.*.up": "blocks.*.mlp.up",
        "layers.*.down": "blocks.*.mlp.down",
        "layers.*.norm": "blocks.*.mlp_norm",
        "head.dense": "transform.linear",
        "head.norm": "transform.norm",
        "head.decoder": "head",
    },
}

# The parts of a model from the loss backward, with the norms of a layer before or after it.
HEAD = ["head", "transform.norm", "transform.linear", "final_norm"]
_MLP = ["mlp.down", "mlp.up", "mlp.gate"]
_ATTENTION = [f"attention.{name}" for name in ("output", "v", "k_norm", "q_norm", "k", "q")]
BEFORE = [*_MLP, "mlp_norm", *_ATTENTION, "attention_norm"]
AFTER = ["mlp_norm", *_MLP, "attention_norm", *_ATTENTION]
EMBEDDING = ["embedding_norm", "segment_embedding", "position_embedding", "embedding"]

# The steps of attention such that each depends on all before it, except the keys and values, which
# come just before their use.
INSIDE = [
    "unnormalized_queries",
    "unrotated_queries",
    "queries",
    "unnormalized_keys",
    "unrotated_keys",
    "keys",
    "scores",
    "scaled",
    "masked",
    "weights",
    "values",
    "context",
    "output",
]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return folders(tmp_path_factory.mktemp("ports"))


@pytest.fixture(scope="module")
def right(paths):
    """For each port what `everything` returns without a fault, and Headway's names."""
    rights = {port: everything(port, None, paths[port]) for port in PORTS}
    return {port: (rights[port], *names(paths[port])) for port in PORTS}


def names(path):
    """The steps of Headway's model, in the order of INSIDE, and its parameters."""
    model = headway.load(path, device="cpu").model
    with torch.no_grad(), headway.trace() as trace:
        model(tokens())
    steps = [step for step in trace if ".attention." not in step]
    for layer in range(model.config.layers):
        inside = [f"blocks.{layer}.attention.{name}" for name in INSIDE]
        prefix = f"blocks.{layer}.after_attention"
        steps[steps.index(prefix) : steps.index(prefix)] = [
            name for name in inside if name in trace
        ]
    return steps, [name for name, _ in model.named_parameters()]


def relative(right, wrong):
    """The largest difference, relative to the largest value; infinite for NaN or other shapes.

    Hidden scores are ignored where both are hidden.
    """
    if wrong is None or right.shape != wrong.shape:
        return math.inf
    hidden = (right < -1e30) & (wrong < -1e30)
    right, wrong = right.masked_fill(hidden, 0), wrong.masked_fill(hidden, 0)
    difference = ((right - wrong).abs().max() / right.abs().max().clamp(min=1e-30)).item()
    return math.inf if math.isnan(difference) else difference


def differences(right, wrong):
    """The difference of each of several tensors, relative to the largest value of all."""
    largest = max(value.abs().max().item() for value in right.values())
    return {
        name: (value - wrong[name]).abs().max().item() / largest if name in wrong else math.inf
        for name, value in right.items()
    }


def starred(name):
    """A name with a star in place of the number of the layer, and the number."""
    number = re.search(r"(?<=\.)\d+(?=\.|$)", name)
    if number is None:
        return name, ""
    return f"{name[: number.start()]}*{name[number.end() :]}", number[0]


class Recorder(TorchFunctionMode):
    """Records what the modules and functions of a port show of Headway's steps."""

    def __init__(self, port, model):
        super().__init__()
        self.port, self.steps, self.calls = port, defaultdict(list), defaultdict(int)
        layers = model.h if port == "gpt2" else model.layers
        self.layers = len(layers)
        for layer in layers:
            layer.register_forward_hook(self.see_first)
        for name, module in model.named_modules():
            pattern, number = starred(name)
            for key in {name, pattern} & MODULES[port].keys():
                steps = [step and step.replace("*", number) for step in MODULES[port][key]]
                calls = cycle(zip(steps[::2], steps[1::2], strict=True))
                module.register_forward_hook(partial(self.see, calls))

    def see_first(self, module, inputs, output):
        if self.calls["layer"] % self.layers == 0:
            self.add("embedded", inputs[0])
        self.calls["layer"] += 1

    def see(self, calls, module, inputs, output):
        for step, value in zip(
            next(calls), (inputs[0], getattr(output, "logits", output)), strict=True
        ):
            self.add(step, value)

    def add(self, step, value):
        if step is not None:
            self.steps[step].append(value.detach().clone())

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "")
        if name in FUNCTIONS[self.port]:
            prefix = f"blocks.{self.calls[name] % self.layers}.attention."
            arguments, shown = FUNCTIONS[self.port][name]
            for step, value in zip(arguments, args, strict=False):
                self.add(prefix + step, value)
            self.add(prefix + shown, result)
        if name == "einsum":
            layer, index = divmod(self.calls[name], len(EINSUMS))
            arguments, shown = (("final_norm",), None) if layer == self.layers else EINSUMS[index]
            prefix = "" if layer == self.layers else f"blocks.{layer}."
            for step, value in zip(arguments, args[1:], strict=False):
                self.add(prefix + step, value)
            self.add(shown and prefix + shown, result)
        self.calls[name] += 1
        return result


def of_parameters(port, values):
    """Values of a port's parameters, by Headway's names."""
    ours = {}
    for name, value in values.items():
        pattern, number = starred(name)
        stem, _, kind = pattern.rpartition(".")
        if kind not in ("weight", "bias", "scale"):
            stem, kind = pattern, "weight"
        parts = PARAMETERS[port][stem].replace("*", number).split()
        kind = kind.replace("scale", "weight")
        sizes = [len(value) // len(parts)] * len(parts)
        if stem == "layers.*.attention.qkv":  # two heads of queries for each of keys and values
            sizes = [len(value) // 2, len(value) // 4, len(value) // 4]
        for part, rows in zip(parts, value.split(sizes), strict=True):
            ours[f"{part}.{kind}"] = rows
    return ours


def backward(parameters, *, is_before):
    """Headway's parameters from the loss backward."""
    layers = 1 + max(int(starred(name)[1] or 0) for name in parameters)
    parts = [
        *HEAD,
        *(
            f"blocks.{n}.{part}"
            for n in range(layers)[::-1]
            for part in (BEFORE if is_before else AFTER)
        ),
        *EMBEDDING,
    ]
    ordered = [f"{part}.{kind}" for part in parts for kind in ("bias", "weight")]
    assert set(parameters) <= set(ordered)
    return [name for name in ordered if name in parameters]


def everything(port, fault, path):
    """What a port computes: its steps, logits, loss, gradients and its first two updates."""
    model, module = load(port, fault, path)
    batch, results = tokens(), {}
    with torch.no_grad(), Recorder(port, model.double()) as recorder:
        results["logits"] = logits(model, batch)
        results["steps"] = recorder.steps
        if port in WITH_CACHE:
            recorder.steps, recorder.calls = defaultdict(list), defaultdict(int)
            results["logits one by one"] = one_by_one(model, batch)
            results["steps one by one"] = recorder.steps
    recorder.steps = defaultdict(list)  # the hooks remain
    optimizer = module.optimizer(model)
    for step in (1, 2):
        loss = module.loss(model, batch if step == 1 else batch.flip(1))
        optimizer.zero_grad()
        loss.backward()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        gradients = {
            name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for name, p in model.named_parameters()
        }
        optimizer.step()
        updates = {name: p.detach() - before[name] for name, p in model.named_parameters()}
        results[f"loss {step}"] = loss.detach()
        results[f"gradients {step}"] = of_parameters(port, gradients)
        results[f"updates {step}"] = of_parameters(port, updates)
    return results


def bracket(right, wrong, steps):
    """The last step that is shown and right, or None, and the first one that is wrong."""
    previous = None
    for step in (step for step in steps if step in right):
        values = wrong[step][: len(right[step])]
        if any(relative(a, b) > SAME for a, b in zip_longest(right[step], values)):
            return previous, step
        previous = step
    raise AssertionError("no step is different")


@pytest.mark.parametrize("port", PORTS)
def test_a_right_port_is_the_model(port, paths):
    model, _ = load(port, None, paths[port])
    batch = tokens()
    with torch.no_grad():
        expected = headway.load(paths[port], device="cpu").model(batch)
        assert relative(expected, logits(model, batch)) < 1e-5
        if port in WITH_CACHE:
            for size in (1, 4):
                assert relative(expected, one_by_one(model, batch, size)) < 1e-5


@pytest.mark.parametrize("port", PORTS)
def test_a_right_port_trains_as_the_model(port, right, paths):
    """The loss, and the norms of the gradients; the order of features may differ."""
    expected, _, parameters = right[port]
    model, batch = headway.load(paths[port], device="cpu").model.double(), tokens()
    outputs, targets = model(batch), batch
    if port != "bert":
        outputs, targets = outputs[:, :-1], targets[:, 1:]
    loss = torch.nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())
    assert relative(loss.detach(), expected["loss 1"]) < 1e-6
    loss.backward()
    assert expected["gradients 1"].keys() == set(parameters)
    for name, parameter in model.named_parameters():
        gradient = expected["gradients 1"][name]
        if port == "bert" and ".attention.q." in name:  # its weights contain the scale
            gradient = gradient * model.config.d_k**-0.5
        assert abs(gradient.norm() - parameter.grad.norm()) < 1e-5 * parameter.grad.norm() + 1e-12


def test_the_table():
    assert len(FAULTS) >= 90
    assert len({str(fault) for fault in FAULTS}) == len(FAULTS)
    assert {fault.kind for fault in FAULTS} == set(KINDS)
    assert {fault.port for fault in FAULTS} == set(PORTS)
    for fault in FAULTS:
        assert changed(fault) != source(fault.port)


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_changes_the_step_that_it_names(fault, right, paths):
    expected, steps, parameters = right[fault.port]
    wrong = everything(fault.port, fault, paths[fault.port])
    if not fault.first.startswith(TRAINING):
        changes_only_cache = relative(expected["logits"], wrong["logits"]) < SAME
        assert changes_only_cache == (fault.kind == "cache")
        way = " one by one" if fault.kind == "cache" else ""
        assert relative(expected["logits" + way], wrong["logits" + way]) > 1e-5
        last_right, first_wrong = bracket(expected["steps" + way], wrong["steps" + way], steps)
        start = 0 if last_right is None else steps.index(last_right) + 1
        assert fault.first in steps[start : steps.index(first_wrong) + 1]
        return
    assert relative(expected["logits"], wrong["logits"]) < SAME
    change = relative(expected["loss 1"], wrong["loss 1"])
    if fault.first == "loss":
        assert change > 1e-6
        return
    assert change < SAME
    changes = differences(expected["gradients 1"], wrong["gradients 1"])
    if fault.first.startswith("gradients."):
        ordered = backward(parameters, is_before=fault.port != "bert")
    else:
        assert max(changes.values()) < SAME
        ordered = parameters
        for step in (1, 2):  # betas show in the second one
            changes = differences(expected[f"updates {step}"], wrong[f"updates {step}"])
            if max(changes.values()) > SAME:
                break
    assert max(changes.values()) > 1e-6
    first = next(name for name in ordered if changes[name] > SAME)
    assert fault.first == f"{fault.first.split('.')[0]}.{first}"
