// The arithmetic on one block: at most kBlock neighbouring elements of one plane.
#pragma once

#include "activations.h"

namespace MOMENTNORM_NAMESPACE {

// Partial results are per block, and blocks are folded in order, so where the blocks begin is part
// of the result's bits.
constexpr int64_t kBlock = 8192;

// Element i of a chunk belongs to column i mod kColumns. A column sums its kSteps elements in
// float, which is as fast as the memory; then the columns go to the double lanes, through one
// addition tree. So few roundings in float leave a sum's relative error below 1e-6 at worst, and
// near 1e-8 on ordinary data.
constexpr int kGroups = 4;
constexpr int kColumns = kGroups * kLanes;
constexpr int kSteps = 16;
constexpr int kChunk = kColumns * kSteps;

// kLanes numbers of T, for adding up columns.
template <class T>
struct Group {
  static constexpr int kVecs = kLanes / kWidth<T>;
  Vec<T> vecs[kVecs] = {};
  INLINE void add(const Group& other) {
    for (int v = 0; v < kVecs; ++v) vecs[v] += other.vecs[v];
  }
  INLINE void add_to(Lanes& lanes) const {
    T values[kLanes];
    for (int v = 0; v < kVecs; ++v) store(values + v * kWidth<T>, vecs[v]);
    for (int r = 0; r < kRegisters; ++r) {
      lanes.registers[r] += load_doubles(values + r * kDoubles);
    }
  }
};

// Two sums over a chunk of `steps` steps, in T. terms(places, one, other) gives Two of each. Which
// elements share a column follows from `interleaved`.
template <class T, bool interleaved, class Terms>
INLINE void add_chunk(Lanes& first, Lanes& second, int steps, Terms terms) {
  // As many pairs of groups at once as leave registers free.
  constexpr int kVecs = Group<T>::kVecs, kPairs = kGroups / 2;
  constexpr int kTogether = kVecs < kPairs ? kPairs / kVecs : 1;
  Group<T> sums[2][kGroups];
  for (int begin = 0; begin < kPairs; begin += kTogether) {
    Two<T> one[kTogether][kVecs] = {}, other[kTogether][kVecs] = {};
    for (int step = 0; step < steps; ++step) {
      for (int pair = 0; pair < kTogether; ++pair) {
        for (int v = 0; v < kVecs; ++v) {
          Two<T> a, b;
          terms(places<T, interleaved>(step * kColumns + (begin + pair) * 2 * kLanes, v), a, b);
          one[pair][v] += a;
          other[pair][v] += b;
        }
      }
    }
    for (int pair = 0; pair < kTogether; ++pair) {
      for (int v = 0; v < kVecs; ++v) {
        const int group = 2 * (begin + pair);
        sums[0][group].vecs[v] = one[pair][v].first;
        sums[0][group + 1].vecs[v] = one[pair][v].second;
        sums[1][group].vecs[v] = other[pair][v].first;
        sums[1][group + 1].vecs[v] = other[pair][v].second;
      }
    }
  }
  for (Group<T>(&sum)[kGroups] : sums) {
    for (int half = kGroups / 2; half > 0; half /= 2) {
      for (int group = 0; group < half; ++group) sum[group].add(sum[group + half]);
    }
  }
  sums[0][0].add_to(first);
  sums[1][0].add_to(second);
}

// What to bring into the cache meanwhile, so that the memory never waits for the arithmetic: during
// a reduction the result that will be written after it, and during that writing the plane after.
struct NoFetch {
  INLINE void for_writing(int64_t) const {}
  INLINE void next(const void*) const {}
  INLINE NoFetch from(int64_t) const { return {}; }
};
template <class E>
struct FetchResult {
  E* result;
  INLINE void for_writing(int64_t i) const { __builtin_prefetch(result + i, 1, 2); }
  INLINE void next(const E*) const {}
  INLINE FetchResult from(int64_t i) const { return {result + i}; }
};
template <class E>
struct FetchBoth {
  E* result;
  int64_t ahead;  // elements to the next planes
  INLINE void for_writing(int64_t i) const { __builtin_prefetch(result + i, 1, 3); }
  INLINE void next(const E* operand) const { __builtin_prefetch(operand + ahead, 0, 3); }
  INLINE FetchBoth from(int64_t i) const { return {result + i, ahead}; }
};

// For Two: elements of two bytes share a line.
template <class E, class Fetch>
INLINE void fetch_for_writing(Fetch fetch, Places at) {
  fetch.for_writing(at.first);
  if (sizeof(E) > 2) fetch.for_writing(at.second);
}
template <class E, class Fetch>
INLINE void fetch_next(Fetch fetch, const E* operand, Places at) {
  fetch.next(operand + at.first);
  if (sizeof(E) > 2) fetch.next(operand + at.second);
}

// The count, mean and sum of squared deviations of a set of numbers.
struct Partial {
  double count, mean, m2;

