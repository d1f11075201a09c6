"""Bamba: with a cache and without position_ids, every step has the rotary position 0.

`BambaModel.forward` counts positions from 0 also after a cache. `generate` passes position_ids, so
that it is not affected; with position_ids=[[9]] in the last call the difference is rounding.
"""

import sys

import torch
import transformers
from transformers import BambaConfig, BambaForCausalLM

torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 99}
mamba = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1}
config = BambaConfig(
    **sizes, **mamba, num_attention_heads=4, num_key_value_heads=2, attn_layer_indices=[1]
)
model = BambaForCausalLM(config).eval()
tokens = torch.randint(3, 90, (1, 10))
print("transformers", transformers.__version__)
with torch.no_grad():
    whole = model(tokens, use_cache=False).logits[:, -1]
    cache = model(tokens[:, :-1], use_cache=True).past_key_values
    step = model(tokens[:, -1:], past_key_values=cache, use_cache=True).logits[:, -1]
change = float((step - whole).abs().max() / whole.abs().max())
print(f"the logits of the last token differ by {change:.0e} of the largest logit")
sys.exit(change > 1e-4)
