"""Listings of compiled programs for ``docs/isa.md``: a GPT-2 block, as the compiler makes it.

``tests/test_gpt2.py`` runs the same image on the machine model against plain numpy.
"""
import functools

from arch.config import profile
from compiler.checkpoint import ModelConfig, random_checkpoint
from compiler.disasm import disassemble
from compiler.pipeline import Compiled, compile_model

#: One block of GPT-2's proportions: heads of 64, a hidden state four times as wide.
GPT2 = ModelConfig(dim=128, hidden_dim=512, n_layers=1, n_heads=2, n_kv_heads=2, vocab_size=64,
                   seq_len=32, tied=True, family="gpt2")


@functools.lru_cache(maxsize=None)
def gpt2() -> Compiled:
    """One block with embedding and positions before it, final norm and logits behind it."""
    return compile_model(random_checkpoint(GPT2, 1), profile("ecp5_85k"))


@functools.lru_cache(maxsize=None)
def listing(name: str) -> str:
    """A compiled sketch as assembly in a code block, without the contents of the memories."""
    compiled = {"gpt2": gpt2}[name]()
    shown = [line for line in disassemble(compiled.image).split("\n.weights ")[0].splitlines()
             if not line.startswith((".const", ".pattern", ".extra", ".meta"))]
    last = compiled.model.context - 1
    count = sum(len(words) for words in compiled.image.program.values())
    useful = compiled.useful_macs(last) // compiled.config.macs_per_cycle
    return (f"{count} instructions; {compiled.predicted(0)} cycles at position 0, "
            f"{compiled.predicted(last)} at position {last}, of which {useful} are useful work of "
            f"the multipliers ({100 * compiled.utilisation(last):.0f} %).\n\n"
            "<details><summary>The listing</summary>\n\n```\n" + "\n".join(shown).strip()
            + "\n```\n\n</details>")
