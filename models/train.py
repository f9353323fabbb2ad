"""Train the small Llama-type character model that ships with Metronome.

The script is self-contained: it needs torch and numpy and nothing of Metronome, so the files it
writes are an independent witness for the loader, the tokenizer and the float model.

It writes, each by temporary file and rename, every time the validation figure improves:

- the model, in llama2.c's legacy version 0 format;
- the character vocabulary, in llama2.c's tokenizer format;
- with ``--golden``, token windows and torch's own float32 logits for them.

Ref: llama2.c, export.py (legacy_export) and tokenizer.py (export).
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import struct
import sys
import time
from pathlib import Path

try:
    import numpy as np
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
except ImportError as error:
    print(f"train: {error}; torch is optional, install it with: pip install torch numpy",
          file=sys.stderr)
    raise SystemExit(2) from None

NORM_EPS, ROPE_THETA = 1e-5, 10000.0
UNK, BOS, EOS, FIRST_CHAR = 0, 1, 2, 3
GOLDEN_WINDOWS = 2


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a model; the defaults are those of stories260K."""
    dim: int = 64
    hidden: int = 172
    layers: int = 5
    heads: int = 8
    kv_heads: int = 4
    context: int = 256

    @property
    def head_size(self) -> int:
        return self.dim // self.heads


