"""Moshi: the logits of a text longer than the window differ with and without a cache.

The cache keeps `sliding_window` tokens, but the mask of a whole text has no window.
"""

import sys

import torch
import transformers
from transformers import MoshiConfig, MoshiForCausalLM

torch.manual_seed(0)
sizes = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "vocab_size": 99, "head_dim": 8}
config = MoshiConfig(**sizes, num_attention_heads=4, num_key_value_heads=4, sliding_window=4)
model = MoshiForCausalLM(config).eval()
tokens, cache, steps = torch.randint(3, 90, (1, 10)), None, []
print("transformers", transformers.__version__)
with torch.no_grad():
    whole = model(tokens, use_cache=False).logits
    for token in tokens.split(1, dim=1):
        output = model(token, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        steps.append(output.logits)
change = (torch.cat(steps, 1) - whole).abs().amax(dim=(0, 2)) / whole.abs().max()
print("difference of each token's logits:", *(f"{number:.0e}" for number in change))
sys.exit(bool(change.max() > 1e-3))
