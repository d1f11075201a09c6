"""Jamba, Mamba, Falcon Mamba: a second chunk of several tokens ignores the state of the first.

After a cache, the Mamba layers use their recurrent state for a single token only. With several
tokens `mamba_selective_scan` starts from zeros; there is no error and no warning.
"""

import sys

import torch
import transformers

sizes = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 99}
jamba = {"num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 48}
jamba |= {
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "num_experts": 1,
    "num_experts_per_tok": 1,
}
print("transformers", transformers.__version__)
tokens, worst = torch.randint(3, 90, (1, 12), generator=torch.Generator().manual_seed(0)), 0.0
for name, more in {"Jamba": jamba, "Mamba": {}, "FalconMamba": {}}.items():
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**sizes, **more)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for parameter in model.parameters():  # so that the state matters
        parameter.data *= 10 if parameter.ndim > 1 else 1
    cached = "past_key_values" if name == "Jamba" else "cache_params"
    for size in (1, 6):  # tokens of a chunk after the first six
        with torch.no_grad():
            whole = model(tokens, use_cache=False).logits[:, 6:]
            cache, steps = model(tokens[:, :6], use_cache=True)[cached], []
            for chunk in tokens[:, 6:].split(size, dim=1):
                steps.append(model(chunk, use_cache=True, **{cached: cache}).logits)
        change = float((torch.cat(steps, 1) - whole).abs().max() / whole.abs().max())
        print(f"{name}, chunks of {size}: the logits differ by {change:.0e} of the largest")
        worst = max(worst, change)
sys.exit(worst > 1e-3)