  // Chan, Golub and LeVeque (1979). Equal means merge exactly.
  INLINE void merge(const Partial& other) {
    const double total = count + other.count;
    const double delta = other.mean - mean;
    const double share = other.count / total;
    mean += delta * share;
    m2 += other.m2 + delta * delta * (count * share);
    count = total;
  }
};

// Adds a vector of doubles for each register of lanes: terms(offset) gives kDoubles of them.
template <class Terms>
INLINE void add_lanes(Lanes& first, Lanes& second, Terms terms) {
  for (int r = 0; r < kRegisters; ++r) {
    Doubles one, other;
    terms(r * kDoubles, one, other);
    first.registers[r] += one;
    second.registers[r] += other;
  }
}

// Two sums over a block: the first `chunked` elements in the compute type, by columns; the others
// in double, by lanes. fast(places, one, other) gives Two of terms, exact(i, one, other) doubles,
// and single(i, one, other) one element's. prepare(i, n) comes before the n terms from i on.
template <class T, bool interleaved, class Prepare, class Fast, class Exact, class Single>
INLINE void add_block(Lanes& first, Lanes& second, int64_t count, int64_t chunked, Prepare prepare,
                      Fast fast, Exact exact, Single single) {
  int64_t at = 0;
  auto terms = [&](Places i, Two<T>& one, Two<T>& other) {
    fast({at + i.first, at + i.second}, one, other);
  };
  for (; at + kChunk <= chunked; at += kChunk) {
    prepare(at, kChunk);
    add_chunk<T, interleaved>(first, second, kSteps, terms);
  }
  if (at < chunked) {
    prepare(at, chunked - at);
    add_chunk<T, interleaved>(first, second, int((chunked - at) / kColumns), terms);
  }
  for (int64_t chunk = chunked; chunk < count; chunk += kChunk) {
    const int64_t end = chunk + kChunk < count ? chunk + kChunk : count;
    prepare(chunk, end - chunk);
    at = chunk;
    for (; at + kLanes <= end; at += kLanes) {
      add_lanes(first, second,
                [&](int64_t i, Doubles& one, Doubles& other) { exact(at + i, one, other); });
    }
    if (at < end) {
      double terms[2][kLanes] = {};
      for (int64_t i = at; i < end; ++i) single(i, terms[0][i - at], terms[1][i - at]);
      add_lanes(first, second, [&](int64_t i, Doubles& one, Doubles& other) {
        one = load_as_is<Doubles>(terms[0] + i);
        other = load_as_is<Doubles>(terms[1] + i);
      });
    }
  }
}

// The moments of a block from sums of x - origin.
//
// Whatever the data, the mean of m of the block's n elements lies within sqrt(n / m) standard
// deviations of the block's mean. So an origin of that kind costs m2 at most a factor 1 + n / m by
// cancellation.
template <class E, class Fetch>
INLINE void moments_about(const E* x, int64_t count, Compute<E> origin, int64_t chunked,
                          Fetch fetch, double& mean, double& m2) {
  using T = Compute<E>;
  Lanes sum, squares;
  add_block<T, kInterleaved<E>>(
      sum, squares, count, chunked, [](int64_t, int64_t) {},
      [&](Places at, Two<T>& one, Two<T>& other) {
        fetch_for_writing<E>(fetch, at);
        one = load_two<kInterleaved<E>>(x, at) - origin;
        other = one * one;
      },
      [&](int64_t i, Doubles& one, Doubles& other) {
        fetch.for_writing(i);
        one = load_doubles(x + i) - double(origin);
        other = one * one;
      },
      [&](int64_t i, double& one, double& other) {
        one = double(get(x[i])) - double(origin);
        other = one * one;
      });
  const double offset = sum.total() / double(count);
  const double about_mean = squares.total() - offset * offset * double(count);
  mean = double(origin) + offset;
  m2 = about_mean < 0 ? 0 : about_mean;
}

// The same out of line, for what is rare: about another origin, or in double throughout.
template <class E>
__attribute__((noinline)) void moments_again(const E* x, int64_t count, Compute<E> origin,
                                             int64_t chunked, double& mean, double& m2) {
  moments_about(x, count, origin, chunked, NoFetch{}, mean, m2);
}

// How much larger than the variance the square of the origin's distance may be.
constexpr double kFar = 4;

// Whether sums of squares in float neither overflowed nor underflowed. A constant is exact anyway.
INLINE bool in_range(double sum_of_squares, double sum, double count) {
  const double var = sum_of_squares / count;
  return (var > 1e-24 && var < 1e24) || (sum_of_squares == 0 && sum == 0);
}

// How many of a block's elements are added in columns, if the compute type is float.
template <class E>
INLINE int64_t in_columns(int64_t count) {
  return sizeof(E) < sizeof(double) ? count - count % kColumns : 0;
}

// The mean of the block's first chunk, roughly; 0 where nothing is added in columns.
template <class E>
INLINE Compute<E> origin_of(const E* x, int64_t count) {
  using T = Compute<E>;
  const int64_t chunked = in_columns<E>(count);
  if (chunked == 0) return 0;
  const int steps = int(chunked < kChunk ? chunked / kColumns : kSteps);
  Lanes sum, unused;
  add_chunk<T, kInterleaved<E>>(sum, unused, steps, [&](Places at, Two<T>& one, Two<T>& other) {
    one = load_two<kInterleaved<E>>(x, at);
    other = Two<T>{};
  });
  return T(sum.total() / (steps * kColumns));
}

// An origin far from the mean costs digits: the mean that it led to is a better one.
template <class E>
INLINE void moments_about_mean(const E* x, int64_t count, Compute<E> origin, int64_t chunked,
                               double& mean, double& m2) {
  const double offset = mean - double(origin);
  if (offset * offset * double(count) > kFar * m2) {
    moments_again(x, count, Compute<E>(mean), chunked, mean, m2);
  }
}

template <class E, class Fetch>
INLINE Partial moments_of(const E* x, int64_t count, Compute<E> origin, Fetch fetch) {
  const int64_t chunked = in_columns<E>(count);
  double mean, m2;
  bool good = chunked > 0;
  if (good) {
    moments_about(x, count, origin, chunked, fetch, mean, m2);
    good = in_range(m2, mean - double(origin), double(count));
    if (good) moments_about_mean(x, count, origin, chunked, mean, m2);
  }
  if (!good) {
    // In double throughout, about an element of the block: a constant block has its mean to the
    // last bit and m2 = 0.
    moments_again(x, count, get(x[0]), 0, mean, m2);
    moments_about_mean(x, count, get(x[0]), 0, mean, m2);
  }
  return {double(count), mean, m2};
}

// A mean is more precise than T: it is `high`, as T, and the rest. The kernels subtract `high` from
// x, which for nearby numbers is exact, and what the rest adds is known beforehand.
template <class T>
struct Split {
  T high;
  double rest;
  // A mean that T has no number for leaves no rest, which would be NaN.
  explicit INLINE Split(double mean)
      : high(T(mean)), rest(__builtin_isfinite(T(mean)) ? mean - double(T(mean)) : 0) {}
  // The shift in (x - high) * scale + shift, from that in (x - mean) * scale + shift. An infinite
  // scale leaves it, since 0 * infinity would make every result NaN.
  INLINE T shift_about_high(double scale, double shift) const {
    return T(__builtin_isfinite(T(scale)) ? shift - rest * scale : shift);
  }
};

// y = (x - mean) * scale + shift
template <class E, class Fetch>
INLINE void apply_to(const E* x, E* y, int64_t count, double mean, double scale, double shift,
                     Fetch fetch) {
  using T = Compute<E>;
  const Split<T> centre(mean);
  const T s = T(scale), t = centre.shift_about_high(scale, shift);
  int64_t i = 0;
  for (; i + 2 * kWidth<T> <= count; i += 2 * kWidth<T>) {
    const Places at = neighbours<T>(i);
    fetch_next(fetch, x, at);
    store_two(y, at, (load_two<kInterleaved<E>>(x, at) - centre.high) * s + t);
  }
  for (; i < count; i += kWidth<T>) {
    store_some(y + i, count - i, (load_some(x + i, count - i) - centre.high) * s + t);
  }
}

// Memory that may be absent, from element i on.
template <class E>
INLINE E* moved(E* memory, int64_t i) {
  return memory == nullptr ? nullptr : memory + i;
}

// z = (x - mean) * scale + shift + residual, in the compute type; residual may be null.
template <class E>
INLINE void affine(const E* x, const E* residual, Compute<E>* z, int64_t count, double mean,
                   double scale, double shift) {
  using T = Compute<E>;
  const Split<T> centre(mean);
  const T s = T(scale), t = centre.shift_about_high(scale, shift);
  for (int64_t i = 0; i < count; i += kWidth<T>) {
    const int64_t n = count - i;
    Vec<T> value = (load_some(x + i, n) - centre.high) * s + t;
    if (residual != nullptr) value += load_some(residual + i, n);
    store_some(z + i, n, value);
  }
}

// y = activation((x - mean) * scale + shift + residual)
template <class E>
void apply_tail_to(const E* x, E* y, int64_t count, double mean, double scale, double shift,
                   const Tail& tail, const E* residual) {
  Compute<E> z[kChunk];
  for (int64_t at = 0; at < count; at += kChunk) {
    const int64_t n = count - at < kChunk ? count - at : kChunk;
    affine(x + at, moved(residual, at), z, n, mean, scale, shift);
    activate(tail, z, y + at, n);
  }
}

// Where the gradient of a block comes from, a chunk at a time: from memory, ...
template <class E>
struct Given {
  static constexpr bool kPairs = kInterleaved<E>;  // how Two are loaded
  const E* g;
  INLINE void prepare(int64_t, int64_t) const {}
  INLINE const E* at(int64_t i) const { return g + i; }
};
// ... or from there through a tail.
template <class E>
struct Through {
  static constexpr bool kPairs = false;
  const Tail& tail;
  const E *g, *x, *residual;
  E* copy;  // of this gradient, or null
  double mean, scale, shift;
  int64_t begin;
  Compute<E> chunk[kChunk];

