"""Jamba: a second chunk of several tokens is computed as if its Mamba layers had read nothing.

After a cache, `JambaMambaMixer.forward` uses its recurrent state for a single token only. With
several tokens `mamba_selective_scan` starts from zeros; there is no error and no warning.
"""

import sys

import torch
import transformers
from transformers import JambaConfig, JambaForCausalLM

torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 99}
sizes |= {
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "num_experts": 1,
    "num_experts_per_tok": 1,
}
config = JambaConfig(**sizes, num_attention_heads=4, num_key_value_heads=4)
model = JambaForCausalLM(config).eval()
for parameter in model.parameters():  # so that the state matters
    parameter.data *= 10 if parameter.ndim > 1 else 1
tokens = torch.randint(3, 90, (1, 12))
print("transformers", transformers.__version__)
with torch.no_grad():
    whole = model(tokens, use_cache=False).logits[:, 6:]
    for size in (1, 6):  # tokens of a chunk after the first six
        cache, steps = model(tokens[:, :6], use_cache=True).past_key_values, []
        for chunk in tokens[:, 6:].split(size, dim=1):
            steps.append(model(chunk, past_key_values=cache, use_cache=True).logits)
        change = float((torch.cat(steps, 1) - whole).abs().max() / whole.abs().max())
        print(f"chunks of {size}: the logits differ by {change:.0e} of the largest logit")
sys.exit(change > 1e-3)
