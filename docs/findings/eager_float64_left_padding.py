"""Llama with eager attention in float64: padding on the left makes all logits of a text NaN.

The mask has the smallest float64 where a key is hidden. `eager_attention_forward` computes the
softmax in float32, in which this number is -inf, so that a query of padding, which sees no key,
has the weights 0/0. Its NaN reaches every token in the next layer, as 0 * NaN. The same happens
in a row that is padding only.
"""

import sys

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 99}
model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4)).double().eval()
tokens, mask = torch.randint(3, 99, (3, 12)), torch.ones(3, 12, dtype=torch.long)
mask[0, :3], mask[2] = 0, 0
positions = (mask.cumsum(-1) - 1).clamp(min=0)
print("transformers", transformers.__version__)
for name in ("sdpa", "eager"):
    model.set_attn_implementation(name)
    with torch.no_grad():
        logits = model(tokens, attention_mask=mask, position_ids=positions).logits
    parts = {"at tokens": logits[mask.bool()], "of the row of padding": logits[2]}
    for part, values in parts.items():
        bad = int(values.isnan().sum())
        print(f"{name}: {bad} of {values.numel()} logits {part} are NaN")
sys.exit(bad > 0)