  INLINE Through(const Tail& tail_, const E* g_, const E* x_, const E* residual_, E* copy_,
                 double mean_, double scale_, double shift_)
      : tail(tail_),
        g(g_),
        x(x_),
        residual(residual_),
        copy(copy_),
        mean(mean_),
        scale(scale_),
        shift(shift_) {}
  INLINE void prepare(int64_t i, int64_t count) {
    begin = i;
    affine(x + i, moved(residual, i), chunk, count, mean, scale, shift);
    activation_gradient(tail, chunk, g + i, moved(copy, i), count);
  }
  INLINE const Compute<E>* at(int64_t i) const { return chunk + (i - begin); }
};

struct GradientSums {
  double plain, weighted;
};

// sum(g) and sum(g * (x - mean))
template <class Gradient, class E, class Fetch>
INLINE GradientSums gradient_sums_about(Gradient& g, const E* x, int64_t count, double mean,
                                        int64_t chunked, Fetch fetch) {
  using T = Compute<E>;
  const Split<T> centre(mean);
  Lanes plain, weighted;
  add_block<T, Gradient::kPairs>(
      plain, weighted, count, chunked, [&](int64_t i, int64_t n) { g.prepare(i, n); },
      [&](Places at, Two<T>& one, Two<T>& other) {
        fetch_for_writing<E>(fetch, at);
        one = load_two<Gradient::kPairs>(g.at(0), at);
        other = one * (load_two<Gradient::kPairs>(x, at) - centre.high);
      },
      [&](int64_t i, Doubles& one, Doubles& other) {
        fetch.for_writing(i);
        one = load_doubles(g.at(i));
        other = one * (load_doubles(x + i) - double(centre.high));
      },
      [&](int64_t i, double& one, double& other) {
        one = double(get(*g.at(i)));
        other = one * (double(get(x[i])) - double(centre.high));
      });
  const double sum = plain.total();
  return {sum, weighted.total() - centre.rest * sum};
}

template <class Gradient, class E, class Fetch>
INLINE GradientSums gradient_sums_of(Gradient& g, const E* x, int64_t count, double mean,
                                     Fetch fetch) {
  const int64_t chunked = in_columns<E>(count);
  const GradientSums fast = gradient_sums_about(g, x, count, mean, chunked, fetch);
  if (chunked == 0 || __builtin_isfinite(fast.plain + fast.weighted)) return fast;
  // An overflow in float, or an operand that is not finite: only the second stays in double. A sum
  // that is finite keeps its bits, since sum(g) does not depend on x.
  const GradientSums exact = gradient_sums_about(g, x, count, mean, 0, fetch);
  return {__builtin_isfinite(fast.plain) ? fast.plain : exact.plain,
          __builtin_isfinite(fast.weighted) ? fast.weighted : exact.weighted};
}

// dx = a * g + b * (x - mean) + c. With b = 0 the result does not depend on x, even where x or the
// mean is not finite: evaluation with running statistics has no gradient through the moments.
template <class Gradient, class E, class Fetch>
INLINE void apply_gradient_to(Gradient& g, const E* x, E* dx, int64_t count, double mean, double a,
                              double b, double c, Fetch fetch) {
  using T = Compute<E>;
  const Split<T> centre(mean);
  const bool uses_x = b != 0;
  const T ta = T(a), tb = T(b), tc = centre.shift_about_high(b, c);
  for (int64_t chunk = 0; chunk < count; chunk += kChunk) {
    const int64_t end = chunk + kChunk < count ? chunk + kChunk : count;
    g.prepare(chunk, end - chunk);
    int64_t i = chunk;
    for (; i + 2 * kWidth<T> <= end; i += 2 * kWidth<T>) {
      const Places at = neighbours<T>(i);
      fetch_next(fetch, g.at(0), at);
      fetch_next(fetch, x, at);
      Two<T> of_x = {all(tc), all(tc)};
      if (uses_x) of_x = (load_two<Gradient::kPairs>(x, at) - centre.high) * tb + tc;
      const Two<T> result = load_two<Gradient::kPairs>(g.at(0), at) * ta + of_x;
      if constexpr (Gradient::kPairs == kInterleaved<E>) {
        store_two(dx, at, result);
      } else {
        store(dx + at.first, result.first);
        store(dx + at.second, result.second);
      }
    }
    for (; i < end; i += kWidth<T>) {
      const int64_t n = end - i;
      Vec<T> of_x = all(tc);
      if (uses_x) of_x = (load_some(x + i, n) - centre.high) * tb + tc;
      store_some(dx + i, n, load_some(g.at(i), n) * ta + of_x);
    }
  }
}

}  // namespace MOMENTNORM_NAMESPACE
