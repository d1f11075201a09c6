"""BERT for masked tokens. The scale of attention is folded into the weights of the queries.

Heads are folded into the batch, so that attention is two calls of bmm.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import bmm, nn


class Embeddings(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.words = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.positions = nn.Embedding(c["max_position_embeddings"], c["hidden_size"])
        self.types = nn.Embedding(c["type_vocab_size"], c["hidden_size"])
        self.norm = nn.LayerNorm(c["hidden_size"], eps=c["layer_norm_eps"])

    def forward(self, ids):
        position_ids = torch.arange(ids.size(1), device=ids.device).expand_as(ids)
        type_ids = torch.zeros_like(ids)
        x = self.words(ids) + self.positions(position_ids) + self.types(type_ids)
        return self.norm(x)


class SelfAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads = c["num_attention_heads"]
        self.query = nn.Linear(c["hidden_size"], c["hidden_size"])
        self.key = nn.Linear(c["hidden_size"], c["hidden_size"])
        self.value = nn.Linear(c["hidden_size"], c["hidden_size"])
        self.dense = nn.Linear(c["hidden_size"], c["hidden_size"])

    def fold(self, x):
        n, length, width = x.size()
        x = x.view(n, length, self.heads, width // self.heads)
        return x.transpose(1, 2).reshape(n * self.heads, length, width // self.heads)

    def unfold(self, x):
        _, length, size = x.size()
        x = x.view(-1, self.heads, length, size)
        return x.transpose(1, 2).reshape(-1, length, self.heads * size)

    def forward(self, x):
        query = self.fold(self.query(x))
        key = self.fold(self.key(x))
        value = self.fold(self.value(x))
        probabilities = bmm(query, key.mT).softmax(-1)
        context = bmm(probabilities, value)
        return self.dense(self.unfold(context))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.attention = SelfAttention(c)
        self.attention_norm = nn.LayerNorm(c["hidden_size"], eps=c["layer_norm_eps"])
        self.up = nn.Linear(c["hidden_size"], c["intermediate_size"])
        self.down = nn.Linear(c["intermediate_size"], c["hidden_size"])
        self.norm = nn.LayerNorm(c["hidden_size"], eps=c["layer_norm_eps"])

    def forward(self, x):
        x = self.attention_norm(x + self.attention(x))
        hidden = nn.functional.gelu(self.up(x))
        x = self.norm(x + self.down(hidden))
        return x


class Prediction(nn.Module):
    def __init__(self, c, embedding):
        super().__init__()
        self.dense = nn.Linear(c["hidden_size"], c["hidden_size"])
        self.norm = nn.LayerNorm(c["hidden_size"], eps=c["layer_norm_eps"])
        self.decoder = nn.Linear(c["hidden_size"], c["vocab_size"])
        self.decoder.weight = embedding.weight

    def forward(self, x):
        x = self.norm(nn.functional.gelu(self.dense(x)))
        return self.decoder(x)


class BertForMaskedLM(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embeddings = Embeddings(c)
        self.layers = nn.ModuleList([Layer(c) for _ in range(c["num_hidden_layers"])])
        self.head = Prediction(c, self.embeddings.words)

    def forward(self, ids):
        x = self.embeddings(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


RENAMED = {
    "bert.embeddings.word_embeddings": "embeddings.words",
    "bert.embeddings.position_embeddings": "embeddings.positions",
    "bert.embeddings.token_type_embeddings": "embeddings.types",
    "bert.embeddings.LayerNorm": "embeddings.norm",
    "bert.encoder.layer": "layers",
    "attention.self": "attention",
    "attention.output.dense": "attention.dense",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm",
    "cls.predictions.transform.dense": "head.dense",
    "cls.predictions.transform.LayerNorm": "head.norm",
    "cls.predictions.bias": "head.decoder.bias",
}


def load(folder):
    c = json.loads((Path(folder) / "config.json").read_text())
    model = BertForMaskedLM(c)
    scale = (c["hidden_size"] // c["num_attention_heads"]) ** -0.5
    state = {}
    for name, tensor in load_file(Path(folder) / "model.safetensors").items():
        for old, new in RENAMED.items():
            name = name.replace(old, new)
        if ".query." in name:
            tensor = tensor * scale
        state[name] = tensor
    state["head.decoder.weight"] = state["embeddings.words.weight"]
    model.load_state_dict(state)
    return model.eval()


def loss(model, ids):
    logits = model(ids)
    return nn.functional.cross_entropy(logits.view(-1, logits.size(-1)), ids.view(-1))


def optimizer(model):
    def group(is_matrix, weight_decay):
        parameters = [p for p in model.parameters() if (p.dim() > 1) == is_matrix]
        return {"params": parameters, "weight_decay": weight_decay}

    return torch.optim.AdamW([group(True, 0.1), group(False, 0.0)], lr=1e-3, betas=(0.9, 0.95))
