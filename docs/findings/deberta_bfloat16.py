"""DeBERTa: a model in bfloat16 raises an error in its first call."""

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
