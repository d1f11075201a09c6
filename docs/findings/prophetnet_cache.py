"""ProphetNet: with a cache, the logits differ from those of the whole text, from token 0 on.

`get_predict_relative_pos_embeddings` flattens its embeddings in the order (token, stream, head) and
reads them in the order (stream, head, token), so that a query gets the embeddings of another token,
also of a later one. With `permute(0, 1, 4, 2, 3)` in place of `permute(0, 2, 1, 4, 3)` in this
method, the logits with and without a cache are the same.
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
cache, steps = None, []
print("transformers", transformers.__version__)
with torch.no_grad():
    whole = model(source, decoder_input_ids=target, use_cache=False).logits
    for token in target.split(1, dim=1):
        output = model(source, decoder_input_ids=token, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        steps.append(output.logits)
change = (torch.cat(steps, 1) - whole).abs().amax(dim=(0, 2)) / whole.abs().max()
print("difference of each token's logits:", *(f"{number:.0e}" for number in change))
sys.exit(bool(change.max() > 1e-4))
