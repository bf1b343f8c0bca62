/* The next token, drawn from a row of logits.
 *
 * In the order of Hugging Face's generate: repetition penalty, temperature, top-k, top-p, min-p,
 * draw. Ties go to the lowest id. Only float and double operations that IEEE 754 rounds one way are
 * used, one by one, and sums run in one order: the same logits, settings and random number give the
 * same token on every CPU (tests/numpy_sampler.py says the same in numpy).
 */
#include <stdint.h>
#include <string.h>

#pragma STDC FP_CONTRACT OFF

enum { NOT_A_NUMBER = -1, INFINITE = -2, IMPOSSIBLE = -3 }; /* instead of a token */
enum { LANES = 16 };                                       /* maxima kept side by side */
enum { FIRST_NUCLEUS = 64 }; /* tokens that top-p looks at first; then 8 times as many, and so on */

static const float LEAST_EXPONENT = -37.0f; /* exp of it is below 2^-53, the finest of a draw */

/* The tokens that may be drawn, and how likely each is. */
typedef struct {
    int32_t *ids, count;
    float *weights;
} Candidates;

/* The likeliest token, the lowest id of several. */
static int32_t likeliest_of(const float *logits, int32_t vocab) {
    float most[LANES];
    int32_t broken[LANES] = {0}, i = 0;
    for (int lane = 0; lane < LANES; lane++) most[lane] = logits[0];
    for (; i + LANES <= vocab; i += LANES)
        for (int lane = 0; lane < LANES; lane++) {
            float x = logits[i + lane];
            most[lane] = x > most[lane] ? x : most[lane];
            broken[lane] |= x != x;
        }
    for (; i < vocab; i++) {
        most[0] = logits[i] > most[0] ? logits[i] : most[0];
        broken[0] |= logits[i] != logits[i];
    }
    for (int lane = 1; lane < LANES; lane++) {
        most[0] = most[lane] > most[0] ? most[lane] : most[0];
        broken[0] |= broken[lane];
    }
    if (broken[0]) return NOT_A_NUMBER;
    if (most[0] - most[0] != 0) return most[0] > 0 ? INFINITE : IMPOSSIBLE;
    int32_t best = 0;
    while (logits[best] != most[0]) best++;
    return best;
}

/* Tokens that occurred become less likely (Keskar et al. 2019, CTRL, 4.1). */
static void penalize(const float *logits, const int32_t *seen, int32_t seen_count, float penalty,
                     float *penalized) {
    for (int32_t i = 0; i < seen_count; i++) {
        float x = logits[seen[i]];
        penalized[seen[i]] = x > 0 ? x / penalty : x * penalty;
    }
}

/* e to the x for x of at most 0, to a relative 1e-7; 0 below LEAST_EXPONENT. The argument is split
 * into n·ln 2 + r; e^r is its Taylor series to the seventh power. */
static float exponential(float x) {
    const float high = 0.693359375f, low = -2.12194440e-4f; /* ln 2; n · high is exact */
    const float shift = 12582912.0f;                        /* 1.5 · 2^23: what is added is rounded */
    float clipped = x > LEAST_EXPONENT ? x : LEAST_EXPONENT;
    float n = (clipped * 1.4426950408889634f + shift) - shift;
    float r = (clipped - n * high) - n * low;
    float power = (float)(1.0 / 5040);
    power = power * r + (float)(1.0 / 720);
    power = power * r + (float)(1.0 / 120);
    power = power * r + (float)(1.0 / 24);
    power = power * r + (float)(1.0 / 6);
    power = power * r + 0.5f;
    power = power * r + 1.0f;
    power = power * r + 1.0f;
    int32_t bits = ((int32_t)n + 127) * (1 << 23);
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return x < LEAST_EXPONENT ? 0 : power * scale;
}

/* Whether element `a` comes after element `b`: smaller, or as large with a higher index. */
static int after(const float *values, int32_t a, int32_t b) {
    return values[a] < values[b] || (values[a] == values[b] && a > b);
}

/* Put `element` where it belongs below the top of a heap whose top comes last of all. */
static void sink(int32_t *heap, int32_t count, int32_t element, const float *values) {
    int32_t at = 0;
    for (int32_t below; (below = 2 * at + 1) < count; at = below) {
        if (below + 1 < count && after(values, heap[below + 1], heap[below])) below++;
        if (!after(values, heap[below], element)) break;
        heap[at] = heap[below];
    }
    heap[at] = element;
}

