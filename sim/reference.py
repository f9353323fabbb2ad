"""The numpy reference: the quantised decoder as plain array arithmetic.

It knows nothing of schedules, queues or addresses: whole matrices, all heads at once, in the order
of the formulas. Its numbers are the definition; machine model and RTL have to agree on every bit.
"""
import numpy as np

from arch import numerics
from arch.config import Config
from compiler.layout import heads_of
from compiler.lower_ffn import hidden_chunks
from compiler.lower_rope import rope_packed, rope_tiles
from compiler.quantised import (NORM_POST, ROPE_FRACTION, QuantModel, Requant, Rows, eps_vector)
from sim.kept import Kept


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
        self.rope = None if model.rope is None else rope_tiles(model, self.heads)
        self.eps = eps_vector(model.eps_total, config.lanes)
        self.eps_total = int((self.eps**2).sum())
        names = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
        # float64 holds every int32 sum exactly, and its matrix product is the fast one.
        self.weights = [{name: getattr(layer, name).astype(np.float64) for name in names
                         if getattr(layer, name) is not None} for layer in model.layers]
        self.table = model.classifier.astype(np.float64)
        self.kept = self._kept = None
        #: Called with (name, layer, integers [count, ...], bits) for the vectors of a report.
        self.listener = None

    def step(self, token: int, position: int, keep: bool = False) -> np.ndarray:
        """Logits [vocab] with `numerics.LOGIT_FRACTION` fraction bits after ``token``.

        Positions come in order; an earlier one may be taken again. With ``keep``, ``kept`` maps
        (label, layer) to the vectors that the machine stores, [count, lanes].
        """
        self._kept = Kept(self.config, self.heads) if keep else None
        logits = self._forward(np.array([token]), position)[0]
        self.kept = self._kept.vectors if keep else None
        return logits

    def logits(self, tokens) -> np.ndarray:
        """Logits [count, vocab] after each of ``tokens``, from position 0 on: what as many steps
        give, computed together."""
        self._kept = None
        return self._forward(np.asarray(tokens), 0)

    # Arithmetic. The first axis of every array is that of the tokens.

    def _keep(self, label, layer, values):
        if self._kept is not None:
            self._kept.put(label, layer, values)

    def _tell(self, name, layer, values, bits):
        if self.listener is not None:
            self.listener(name, layer, values, bits)

    def _matmul(self, weights, x):
        return (x.astype(np.float64) @ weights.T).astype(np.int64)

    def _activation(self, x, shift):
        return numerics.activation(x, shift, self.config.activation_bits)

    def _norm(self, x, bias, name, layer):
        """float12 of 1 over the root of the sum of squares, [count, 1]."""
        r = numerics.rsqrt((x * x).sum(-1, keepdims=True) + self.eps_total, bias)
        if self._kept is not None:
            self._kept.scalar(f"{name}.r", layer, r[0, 0])
        return r

    def _joined(self, requant: Requant, r):
        """Multipliers times 1/rms, [count, out]."""
        return numerics.mac(requant.m, r, 0, 0, NORM_POST, b_float=True)

    def _requantise(self, acc, m, requant: Requant, c=0):
        """The addend c is the residual or, without one, the bias."""
        if requant.bias is not None and np.isscalar(c):
            c = requant.bias
        return numerics.mac(acc, m, c, requant.pre, requant.post)

    def _scaled(self, x, requant: Requant | None, label, number):
        """The residual as matmuls take it, before shift and saturation."""
        if requant is None:
            return x
        x = self._requantise(x, requant.m, requant)
        self._keep(label, number, x)
        return x

    def _added(self, x, requant: Requant, label, number):
        """The residual, with a bias on it where there is one."""
        if requant.bias is None:
            return x
        x = numerics.mac(x, 1, requant.bias, 0, 0)
        self._keep(label, number, x)
        return x

    # The decoder.

    def _forward(self, ids, start):
        model = self.model
        x = self._embedded(ids, start)
        self._keep("epsilon", -1, self.eps[None])
        for number in range(len(model.layers)):
            x = self._layer(number, x, start)
        end = len(model.layers)
        scaled = self._scaled(x, model.final_in, "att.in", end - 1)
        r = self._norm(x, model.final_bias, "final", end)
        if self.dims.norm == "layer":
            m = self._joined(model.final_gain, r)
            self._keep("final.m", end, m)
            self._keep("logits.m", end, model.logits.m[None])
            gained, m = self._requantise(x, m, model.final_gain), model.logits.m
            self._keep("final", end, gained)
        else:
            gained, m = scaled, self._joined(model.logits, r)
            self._keep("logits.m", end, m)
            if model.final_gain is not None:
                gained = self._requantise(x, model.final_gain.m, model.final_gain)
                self._keep("final", end, gained)
        acc = self._matmul(self.table, self._activation(gained, model.final_shift))
        logits = self._requantise(acc, m, model.logits)
        self._tell("logits", end, logits, 16)
        return logits

    def _row(self, table: Rows, ids, label, c=0):
        if self._kept is not None:
            self._kept.scalar(label, -1, table.m[ids[0]])
        return numerics.mac(table.rows[ids].astype(np.int64), table.m[ids, None], c, 0, table.post)

    def _embedded(self, ids, start):
        model, place = self.model, 0
        if model.offsets is not None:
            place = model.offsets[ids, None]
            self._keep("offset", -1, np.repeat(place[:1], self.dims.dim, 1))
        if model.positions is not None:
            at = np.arange(start, start + len(ids))
            place = self._row(model.positions, at, "place.scale", place)
            self._keep("place", -1, place)
        x = self._row(model.embedding, ids, "scale", place)
        self._keep("embedding", -1, x)
        if self._kept is not None and self.rope is not None:
            cos, sin = self.rope[start]
            self._keep("cos", -1, cos.reshape(1, -1))
            self._keep("sin", -1, sin.reshape(1, -1))
            if rope_packed(self.heads):
                odd = np.arange(sin.size) % 2
                self._keep("sin_spread", -1, np.where(odd, sin, -sin).reshape(1, -1))
        return x

    def _layer(self, number, x, start):
        layer, weights = self.model.layers[number], self.weights[number]
        r = self._norm(x, layer.att_norm_bias, "att", number)
        n = self._scaled(x, layer.att_in, "att.in", number - 1)
        n = self._activation(n, layer.att_norm_shift)
        att = self._attention(number, layer, weights, n, r, start)
        att = self._activation(att, 0)
        self._tell("att", number, att, self.config.activation_bits)
        acc = self._matmul(weights["wo"], att)
        x = self._requantise(acc, layer.o.m, layer.o, self._added(x, layer.o, "att.biased", number))
        self._keep("x_mid", number, x)
        self._tell("x_ffn", number, x, 16)
        r = self._norm(x, layer.ffn_norm_bias, "ffn", number)
        hidden = self._hidden(number, layer, weights, x, r)
        self._keep("hidden", number, hidden)
        inner = self._activation(hidden, layer.hidden_shift)
        self._tell("hidden", number, inner, self.config.activation_bits)
        acc = self._matmul(weights["w2"], inner)
        x = self._requantise(acc, layer.down.m, layer.down,
                             self._added(x, layer.down, "ffn.biased", number))
        self._keep("x_out", number, x)
        self._tell("x_out", number, x, 16)
        return x

    def _attention(self, number, layer, weights, n, r, start):
        heads, count = self.heads, len(n)
        q, k, v = self._projected(number, layer, weights, n, r, start)
        k = numerics.mac(k, 1, 0, 0, layer.k_shift)
        q = self._activation(q, layer.q_shift)
        end = start + count
        self.keys[number, start:end] = numerics.saturate_symmetric(k, 8)
        self.values[number, start:end] = numerics.saturate_symmetric(v, 8)
        for name, values, bits in (("q", q, self.config.activation_bits),
                                   ("k", self.keys[number, start:end], 8),
                                   ("v", self.values[number, start:end], 8)):
            self._tell(name, number, values, bits)
        future = np.arange(end) > np.arange(start, end)[:, None, None, None]
        group = q.reshape(count, heads.kv_count, heads.group, heads.size).astype(np.float64)
        keys, values = (cache[number, :end].transpose(1, 0, 2).astype(np.float64)
                        for cache in (self.keys, self.values))           # [kv, end, size]
        acc = (group.transpose(1, 2, 0, 3) @ keys[:, None].transpose(0, 1, 3, 2)).transpose(
            2, 0, 1, 3).astype(np.int64)                                 # [count, kv, group, end]
        scores = numerics.mac(acc, layer.scores.m.reshape(heads.kv_count, heads.group, 1), 0,
                              layer.scores.pre, layer.scores.post)
        scores = np.where(future, numerics.MASKED, scores)
        peak = scores.max(-1, keepdims=True)
        p = np.where(future, 0, numerics.exp2(scores, peak, self.model.exp_post))
        inverse = numerics.recip(p.sum(-1), self.model.recip_bias)
        weighted = (self._activation(p, 0).astype(np.float64).transpose(1, 2, 0, 3)
                    @ values[:, None]).transpose(2, 0, 1, 3).astype(np.int64)
        att = numerics.mac(weighted, inverse[..., None], 0, self.model.att_pre,
                           self.model.att_post, b_float=True)
        if self._kept is not None:
            self._kept.attention(number, scores[0], peak[0], p[0], inverse[0], att[0])
        return att.reshape(count, -1)

    def _projected(self, number, layer, weights, n, r, start):
        """q, k and v as int16, [count, heads, size]; with RoPE, q and k are turned."""
        heads = self.heads
        m = {name: self._joined(getattr(layer, name), r) for name in "kqv"}
        raw = {name: self._requantise(self._matmul(weights[f"w{name}"], n), m[name],
                                      getattr(layer, name)) for name in "kqv"}
        if (kept := self._kept) is not None:
            self._keep("att.m", number, np.concatenate([
                kept.spread(m["k"], heads.kv_count), kept.spread(m["q"], heads.count),
                kept.padded(m["v"])], 1))
        raw = {name: values.reshape(len(n), -1, heads.size) for name, values in raw.items()}
        turned = {name: self._turned(raw[name], start) if self.rope is not None else
                  (raw[name], None) for name in "kq"}
        if kept is not None:
            both = lambda parts: np.concatenate([  # noqa: E731
                kept.spread(parts[name].reshape(1, -1), count)
                for name, count in (("k", heads.kv_count), ("q", heads.count))], 1)
            if self.rope is not None:
                self._keep("qk_raw", number, both(raw))
                self._keep("qk_turn", number, both({name: turned[name][1] for name in "kq"}))
            for name, count in (("k", heads.kv_count), ("q", heads.count)):
                self._keep(name, number, kept.spread(turned[name][0].reshape(1, -1), count))
        return turned["q"][0], turned["k"][0], raw["v"]

    def _turned(self, x, start):
        """RoPE on [count, heads, size]: the result, and the part that the sine gave."""
        factors = self.model.rope[start:start + len(x), None]
        cos, sin = (np.repeat(part, 2, -1) for part in np.split(factors, 2, -1))
        sin = np.where(np.arange(self.heads.size) % 2, sin, -sin)
        swapped = x.reshape(*x.shape[:-1], -1, 2)[..., ::-1].reshape(x.shape)
        turn = numerics.mac(swapped, sin, 0, 0, ROPE_FRACTION)
        return numerics.mac(x, cos, turn, 0, ROPE_FRACTION), turn

    def _hidden(self, number, layer, weights, x, r):
        """The hidden state of the feed-forward part, int16."""
        n = self._scaled(x, layer.ffn_in, "ffn.in", number)
        n, m_gate = self._activation(n, layer.ffn_norm_shift), self._joined(layer.gate, r)
        gate = self._requantise(self._matmul(weights["w1"], n), m_gate, layer.gate)
        self._tell("gate", number, gate, 16)
        if self.dims.activation == "gelu":
            self._keep("ffn.m", number, m_gate)
            return numerics.gelu(gate)
        m_up = self._joined(layer.up, r)
        up = self._requantise(self._matmul(weights["w3"], n), m_up, layer.up)
        silu = numerics.silu(gate)
        for label, values in (("gate", gate), ("up", up), ("silu", silu)):
            self._keep(label, number, values)
        if self._kept is not None:
            m_gate, m_up = (self._kept.padded(m).reshape(-1, self.config.lanes)
                            for m in (m_gate, m_up))
            self._keep("ffn.m", number, np.concatenate(
                [part[first:first + count] for first, count in hidden_chunks(len(m_gate))
                 for part in (m_gate, m_up)]).reshape(1, -1))
        return numerics.mac(silu, up, 0, 0, layer.hidden_post)

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
