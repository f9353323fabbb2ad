// One token at a time in float32 on a processor core: the yardstick for the machine's speed.
//
//     cpu_baseline CHECKPOINT TOKENS REPEATS
//
// Reads a llama2.c checkpoint (version 0), generates greedily from token 1 and prints the tokens of
// the last run on the first line and the seconds of every run on the second.
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

struct Shape {
    int32_t dim, hidden, layers, heads, kv_heads, vocabulary, context;
};

struct Weights {
    const float *embedding, *norm_att, *wq, *wk, *wv, *wo, *norm_ffn, *w1, *w2, *w3, *norm_final,
        *classifier;
};

// y [rows] = w [rows, columns] times x [columns]
void multiply(float *__restrict y, const float *__restrict w, const float *__restrict x, int rows,
              int columns) {
    for (int row = 0; row < rows; row++) {
        float sum = 0;
        for (int i = 0; i < columns; i++) sum += w[row * columns + i] * x[i];
        y[row] = sum;
    }
}

void normalise(float *__restrict y, const float *__restrict x, const float *__restrict gain,
               int size) {
    float sum = 0;
    for (int i = 0; i < size; i++) sum += x[i] * x[i];
    const float scale = 1 / std::sqrt(sum / size + 1e-5f);
    for (int i = 0; i < size; i++) y[i] = gain[i] * (scale * x[i]);
}

void rotate(float *x, int heads, int size, int position) {
    for (int pair = 0; pair < size / 2; pair++) {
        const float angle = position * std::pow(10000.0f, -2.0f * pair / size);
        const float c = std::cos(angle), s = std::sin(angle);
        for (int head = 0; head < heads; head++) {
            float *at = x + head * size + 2 * pair, even = at[0], odd = at[1];
            at[0] = even * c - odd * s;
            at[1] = even * s + odd * c;
        }
    }
}

class Decoder {
  public:
    Decoder(const Shape &shape, const Weights &weights)
        : s(shape), w(weights), size(s.dim / s.heads), kv(size * s.kv_heads), x(s.dim), n(s.dim),
          mixed(s.dim), q(s.dim), out(s.dim), gate(s.hidden), up(s.hidden), score(s.context),
          logits(s.vocabulary), keys(size_t(s.layers) * s.context * kv), values(keys.size()) {}

    int step(int token, int position) {
        for (int i = 0; i < s.dim; i++) x[i] = w.embedding[token * s.dim + i];
        for (int layer = 0; layer < s.layers; layer++) {
            attend(layer, position);
            feed_forward(layer);
        }
        normalise(n.data(), x.data(), w.norm_final, s.dim);
        multiply(logits.data(), w.classifier, n.data(), s.vocabulary, s.dim);
        int best = 0;
        for (int i = 1; i < s.vocabulary; i++)
            if (logits[i] > logits[best]) best = i;
        return best;
    }

  private:
    void attend(int layer, int position) {
        const size_t begin = size_t(layer) * s.context * kv;
        float *k = &keys[begin], *v = &values[begin];
        normalise(n.data(), x.data(), w.norm_att + layer * s.dim, s.dim);
        multiply(q.data(), w.wq + layer * s.dim * s.dim, n.data(), s.dim, s.dim);
        multiply(k + position * kv, w.wk + layer * s.dim * kv, n.data(), kv, s.dim);
        multiply(v + position * kv, w.wv + layer * s.dim * kv, n.data(), kv, s.dim);
        rotate(q.data(), s.heads, size, position);
        rotate(k + position * kv, s.kv_heads, size, position);
        for (int head = 0; head < s.heads; head++) {
            const int at = head / (s.heads / s.kv_heads) * size;
            float top = -INFINITY, total = 0, *o = &mixed[head * size];
            for (int t = 0; t <= position; t++) {
                float sum = 0;
                for (int i = 0; i < size; i++) sum += q[head * size + i] * k[t * kv + at + i];
                score[t] = sum / std::sqrt(float(size));
                top = score[t] > top ? score[t] : top;
            }
            for (int i = 0; i < size; i++) o[i] = 0;
            for (int t = 0; t <= position; t++) {
                const float p = std::exp(score[t] - top);
                total += p;
                for (int i = 0; i < size; i++) o[i] += p * v[t * kv + at + i];
            }
            for (int i = 0; i < size; i++) o[i] /= total;
        }
        multiply(out.data(), w.wo + layer * s.dim * s.dim, mixed.data(), s.dim, s.dim);
        for (int i = 0; i < s.dim; i++) x[i] += out[i];
    }

