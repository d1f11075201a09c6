"""FSMT: with use_cache=True, the default, the decoder has no causal mask for several tokens."""

import sys

import torch
import transformers
from transformers import FSMTConfig, FSMTForConditionalGeneration

torch.manual_seed(0)
sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "src_vocab_size": 99}
sizes |= {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "tgt_vocab_size": 99, "langs": ["en", "de"]}
config = FSMTConfig(**sizes, encoder_attention_heads=4, decoder_attention_heads=4)
model = FSMTForConditionalGeneration(config).eval()
source, target = torch.randint(3, 90, (2, 1, 8))
other = target.clone()
other[0, -1] = (other[0, -1] + 1) % 90  # the last token
print("transformers", transformers.__version__)
with torch.no_grad():
    for use_cache in (False, True):
        first, second = (
            model(source, decoder_input_ids=ids, use_cache=use_cache).logits[:, :-1]
            for ids in (target, other)
        )
        change = float((first - second).abs().max())
        print(f"use_cache={use_cache}: the last token changes earlier logits by {change:.0e}")
sys.exit(change > 1e-6)
