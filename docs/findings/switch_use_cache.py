"""Switch Transformers: a call with use_cache=True raises an error.

The model passes the argument to its encoder, which refuses it. `generate` runs the encoder by
itself and is not affected; T5 runs with the same arguments.
"""

import sys

import torch
import transformers

sizes = {"vocab_size": 99, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4, "num_layers": 2}
print("transformers", transformers.__version__)
for name in ("T5", "SwitchTransformers"):
    config = getattr(transformers, f"{name}Config")(**sizes)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    tokens = torch.randint(3, 90, (1, 8))
    try:
        model(input_ids=tokens, decoder_input_ids=tokens, use_cache=True)
        print(f"{name}: runs")
    except ValueError as error:
        print(f"{name}: ValueError: {str(error).splitlines()[0]} ...")
        sys.exit(1)
