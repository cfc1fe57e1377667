// The arithmetic on one block: at most kBlock neighbouring elements of one plane.
#pragma once

#include "vec.h"

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

// Two sums over a chunk, in T. terms(i, one, other) gives the Vec<T> terms of elements i, i + 1,
// ...
template <class T, class Terms>
INLINE void add_chunk(Lanes& first, Lanes& second, Terms terms) {
  // As many groups at once as leave registers free: two sums of each.
  constexpr int kFit = 4 / Group<T>::kVecs, kTogether = kFit < 1 ? 1 : kFit;
  Group<T> sums[2][kGroups];
  for (int begin = 0; begin < kGroups; begin += kTogether) {
    Group<T> one[kTogether], other[kTogether];
    for (int step = 0; step < kSteps; ++step) {
      for (int group = 0; group < kTogether; ++group) {
        for (int v = 0; v < Group<T>::kVecs; ++v) {
          Vec<T> a, b;
          terms(step * kColumns + (begin + group) * kLanes + v * kWidth<T>, a, b);
          one[group].vecs[v] += a;
          other[group].vecs[v] += b;
        }
      }
    }
    for (int group = 0; group < kTogether; ++group) {
      sums[0][begin + group] = one[group];
      sums[1][begin + group] = other[group];
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
  int64_t plane;  // elements
  INLINE void for_writing(int64_t i) const { __builtin_prefetch(result + i, 1, 3); }
  INLINE void next(const E* operand) const { __builtin_prefetch(operand + plane, 0, 3); }
  INLINE FetchBoth from(int64_t i) const { return {result + i, plane}; }
};

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
// in double, by lanes. fast(i, one, other) gives vectors of terms, exact(i, one, other) doubles,
// and single(i, one, other) one element's.
template <class T, class Fast, class Exact, class Single>
INLINE void add_block(Lanes& first, Lanes& second, int64_t count, int64_t chunked, Fast fast,
                      Exact exact, Single single) {
  for (int64_t at = 0; at < chunked; at += kChunk) {
    add_chunk<T>(first, second,
                 [&](int64_t i, Vec<T>& one, Vec<T>& other) { fast(at + i, one, other); });
  }
  int64_t at = chunked;
  for (; at + kLanes <= count; at += kLanes) {
    add_lanes(first, second,
              [&](int64_t i, Doubles& one, Doubles& other) { exact(at + i, one, other); });
  }
  if (at < count) {
    double terms[2][kLanes] = {};
    for (int64_t i = at; i < count; ++i) single(i, terms[0][i - at], terms[1][i - at]);
    add_lanes(first, second, [&](int64_t i, Doubles& one, Doubles& other) {
      one = load_as_is<Doubles>(terms[0] + i);
      other = load_as_is<Doubles>(terms[1] + i);
    });
  }
}

// The moments of a block from sums of x - origin.
//
// Whatever the data, the mean of m of the block's n elements lies within sqrt(n / m) standard
// deviations of the block's mean. So an origin of that kind costs m2 at most a factor 1 + n / m by
// cancellation.
template <class E, class Fetch>
INLINE Partial moments_about(const E* x, int64_t count, Compute<E> origin, int64_t chunked,
                             Fetch fetch) {
  using T = Compute<E>;
  Lanes sum, squares;
  add_block<T>(
      sum, squares, count, chunked,
      [&](int64_t i, Vec<T>& one, Vec<T>& other) {
        fetch.for_writing(i);
        one = load(x + i) - origin;
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
  const double m2 = squares.total() - offset * offset * double(count);
  return {double(count), double(origin) + offset, m2 < 0 ? 0 : m2};
}

// Whether sums of squares in float neither overflowed nor underflowed. A constant is exact anyway.
INLINE bool in_range(double sum_of_squares, double sum, double count) {
  const double var = sum_of_squares / count;
  return (var > 1e-24 && var < 1e24) || (sum_of_squares == 0 && sum == 0);
}

template <class E, class Fetch>
INLINE Partial moments_of(const E* x, int64_t count, Fetch fetch) {
  const int64_t chunked = sizeof(E) < sizeof(double) ? count - count % kChunk : 0;
  if (chunked > 0) {
    Lanes sum, unused;
    add_chunk<Compute<E>>(sum, unused,
                          [&](int64_t i, Vec<Compute<E>>& one, Vec<Compute<E>>& other) {
                            one = load(x + i);
                            other = one - one;
                          });
    const Compute<E> origin = Compute<E>(sum.total() / kChunk);
    const Partial fast = moments_about(x, count, origin, chunked, fetch);
    if (in_range(fast.m2, fast.mean - double(origin), fast.count)) return fast;
  }
  // In double throughout, about an element of the block: a constant block has its mean to the last
  // bit and m2 = 0.
  return moments_about(x, count, get(x[0]), 0, fetch);
}

// A mean is more precise than T: it is `high`, as T, and the rest. The kernels subtract `high` from
// x, which for nearby numbers is exact, and what the rest adds is known beforehand.
template <class T>
struct Split {
  T high;
  double rest;
  explicit INLINE Split(double mean) : high(T(mean)), rest(mean - double(T(mean))) {}
};

// y = (x - mean) * scale + shift
template <class E, class Fetch>
INLINE void apply_to(const E* x, E* y, int64_t count, double mean, double scale, double shift,
                     Fetch fetch) {
  using T = Compute<E>;
  const Split<T> centre(mean);
  const T s = T(scale), t = T(shift - centre.rest * scale);
  int64_t i = 0;
  for (; i + kWidth<T> <= count; i += kWidth<T>) {
    fetch.next(x + i);
    store(y + i, (load(x + i) - centre.high) * s + t);
  }
  for (; i < count; ++i) y[i] = put<E>((get(x[i]) - centre.high) * s + t);
}

struct GradientSums {
  double plain, weighted;
};

// sum(g) and sum(g * (x - mean))
template <class E, class Fetch>
INLINE GradientSums gradient_sums_about(const E* g, const E* x, int64_t count, double mean,
                                        int64_t chunked, Fetch fetch) {
  using T = Compute<E>;
  const Split<T> centre(mean);
  Lanes plain, weighted;
  add_block<T>(
      plain, weighted, count, chunked,
      [&](int64_t i, Vec<T>& one, Vec<T>& other) {
        fetch.for_writing(i);
        one = load(g + i);
        other = one * (load(x + i) - centre.high);
      },
      [&](int64_t i, Doubles& one, Doubles& other) {
        fetch.for_writing(i);
        one = load_doubles(g + i);
        other = one * (load_doubles(x + i) - double(centre.high));
      },
      [&](int64_t i, double& one, double& other) {
        one = double(get(g[i]));
        other = one * (double(get(x[i])) - double(centre.high));
      });
  const double sum = plain.total();
  return {sum, weighted.total() - centre.rest * sum};
}

template <class E, class Fetch>
INLINE GradientSums gradient_sums_of(const E* g, const E* x, int64_t count, double mean,
                                     Fetch fetch) {
  const int64_t chunked = sizeof(E) < sizeof(double) ? count - count % kChunk : 0;
  const GradientSums fast = gradient_sums_about(g, x, count, mean, chunked, fetch);
  // An overflow in float, or a number that is none: only the second stays in double.
  if (chunked == 0 || __builtin_isfinite(fast.plain + fast.weighted)) return fast;
  return gradient_sums_about(g, x, count, mean, 0, fetch);
}

// dx = a * g + b * (x - mean) + c
template <class E, class Fetch>
INLINE void apply_gradient_to(const E* g, const E* x, E* dx, int64_t count, double mean, double a,
                              double b, double c, Fetch fetch) {
  using T = Compute<E>;
  const Split<T> centre(mean);
  const T ta = T(a), tb = T(b), tc = T(c - centre.rest * b);
  int64_t i = 0;
  for (; i + kWidth<T> <= count; i += kWidth<T>) {
    fetch.next(g + i);
    fetch.next(x + i);
    store(dx + i, load(g + i) * ta + ((load(x + i) - centre.high) * tb + tc));
  }
  for (; i < count; ++i) dx[i] = put<E>(get(g[i]) * ta + ((get(x[i]) - centre.high) * tb + tc));
}

}  // namespace MOMENTNORM_NAMESPACE
