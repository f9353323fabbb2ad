"""The numpy reference: the quantised decoder as plain array arithmetic.

It knows nothing of schedules, queues or addresses: whole matrices, all heads at once, in the order
of the formulas. Its numbers are the definition; machine model and RTL have to agree on every bit.
"""
import numpy as np

from arch import numerics
from arch.config import Config
from compiler.layout import ceil_div, heads_of
from compiler.lower_ffn import hidden_chunks
from compiler.lower_rope import rope_packed, rope_tiles
from compiler.quantise import NORM_POST, ROPE_FRACTION, QuantModel, Requant, eps_vector


class Reference:
    """State and step function of one sequence.

    Parameters
    ----------
    model : QuantModel
    config : Config
        Gives lanes and activation width; only the shape of the kept vectors depends on the rest.
    """

    def __init__(self, model: QuantModel, config: Config):
        self.model, self.config = model, config
        self.dims, self.heads = model.config, heads_of(model.config, config)
        shape = (len(model.layers), model.context, self.dims.n_kv_heads, self.dims.head_size)
        self.keys, self.values = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self.rope = rope_tiles(model, self.heads)
        self.eps = eps_vector(model.eps_total, config.lanes)
        self.eps_total = int((self.eps**2).sum())
        names = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
        # float64 holds every int32 sum exactly, and its matrix product is the fast one.
        self.weights = [{name: getattr(layer, name).astype(np.float64) for name in names}
                        for layer in model.layers]
        self.classifier = model.classifier.astype(np.float64)
        self.kept = None

    # Keeping vectors in the shape of the machine.

    def _keep(self, label, layer, vectors):
        """Remember values for checks, as vectors [count, lanes]."""
        if self.kept is not None:
            self.kept[label, layer] = np.asarray(vectors, np.int64).reshape(
                -1, self.config.lanes)

    def _vectors(self, values):
        """Channels as vectors, zero-padded."""
        lanes = self.config.lanes
        padded = np.zeros(ceil_div(len(values), lanes) * lanes, np.int64)
        padded[:len(values)] = values
        return padded

    def _spread(self, values, heads):
        """Channels of heads as vectors, each head padded to its stride."""
        return self._vectors(self.heads.spread(np.asarray(values), heads))

    # Arithmetic.

    def _matmul(self, weights, x):
        return (weights @ x.astype(np.float64)).astype(np.int64)

    def _activation(self, x, shift):
        return numerics.activation(x, shift, self.config.activation_bits)

    def _norm(self, x, bias, name, layer):
        r = numerics.rsqrt((x * x).sum() + self.eps_total, bias)
        self._keep(f"{name}.r", layer, np.repeat(r, self.config.lanes))
        return r

    def _joined(self, requant: Requant, r):
        """Multipliers times 1/rms."""
        return numerics.mac(requant.m, r, 0, 0, NORM_POST, b_float=True)

    def _requantise(self, acc, m, requant: Requant, c=0):
        return numerics.mac(acc, m, c, requant.pre, requant.post)

    def step(self, token: int, position: int, keep: bool = False) -> np.ndarray:
        """Logits [vocab] with `numerics.LOGIT_FRACTION` fraction bits after ``token``.

        Positions come in order; an earlier one may be taken again. With ``keep``, ``kept`` maps
        (label, layer) to the vectors that the machine stores, [count, lanes].
        """
        self.kept = {} if keep else None
        model = self.model
        scale = model.embedding_m[token]
        x = numerics.mac(model.embedding[token].astype(np.int64), scale, 0, 0,
                         model.embedding_post)
        if keep:
            self._keep("scale", -1, np.repeat(scale, self.config.lanes))
            self._keep("embedding", -1, self._vectors(x))
            self._keep("epsilon", -1, self.eps)
            cos, sin = self.rope[position]
            self._keep("cos", -1, cos)
            self._keep("sin", -1, sin)
            if rope_packed(self.heads):
                self._keep("sin_spread", -1, np.where(np.arange(sin.size).reshape(sin.shape) % 2,
                                                      sin, -sin))
        for number in range(len(model.layers)):
            x = self._layer(number, x, position)
        r = self._norm(x, model.final_bias, "final", len(model.layers))
        gained = x
        if model.final_gain is not None:
            gained = self._requantise(x, model.final_gain.m, model.final_gain)
            self._keep("final", len(model.layers), self._vectors(gained))
        m = self._joined(model.logits, r)
        self._keep("logits.m", len(model.layers), self._vectors(m))
        acc = self._matmul(self.classifier, self._activation(gained, model.final_shift))
        return self._requantise(acc, m, model.logits)

    def _layer(self, number, x, position):
        layer, weights = self.model.layers[number], self.weights[number]
        r = self._norm(x, layer.att_norm_bias, "att", number)
        att = self._attention(number, layer, weights, x, r, position)
        acc = self._matmul(weights["wo"], self._activation(att, 0))
        x = self._requantise(acc, layer.o.m, layer.o, x)
        self._keep("x_mid", number, self._vectors(x))
        r = self._norm(x, layer.ffn_norm_bias, "ffn", number)
        return self._feed_forward(number, layer, weights, x, r)

    def _attention(self, number, layer, weights, x, r, position):
        heads, dims = self.heads, self.dims
        n = self._activation(x, layer.att_norm_shift)
        m = {name: self._joined(getattr(layer, name), r) for name in ("k", "q", "v")}
        raw = {name: self._requantise(self._matmul(weights[f"w{name}"], n), m[name],
                                      getattr(layer, name)) for name in m}
        self._keep("att.m", number, np.concatenate([
            self._spread(m["k"], heads.kv_count), self._spread(m["q"], heads.count),
            self._vectors(m["v"])]))
        spread = np.concatenate([self._spread(raw["k"], heads.kv_count),
                                 self._spread(raw["q"], heads.count)]).reshape(
                                     -1, self.config.lanes)
        tiles = np.arange(len(spread)) % heads.period
        cos, sin = self.rope[position][:, tiles]
        swapped = spread.reshape(-1, self.config.lanes // 2, 2)[:, :, ::-1].reshape(spread.shape)
        turn = numerics.mac(swapped, sin, 0, 0, ROPE_FRACTION)
        turned = numerics.mac(spread, cos, turn, 0, ROPE_FRACTION)
        self._keep("qk_raw", number, spread)
        self._keep("qk_turn", number, turn)
        self._keep("k", number, turned[:heads.k_vectors])
        self._keep("q", number, turned[heads.k_vectors:])

        def natural(vectors, count):
            flat = vectors.reshape(-1)[:count * heads.stride]
            return flat.reshape(count, heads.stride)[:, :heads.size]
        k = numerics.mac(natural(turned[:heads.k_vectors], heads.kv_count), 1, 0, 0,
                         layer.k_shift)
        q = self._activation(natural(turned[heads.k_vectors:], heads.count), layer.q_shift)
        self.keys[number, position] = numerics.saturate_symmetric(k, 8)
        self.values[number, position] = numerics.saturate_symmetric(
            raw["v"].reshape(heads.kv_count, heads.size), 8)
        past = slice(0, position + 1)
        group = q.reshape(heads.kv_count, heads.group, heads.size)
        acc = np.einsum("kgd,tkd->kgt", group.astype(np.float64),
                        self.keys[number, past].astype(np.float64)).astype(np.int64)
        scores = numerics.mac(acc, layer.scores.m.reshape(heads.kv_count, heads.group, 1), 0,
                              layer.scores.pre, layer.scores.post)
        peak = scores.max(-1, keepdims=True)
        p = numerics.exp2(scores, peak, self.model.exp_post)
        inverse = numerics.recip(p.sum(-1), self.model.recip_bias)
        weighted = np.einsum("kgt,tkd->kgd",
                             self._activation(p, 0).astype(np.float64),
                             self.values[number, past].astype(np.float64)).astype(np.int64)
        att = numerics.mac(weighted, inverse[..., None], 0, self.model.att_pre,
                           self.model.att_post, b_float=True)
        if self.kept is not None:
            self._keep_attention(number, position, scores, peak, p, inverse, att)
        return att.reshape(dims.n_heads * heads.size)

    def _keep_attention(self, number, position, scores, peak, p, inverse, att):
        lanes, heads = self.config.lanes, self.heads
        width = (position // lanes + 1) * lanes
        for head in range(heads.count):
            kv, member = divmod(head, heads.group)
            row = np.full(width, numerics.MASKED)
            row[:position + 1] = scores[kv, member]
            self._keep(f"scores.{head}", number, row)
            self._keep(f"peak.{head}", number, np.repeat(peak[kv, member], lanes))
            row = np.zeros(width, np.int64)
            row[:position + 1] = p[kv, member]
            self._keep(f"exp.{head}", number, row)
            self._keep(f"inverse.{head}", number, np.repeat(inverse[kv, member], lanes))
        table = heads.attended()
        flat = att.reshape(-1)
        self._keep("att", number, np.where(table >= 0, flat[np.maximum(table, 0)], 0))

    def _feed_forward(self, number, layer, weights, x, r):
        n = self._activation(x, layer.ffn_norm_shift)
        m_gate, m_up = self._joined(layer.gate, r), self._joined(layer.up, r)
        gate = self._requantise(self._matmul(weights["w1"], n), m_gate, layer.gate)
        up = self._requantise(self._matmul(weights["w3"], n), m_up, layer.up)
        silu = numerics.silu(gate)
        hidden = numerics.mac(silu, up, 0, 0, layer.hidden_post)
        acc = self._matmul(weights["w2"], self._activation(hidden, layer.hidden_shift))
        x = self._requantise(acc, layer.down.m, layer.down, x)
        for label, values in (("gate", gate), ("up", up), ("silu", silu), ("hidden", hidden),
                              ("x_out", x)):
            self._keep(label, number, self._vectors(values))
        lanes = self.config.lanes
        m_gate, m_up = (self._vectors(m).reshape(-1, lanes) for m in (m_gate, m_up))
        self._keep("ffn.m", number, np.concatenate(
            [part[first:first + count] for first, count in hidden_chunks(len(m_gate))
             for part in (m_gate, m_up)]))
        return x

    def generate(self, prompt: list, steps: int, inverse_temperature: int = 0, seed: int = 0,
                 stop: int | None = None) -> list:
        """Tokens sampled in ``steps`` steps from position 0; the prompt's steps count."""
        token, tokens = prompt[0], []
        for position in range(steps):
            logits = self.step(token, position)
            if position + 1 < len(prompt):
                token = prompt[position + 1]
                continue
            keys = numerics.sampling_keys(logits, inverse_temperature, seed, position)
            token = int(np.argmax(keys))
            tokens.append(token)
            if token == stop:
                break
        return tokens
