"""RecurrentGemma: padding on the left changes the logits of a text.

The convolution over time of a recurrent block reads the padding before the first token: it takes
no mask. With `conv1d_width=1` there is no difference.
"""

import sys

import torch
import transformers
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 99}
text = torch.randint(3, 90, (1, 12), generator=torch.Generator().manual_seed(0))
padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), text], dim=1)
mask = (torch.arange(15) >= 3).long()[None]
positions = (mask.cumsum(-1) - 1).clamp(min=0)
print("transformers", transformers.__version__)
for width in (1, 4):  # 4 is the default
    torch.manual_seed(0)
    config = RecurrentGemmaConfig(**sizes, num_attention_heads=4, lru_width=32, conv1d_width=width)
    model = RecurrentGemmaForCausalLM(config).eval()
    torch.nn.init.normal_(model.model.embed_tokens.weight)
    with torch.no_grad():
        alone = model(text, use_cache=False).logits
        given = {"attention_mask": mask, "position_ids": positions, "use_cache": False}
        change = float((model(padded, **given).logits[:, 3:] - alone).abs().max())
    print(f"conv1d_width={width}: the logits differ by {change / float(alone.abs().max()):.0e}")
sys.exit(change > 1e-4)
