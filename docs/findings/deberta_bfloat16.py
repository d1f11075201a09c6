"""DeBERTa: a model that is loaded in bfloat16 raises an error in its first call.

`q_bias` and `v_bias` are made with `dtype=torch.float`, so that they stay in float32 when the other
parameters are loaded in bfloat16. After `model.bfloat16()` the model runs.
"""

import sys
import tempfile

import torch
import transformers
from transformers import DebertaConfig, DebertaForMaskedLM

sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 99}
model = DebertaForMaskedLM(DebertaConfig(**sizes, num_attention_heads=4))
print("transformers", transformers.__version__)
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    model = DebertaForMaskedLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
try:
    model(torch.randint(3, 99, (1, 8)))
except RuntimeError as error:
    print("RuntimeError:", error)
    sys.exit(1)
