"""Train the small GPT-2-type character model that ships with Metronome.

Like ``train.py`` beside it, the script needs torch and numpy (and safetensors) and nothing of
Metronome, so that the folder it writes is an independent witness for importer and float model. It
writes a Hugging Face folder (``config.json``, ``model.safetensors`` in float16, ``tokenizer.json``)
each time the validation figure improves; with ``--golden`` also token windows and torch's own
float32 logits for them, computed from the float16 weights.

Ref: Radford et al., Language Models are Unsupervised Multitask Learners, 2019, section 2.3; names
and layouts of the tensors are those of ``GPT2LMHeadModel``.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
import time
from pathlib import Path

try:
    import numpy as np
    import torch
    import torch.nn.functional as F
    from safetensors.torch import save
    from torch import Tensor, nn
    from train import learning_rate, write_atomically
except ImportError as error:
    print(f"train: {error}; install it with: pip install torch numpy safetensors",
          file=sys.stderr)
    raise SystemExit(2) from None

DIM, HIDDEN, LAYERS, HEADS, CONTEXT, EPS = 64, 256, 4, 4, 256, 1e-5
END = "<|endoftext|>"
GOLDEN_WINDOWS = 2


class Conv1D(nn.Module):
    """y = x weight + bias, with ``weight`` [inputs, outputs] as GPT-2 stores it."""

    def __init__(self, inputs: int, outputs: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * std)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Block(nn.Module):
    """One decoder layer: attention, then the feed-forward part, both pre-normed."""

    def __init__(self) -> None:
        super().__init__()
        std, deep = 0.7 / math.sqrt(DIM), math.sqrt(2 * LAYERS)
        self.ln_1, self.ln_2 = nn.LayerNorm(DIM, eps=EPS), nn.LayerNorm(DIM, eps=EPS)
        self.attn = nn.ModuleDict({"c_attn": Conv1D(DIM, 3 * DIM, std),
                                   "c_proj": Conv1D(DIM, DIM, std / deep)})
        self.mlp = nn.ModuleDict({"c_fc": Conv1D(DIM, HIDDEN, std),
                                  "c_proj": Conv1D(HIDDEN, DIM, 0.7 / math.sqrt(HIDDEN) / deep)})

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2)
                   for part in self.attn["c_attn"](self.ln_1(x)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn["c_proj"](mixed.transpose(1, 2).flatten(-2))
        inner = F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh")
        return x + self.mlp["c_proj"](inner)


class Decoder(nn.Module):
    """The whole model; the classifier is the embedding (tied)."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab_size, DIM), nn.Embedding(CONTEXT, DIM)
        nn.init.normal_(self.wte.weight, std=0.05)
        nn.init.normal_(self.wpe.weight, std=0.02)
        self.h = nn.ModuleList(Block() for _ in range(LAYERS))
        self.ln_f = nn.LayerNorm(DIM, eps=EPS)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens int64 [B, T] to logits [B, T, vocab]."""
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.h:
            x = block(x)
        return self.ln_f(x) @ self.wte.weight.T


def byte_symbols() -> dict[int, str]:
    """The printable character that stands for each byte in a byte-level vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return ({byte: chr(byte) for byte in plain}
            | {byte: chr(256 + number) for number, byte in enumerate(others)})


def tokenizer_bytes(chars: list[str]) -> bytes:
    """``tokenizer.json``: byte-level pieces of one character each, no merges; the end token first."""
    symbols = byte_symbols()
    vocabulary = {END: 0} | {symbols[ord(char)]: 1 + at for at, char in enumerate(chars)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": True}
    added = {"id": 0, "content": END, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
             "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False,
             "vocab": vocabulary, "merges": []}
    whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [added],
             "normalizer": None, "pre_tokenizer": byte_level, "post_processor": byte_level,
             "decoder": byte_level, "model": model}
    return (json.dumps(whole, indent=1, ensure_ascii=False) + "\n").encode()


def config_bytes(vocab_size: int) -> bytes:
    """``config.json`` in the words of transformers."""
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2",
              "activation_function": "gelu_new", "n_embd": DIM, "n_inner": HIDDEN,
              "n_layer": LAYERS, "n_head": HEADS, "n_positions": CONTEXT, "n_ctx": CONTEXT,
              "layer_norm_epsilon": EPS, "vocab_size": vocab_size, "bos_token_id": 0,
              "eos_token_id": 0, "tie_word_embeddings": True, "torch_dtype": "float16"}
    return (json.dumps(config, indent=1) + "\n").encode()