    void feed_forward(int layer) {
        const int all = layer * s.dim * s.hidden;
        normalise(n.data(), x.data(), w.norm_ffn + layer * s.dim, s.dim);
        multiply(gate.data(), w.w1 + all, n.data(), s.hidden, s.dim);
        multiply(up.data(), w.w3 + all, n.data(), s.hidden, s.dim);
        for (int i = 0; i < s.hidden; i++) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
        multiply(out.data(), w.w2 + all, gate.data(), s.dim, s.hidden);
        for (int i = 0; i < s.dim; i++) x[i] += out[i];
    }

    const Shape s;
    const Weights w;
    const int size, kv;
    std::vector<float> x, n, mixed, q, out, gate, up, score, logits, keys, values;
};

Weights weights_of(Shape &s, const float *at) {
    const bool tied = s.vocabulary > 0;
    s.vocabulary = std::abs(s.vocabulary);
    const int kv = s.dim / s.heads * s.kv_heads;
    const auto take = [&](long count) { return at += count, at - count; };
    Weights w;
    w.embedding = take(long(s.vocabulary) * s.dim);
    w.norm_att = take(s.layers * s.dim);
    w.wq = take(long(s.layers) * s.dim * s.dim);
    w.wk = take(long(s.layers) * s.dim * kv);
    w.wv = take(long(s.layers) * s.dim * kv);
    w.wo = take(long(s.layers) * s.dim * s.dim);
    w.norm_ffn = take(s.layers * s.dim);
    w.w1 = take(long(s.layers) * s.dim * s.hidden);
    w.w2 = take(long(s.layers) * s.dim * s.hidden);
    w.w3 = take(long(s.layers) * s.dim * s.hidden);
    w.norm_final = take(s.dim);
    take(long(s.context) * (s.dim / s.heads)); // tables of RoPE
    w.classifier = tied ? w.embedding : at;
    return w;
}

} // namespace

int main(int count, char **arguments) {
    std::FILE *file = count == 4 ? std::fopen(arguments[1], "rb") : nullptr;
    Shape shape;
    if (!file || std::fread(&shape, sizeof shape, 1, file) != 1) {
        std::fprintf(stderr, "usage: cpu_baseline CHECKPOINT TOKENS REPEATS\n");
        return 2;
    }
    std::vector<float> all;
    float block[4096];
    while (size_t got = std::fread(block, sizeof(float), 4096, file))
        all.insert(all.end(), block, block + got);
    std::fclose(file);
    const Weights weights = weights_of(shape, all.data());
    const int tokens = std::atoi(arguments[2]), repeats = std::atoi(arguments[3]);
    std::vector<int> text;
    std::vector<double> seconds;
    for (int repeat = 0; repeat < repeats; repeat++) {
        Decoder decoder(shape, weights);
        text.clear();
        const auto began = std::chrono::steady_clock::now();
        for (int position = 0, token = 1; position < tokens && position < shape.context; position++)
            text.push_back(token = decoder.step(token, position));
        const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - began;
        seconds.push_back(taken.count());
    }
    for (int token : text) std::printf("%d ", token);
    std::printf("\n");
    for (double value : seconds) std::printf("%.6f ", value);
    std::printf("\n");
}
