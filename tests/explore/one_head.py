"""The section of docs/explorer.md that follows one head from x to the next token, in a run.

PYTHONPATH=tests/explore python -m one_head runs/demo
"""
# ruff: noqa: E501 - a paragraph of Markdown is one line

import re
import sys
from pathlib import Path

import numpy as np

from headway.explore.edits import Edit
from headway.explore.tracers import ModelTracer, TraceRequest
from headway.hf.stored import StoredModel

TEXT = "If the list is empty, it returns None"
DOCS = Path("docs/explorer.md")
SECTION = re.compile(r"(?<=<!-- one head -->\n).*(?=<!-- end -->)", re.DOTALL)


def shares(tensors):
    logits = tensors["logits"][0, -1].astype(float)
    return np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()


def token(manifest, i):
    return f"`{manifest['tokens'][i]['display']}`"


def section(tracer):
    """The head after layer 0 that attends most to the previous token, as Markdown."""
    tensors, manifest = tracer.trace(TraceRequest(TEXT))
    measured = {
        (layer, head): one["previous"]
        for layer in range(1, tracer.config.layers)
        for head, one in enumerate(manifest["heads"][f"blocks.{layer}.attention"]["heads"])
    }
    layer, head = max(measured, key=measured.get)
    prefix = f"blocks.{layer}.attention."
    group = head * tracer.config.attention.groups // tracer.config.attention.heads
    names = ("unnormalized_queries", "unrotated_queries", "queries", "unrotated_keys", "keys")
    steps = {
        name: tensors[prefix + name][0, group if name.endswith("keys") else head]
        for name in (*names, "scores", "scaled", "weights", "context")
    }
    weights = steps["weights"]
    query = 2 + int(np.diag(weights, -1)[1:].argmax())
    key = query - 1
    length = {name: np.linalg.norm(steps[name][query]) for name in names[:3]}
    unrotated = steps["unrotated_queries"][query] @ steps["unrotated_keys"][key]
    d_k = steps["queries"].shape[1]
    before, after = (
        tensors[name][0, query]
        for name in (f"blocks.{layer - 1}.after_mlp", f"blocks.{layer}.after_attention")
    )
    output = steps["context"][query] @ tensors[prefix + "W_output"][head]
    vocabulary, usual = manifest["vocabulary"], shares(tensors)
    edits = (Edit("off", prefix[:-1], head),)
    off = shares(tracer.trace(TraceRequest(TEXT, edits=edits))[0])
    changed = np.argsort(-abs(off - usual))[:2]
    effect = " and that of ".join(
        f"`{vocabulary[i]}` changes from {usual[i]:.1%} to {off[i]:.1%}" for i in changed
    )
    at = f"#layer={layer}&head={head}&step="
    lines = [
        f'Head {head} of layer {layer} of the demo model, on the text "{TEXT}": it gives {measured[layer, head]:.0%} of its attention to the previous token, more than any other head after layer 0. The steps below follow the query {token(manifest, query)} and the key {token(manifest, key)}; each address opens the step on your page.',
        "",
        f"1. **x** (`{at}x`). The residual stream has {before.size} numbers per token. After the norm of the layer they are x, which all heads read.",
        f"2. **Queries, keys, values** (`{at}unnormalized_queries`). x times W_query ({before.size} × {d_k}) is the query of {token(manifest, query)}: {d_k} numbers of length {length['unnormalized_queries']:.2f}. W_key and W_value make its key and its value.",
        f"3. **QK-norm** (`{at}unrotated_queries`). The norm gives every query and key nearly the same length; that of this query is now {length['unrotated_queries']:.2f}.",
        f"4. **Rotary positions** (`{at}queries`). Each pair of its features is rotated by an angle that grows with the position, {query}: the first by {np.degrees(query) % 360:.0f} degrees, later pairs by less. The length stays {length['queries']:.2f}.",
        f"5. **Scores** (`{at}scores`). Query times key is {steps['scores'][query, key]:.2f}; without the rotation it would be {unrotated:.2f}.",
        f"6. **Scaled** (`{at}scaled`). Divided by √{d_k}: {steps['scaled'][query, key]:.2f}.",
        f"7. **Masked** (`{at}masked`). {token(manifest, query)} may attend to {query + 1} of {len(weights)} tokens. The scores of the later ones become −∞.",
        f"8. **Weights** (`{at}weights`). The softmax of the row gives {token(manifest, key)} a weight of {weights[query, key]:.2f}.",
        f"9. **Context and output** (`{at}output`). The values, each times its weight, add up to the context. W_output turns it into an update of length {np.linalg.norm(output):.2f}; that of all heads together has {np.linalg.norm(tensors[prefix + 'output'][0, query]):.2f}.",
        f"10. **Stream** (`{at}stream`). The update changes the stream from a length of {np.linalg.norm(before):.2f} to {np.linalg.norm(after):.2f}.",
        f"11. **Next token** (`{at}next`). After the last layer the model predicts `{vocabulary[usual.argmax()]}` with {usual.max():.1%}. With this head switched off (*without it*), the probability of {effect}. The model has {tracer.config.layers * tracer.config.attention.heads} heads.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    text = section(ModelTracer(StoredModel.open(Path(sys.argv[1]))))
    DOCS.write_text(SECTION.sub(lambda _: text, DOCS.read_text(encoding="utf-8")), encoding="utf-8")
