"""DeBERTa, XLNet and MRA raise an error in their first call in bfloat16.

DeBERTa and XLNet make some parameters in float32 (`torch.zeros(..., dtype=torch.float)`,
`torch.FloatTensor`), which stay so when the others are loaded in bfloat16; after
`model.bfloat16()` they run. MRA computes its attention in float32 and does not convert it back.
"""

import sys
import tempfile

import torch
import transformers

sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}
xlnet = {"d_model": 32, "n_layer": 2, "n_head": 4, "vocab_size": 99}
print("transformers", transformers.__version__)
errors = 0
for name, given in {
    "DebertaForMaskedLM": sizes,
    "XLNetLMHeadModel": xlnet,
    "MraForMaskedLM": sizes,
}.items():
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**given))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        model = kind.from_pretrained(folder, dtype=torch.bfloat16).eval()
    try:
        model(torch.randint(3, 99, (1, 32)))
    except RuntimeError as error:
        errors += 1
        print(f"{name}: RuntimeError: {error}")
sys.exit(errors > 0)