/* Indices of the `count` largest values in `order`, largest first, lowest index first of equals. */
static void sort_largest(const float *values, int32_t length, int32_t count, int32_t *order) {
    for (int32_t size = 1; size <= count; size++) { /* grows upwards: the newest climbs */
        int32_t at = size - 1;
        for (; at && after(values, size - 1, order[(at - 1) / 2]); at = (at - 1) / 2)
            order[at] = order[(at - 1) / 2];
        order[at] = size - 1;
    }
    for (int32_t i = count; i < length; i++)
        if (after(values, order[0], i)) sink(order, count, i, values);
    for (int32_t left = count - 1; left > 0; left--) {
        int32_t last = order[0];
        sink(order, left, order[left], values);
        order[left] = last;
    }
}

static double sum(const float *weights, int32_t count) {
    double total = 0;
    for (int32_t i = 0; i < count; i++) total += weights[i];
    return total;
}

/* Keep the fewest largest weights whose share of the sum reaches `top_p` (Holtzman et al. 2020, "The
 * Curious Case of Neural Text Degeneration"), largest first. */
static void keep_nucleus(Candidates *all, double top_p, int32_t *order, Candidates *kept) {
    double enough = top_p * sum(all->weights, all->count), reached = 0;
    for (int32_t looked = FIRST_NUCLEUS;; looked *= 8) {
        if (looked > all->count) looked = all->count;
        sort_largest(all->weights, all->count, looked, order);
        reached = 0;
        for (kept->count = 0; kept->count < looked;) {
            reached += all->weights[order[kept->count++]];
            if (reached >= enough) break;
        }
        if (reached >= enough || looked == all->count) break;
    }
    for (int32_t i = 0; i < kept->count; i++) {
        kept->ids[i] = all->ids[order[i]];
        kept->weights[i] = all->weights[order[i]];
    }
}

/* The next token, or what is wrong with the logits.
 *
 * `logits` has `vocab` elements and is left as it is; `seen` are the tokens so far, 0 ≤ token <
 * vocab; `uniform` is a random number from [0, 1); `memory` has room for 6 · vocab floats. */
int32_t edge_draw(const float *logits, int32_t vocab, const int32_t *seen, int32_t seen_count,
                  float penalty, float temperature, int32_t top_k, double top_p, float min_p,
                  double uniform, float *memory) {
    float *own = memory; /* logits that were changed */
    if (penalty != 1) {
        memcpy(own, logits, (size_t)vocab * sizeof *own);
        penalize(logits, seen, seen_count, penalty, own);
        logits = own;
    }
    int32_t best = likeliest_of(logits, vocab);
    if (best < 0 || temperature == 0) return best;

    float largest = logits[best];
    for (int32_t i = 0; i < vocab; i++) own[i] = (logits[i] - largest) / temperature;
    int32_t *ids = (int32_t *)(memory + vocab), *order = ids + vocab;
    Candidates all = {ids, 0, memory + 3 * vocab};
    if (top_k) {
        all.count = top_k < vocab ? top_k : vocab;
        sort_largest(own, vocab, all.count, all.ids);
    } else {
        for (int32_t i = 0; i < vocab; i++)
            if (own[i] >= LEAST_EXPONENT) all.ids[all.count++] = i;
    }
    for (int32_t i = 0; i < all.count; i++) all.weights[i] = exponential(own[all.ids[i]]);
    if (top_p < 1) {
        Candidates kept = {(int32_t *)(memory + 4 * vocab), 0, memory + 5 * vocab};
        keep_nucleus(&all, top_p, order, &kept);
        all = kept;
    }
    int32_t count = 0;
    for (int32_t i = 0; i < all.count; i++)
        if (all.weights[i] >= min_p) {
            all.ids[count] = all.ids[i];
            all.weights[count++] = all.weights[i];
        }

    double drawn = uniform * sum(all.weights, count), reached = 0;
    for (int32_t i = 0; i < count - 1; i++) {
        reached += all.weights[i];
        if (reached > drawn) return all.ids[i];
    }
    return all.ids[count - 1]; /* also where rounding has lifted the product to the last sum */
}