def halved(model: Decoder) -> dict[str, Tensor]:
    """The weights in float16, by their names in a ``GPT2LMHeadModel``."""
    return {f"transformer.{name}": value.detach().half().contiguous()
            for name, value in model.state_dict().items()}


def windows(ids: Tensor, length: int) -> Tensor:
    """Cut ids [n] into non-overlapping rows, the end token first: [n // length, 1 + length]."""
    rows = ids[:len(ids) // length * length].view(-1, length)
    return torch.cat((torch.zeros((len(rows), 1), dtype=torch.int64), rows), dim=1)


@torch.no_grad()
def validate(model: Decoder, rows: Tensor) -> float:
    """Mean nats per character over rows [n, CONTEXT]; the first token is not scored."""
    total = 0.0
    for batch in rows.split(32):
        logits = model(batch[:, :-1])
        total += F.cross_entropy(logits.flatten(0, 1).double(), batch[:, 1:].flatten(),
                                 reduction="sum").item()
    return total / rows[:, 1:].numel()


@torch.no_grad()
def golden_bytes(model: Decoder, rows: Tensor) -> bytes:
    """An .npz with 'tokens' int32 [n, CONTEXT] and 'logits' float32 [n, CONTEXT, vocab]."""
    rounded = Decoder(model.wte.weight.shape[0])
    rounded.load_state_dict({name.removeprefix("transformer."): value.float()
                             for name, value in halved(model).items()})
    buffer = io.BytesIO()
    np.savez_compressed(buffer, tokens=rows.numpy().astype(np.int32),
                        logits=rounded(rows).numpy())
    return buffer.getvalue()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="training text, ASCII")
    parser.add_argument("--folder", type=Path, required=True, help="folder to write")
    parser.add_argument("--golden", type=Path, help="golden logits (.npz) to write")
    parser.add_argument("--steps", type=int, default=6000, help="length of the schedule")
    parser.add_argument("--batch", type=int, default=16, help="windows in a step")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--warmup", type=int, default=200, help="steps of warm-up")
    parser.add_argument("--every", type=int, default=250, help="steps between validations")
    parser.add_argument("--minutes", type=float, default=25.0,
                        help="the schedule ends early so as to stay within this")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> int:
    """Train, save the best model so far at each validation, and print the figures."""
    args = parse_arguments()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    text = args.text.read_text(encoding="ascii")
    chars = sorted(set(text))
    number = {char: 1 + at for at, char in enumerate(chars)}
    ids = torch.tensor([number[char] for char in text])
    split = len(ids) * 9 // 10
    train_ids, rows = ids[:split], windows(ids[split:], CONTEXT - 1)
    write_atomically(args.folder / "tokenizer.json", tokenizer_bytes(chars))
    write_atomically(args.folder / "config.json", config_bytes(1 + len(chars)))
    model = Decoder(1 + len(chars))
    groups = [{"params": [p for p in model.parameters() if p.ndim == 2], "weight_decay": 0.1},
              {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.rate, betas=(0.9, 0.98), fused=True)
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    best, start, step, phase = math.inf, time.monotonic(), 0, 0.0
    while phase < 1:
        # Whatever ends first: the steps, or the minutes.
        elapsed = (time.monotonic() - start) / (60 * args.minutes)
        phase = max((step + 1) / args.steps, elapsed)
        rate = learning_rate(max(step, int(phase * args.steps) * (step >= args.warmup)),
                             args.steps, args.rate, args.warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = torch.randint(len(train_ids) - CONTEXT + 1, (args.batch, 1))
        targets = train_ids[starts + torch.arange(CONTEXT)]                # [B, CONTEXT]
        inputs = torch.cat((torch.zeros((args.batch, 1), dtype=torch.int64), targets[:, :-1]), 1)
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % args.every == 0 or phase >= 1:
            figure = validate(model, rows)
            print(f"step {step:6d}  train {loss.item():.4f}  validation {figure:.4f}  "
                  f"{time.monotonic() - start:7.1f} s", flush=True)
            if figure < best:
                best = figure
                write_atomically(args.folder / "model.safetensors",
                                 save(halved(model), metadata={"format": "pt"}))
                if args.golden:
                    write_atomically(args.golden, golden_bytes(model, rows[:GOLDEN_WINDOWS]))
    print(f"best validation {best:.4f} nats per character, {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