def rope_tables(shape: Shape) -> tuple[Tensor, Tensor]:
    """Return cos and sin of the rotary angles, each [context, head_size / 2]."""
    size = shape.head_size
    rates = ROPE_THETA ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = torch.outer(torch.arange(shape.context, dtype=torch.float64), rates)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate interleaved pairs of the last axis of x [batch, heads, time, head_size]."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class Norm(nn.Module):
    """Root-mean-square norm over the last axis, with a gain [dim]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight, NORM_EPS)


class Block(nn.Module):
    """One decoder layer: grouped-query attention, then SwiGLU, both pre-normed."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        dim, hidden, kv_dim = shape.dim, shape.hidden, shape.kv_heads * shape.head_size
        self.shape = shape
        self.rms_att, self.rms_ffn = Norm(dim), Norm(dim)
        self.wq = nn.Linear(dim, dim, bias=False)
        self.wk = nn.Linear(dim, kv_dim, bias=False)
        self.wv = nn.Linear(dim, kv_dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        size, group = self.shape.head_size, self.shape.heads // self.shape.kv_heads
        h = self.rms_att(x)                                                # [B, T, dim]
        q = self.wq(h).unflatten(-1, (-1, size)).transpose(1, 2)           # [B, H, T, hs]
        k = self.wk(h).unflatten(-1, (-1, size)).transpose(1, 2)
        v = self.wv(h).unflatten(-1, (-1, size)).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k = k.repeat_interleave(group, dim=1)
        v = v.repeat_interleave(group, dim=1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.wo(mixed.transpose(1, 2).flatten(-2))
        h = self.rms_ffn(x)
        return x + self.w2(F.silu(self.w1(h)) * self.w3(h))


class Decoder(nn.Module):
    """The whole model; the classifier is the embedding (tied)."""

    def __init__(self, shape: Shape, vocab_size: int) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Parameter(torch.randn(vocab_size, shape.dim) * 0.05)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.rms_final = Norm(shape.dim)
        for name, weight in self.blocks.named_parameters():
            if weight.ndim == 2:
                scale = math.sqrt(2 * shape.layers) if name.split(".")[-2] in ("wo", "w2") else 1.0
                nn.init.normal_(weight, std=0.7 / math.sqrt(weight.shape[1]) / scale)
        cos, sin = rope_tables(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens int64 [B, T] to logits [B, T, vocab]."""
        x = F.embedding(tokens, self.embedding)
        cos, sin = self.cos[:tokens.shape[1]], self.sin[:tokens.shape[1]]
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.rms_final(x) @ self.embedding.T


def write_atomically(path: Path, data: bytes) -> None:
    """Write data beside path and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def model_bytes(model: Decoder) -> bytes:
    """Return the model in llama2.c's legacy version 0 format (tied classifier)."""
    vocab_size = model.embedding.shape[0]
    blocks = list(model.blocks)
    parts: list[Tensor] = [model.embedding]
    for name in ("rms_att", "wq", "wk", "wv", "wo", "rms_ffn", "w1", "w2", "w3"):
        parts += [getattr(block, name).weight for block in blocks]
    parts += [model.rms_final.weight, model.cos, model.sin]
    shape = model.shape
    header = struct.pack("<7i", shape.dim, shape.hidden, shape.layers, shape.heads,
                         shape.kv_heads, vocab_size, shape.context)
    return header + b"".join(p.detach().numpy().astype("<f4").tobytes() for p in parts)


def tokenizer_bytes(chars: list[str]) -> bytes:
    """Return the character vocabulary in llama2.c's tokenizer format, all scores 0."""
    pieces = [b"<unk>", b"<s>", b"</s>"] + [c.encode() for c in chars]
    entries = (struct.pack("<fi", 0.0, len(piece)) + piece for piece in pieces)
    return struct.pack("<i", max(map(len, pieces))) + b"".join(entries)


def windows(ids: Tensor, length: int) -> Tensor:
    """Cut ids [n] into non-overlapping rows, BOS first: [n // length, 1 + length]."""
    rows = ids[:len(ids) // length * length].view(-1, length)
    return torch.cat((torch.full((len(rows), 1), BOS), rows), dim=1)


@torch.no_grad()
def validate(model: Decoder, rows: Tensor) -> float:
    """Return mean nats per character over rows [n, context]; BOS itself is not scored."""
    model.eval()
    total = 0.0
    for batch in rows.split(32):
        logits = model(batch[:, :-1])
        total += F.cross_entropy(logits.flatten(0, 1).double(), batch[:, 1:].flatten(),
                                 reduction="sum").item()
    model.train()
    return total / rows[:, 1:].numel()


@torch.no_grad()
def golden_bytes(model: Decoder, rows: Tensor) -> bytes:
    """Return an .npz with 'tokens' int32 [n, context] and 'logits' float32 [n, context, vocab]."""
    import io

    model.eval()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, tokens=rows.numpy().astype(np.int32), logits=model(rows).numpy())
    model.train()
    return buffer.getvalue()


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Return the rate of a step: linear warm-up to peak, then a cosine down to 1 % of it."""
    if step < warmup:
        return peak * (step + 1) / warmup
    phase = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * phase)))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="UTF-8 training text")
    parser.add_argument("--model", type=Path, required=True, help="model file to write")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer file to write")
    parser.add_argument("--golden", type=Path, help="golden logits (.npz) to write")
    for field in dataclasses.fields(Shape):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default,
                            help=f"of the model (default: {field.default})")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=16, help="windows in a step")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--warmup", type=int, default=200, help="steps of warm-up")
    parser.add_argument("--decay", type=float, default=0.1, help="weight decay of matrices")
    parser.add_argument("--every", type=int, default=250, help="steps between validations")
    parser.add_argument("--minutes", type=float, default=45.0, help="wall-clock limit")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> int:
    """Train, save the best model so far at each validation, and print the figures."""
    args = parse_arguments()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    try:
        text = args.text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        print(f"train: cannot read the text: {error}", file=sys.stderr)
        return 2
    shape = Shape(**{field.name: getattr(args, field.name)
                     for field in dataclasses.fields(Shape)})
    context = shape.context
    chars = sorted(set(text))
    number = {char: FIRST_CHAR + i for i, char in enumerate(chars)}
    ids = torch.tensor([number[char] for char in text])
    split = len(ids) * 9 // 10
    train_ids, rows = ids[:split], windows(ids[split:], context - 1)
    if len(train_ids) <= context or len(rows) == 0:
        print(f"train: the text has {len(text)} characters; at least {20 * context} are needed",
              file=sys.stderr)
        return 2
    write_atomically(args.tokenizer, tokenizer_bytes(chars))

    model = Decoder(shape, FIRST_CHAR + len(chars))
    matrices = [p for p in model.parameters() if p.ndim == 2]
    gains = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": args.decay}, {"params": gains, "weight_decay": 0.0}],
        lr=args.rate, betas=(0.9, 0.98), eps=1e-8, fused=True)
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {len(train_ids)} training "
          f"characters, {len(rows)} validation windows", flush=True)

    best, start = math.inf, time.monotonic()
    offsets = torch.arange(context)
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.rate, args.warmup)
        starts = torch.randint(len(train_ids) - context + 1, (args.batch, 1))
        targets = train_ids[starts + offsets]                              # [B, context]
        inputs = torch.cat((torch.full((args.batch, 1), BOS), targets[:, :-1]), dim=1)
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        late = time.monotonic() - start > 60 * args.minutes
        if (step + 1) % args.every == 0 or step + 1 == args.steps or late:
            figure = validate(model, rows)
            print(f"step {step + 1:6d}  train {loss.item():.4f}  validation {figure:.4f}  "
                  f"{time.monotonic() - start:7.1f} s", flush=True)
            if figure < best:
                best = figure
                write_atomically(args.model, model_bytes(model))
                if args.golden:
                    write_atomically(args.golden, golden_bytes(model, rows[:GOLDEN_WINDOWS]))
        if late:
            break
    print(f"best validation {best:.4f} nats per character, {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
