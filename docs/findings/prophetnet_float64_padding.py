"""ProphetNet in float64: with any attention mask, all logits are NaN.

`(1.0 - attention_mask) * torch.finfo(torch.float64).min` is computed in float32, because the mask
has integers. There the number is -inf, and 0 * -inf is NaN at every token that is not padding.
"""

import sys

import torch
import transformers
from transformers import ProphetNetConfig, ProphetNetForConditionalGeneration

torch.manual_seed(0)
sizes = {"hidden_size": 32, "num_encoder_layers": 2, "num_decoder_layers": 2, "vocab_size": 99}
sizes |= {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64}
config = ProphetNetConfig(**sizes, num_encoder_attention_heads=4, num_decoder_attention_heads=4)
model = ProphetNetForConditionalGeneration(config).eval()
source, target = torch.randint(3, 90, (2, 1, 8))
given = {
    "input_ids": source,
    "decoder_input_ids": target,
    "attention_mask": torch.ones_like(source),
}
print("transformers", transformers.__version__)
for dtype in (torch.float32, torch.float64):
    with torch.no_grad():
        logits = model.to(dtype)(**given).logits
    count = int(logits.isnan().sum())
    print(f"{dtype}: {count} of {logits.numel()} logits are NaN")
sys.exit(count > 0)
