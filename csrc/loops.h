// The arithmetic on one block: at most kBlock neighbouring elements of one plane.
#pragma once

#include "vec.h"

namespace MOMENTNORM_NAMESPACE {

// Partial results are per block, and blocks are folded in order, so where the blocks begin is part
// of the result's bits.
constexpr int64_t kBlock = 8192;

// Element i of a chunk belongs to column i mod kColumns. A column sums its kSteps elements in float,
// which is as fast as the memory; then the columns go to the double lanes, through one addition
// tree. So few roundings in float leave a sum's relative error below 1e-6 at worst, and near 1e-8 on
// ordinary data.
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

// Two sums over a chunk, in T. terms(i, one, other) gives the Vec<T> terms of elements i, i + 1, ...
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
template <class T>
struct FetchAhead {
  T* result;
  int64_t plane;  // elements
  INLINE void for_writing(int64_t i) const { __builtin_prefetch(result + i, 1, 2); }
  INLINE void next(const T* operand) const { __builtin_prefetch(operand + plane, 0, 2); }
  INLINE FetchAhead from(int64_t i) const { return {result + i, plane}; }
};
struct NoFetch {
  INLINE void for_writing(int64_t) const {}
  INLINE void next(const void*) const {}
  INLINE NoFetch from(int64_t) const { return {}; }
};

// The last elements, as a whole group of kLanes.
template <class T>
INLINE void pad(T (&group)[kLanes], const T* source, int64_t count, T padding) {
  for (int k = 0; k < kLanes; ++k) group[k] = k < count ? source[k] : padding;
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

// The moments of a block from sums of x - origin, where the first `chunked` elements are summed in T
// and the others in double.
//
// Whatever the data, the mean of m of the block's n elements lies within sqrt(n / m) standard
// deviations of the block's mean. So an origin of that kind costs m2 at most a factor 1 + n / m by
// cancellation.
template <class T, class Fetch>
INLINE Partial moments_about(const T* x, int64_t count, T origin, int64_t chunked, Fetch fetch) {
  Lanes sum, squares;
  for (int64_t at = 0; at < chunked; at += kChunk) {
    add_chunk<T>(sum, squares, [&](int64_t i, Vec<T>& one, Vec<T>& other) {
      fetch.for_writing(at + i);
      one = load<Vec<T>>(x + at + i) - origin;
      other = one * one;
    });
  }
  auto add = [&](const T* group) {
    for (int r = 0; r < kRegisters; ++r) {
      const Doubles shifted = load_doubles(group + r * kDoubles) - double(origin);
      sum.registers[r] += shifted;
      squares.registers[r] += shifted * shifted;
    }
  };
  int64_t i = chunked;
  for (; i + kLanes <= count; i += kLanes) {
    fetch.for_writing(i);
    add(x + i);
  }
  if (i < count) {
    T group[kLanes];
    pad(group, x + i, count - i, origin);  // adds exact zeros
    add(group);
  }
  const double offset = sum.total() / double(count);
  const double m2 = squares.total() - offset * offset * double(count);
  return {double(count), double(origin) + offset, m2 < 0 ? 0 : m2};
}

// In double throughout: a constant block has its mean to the last bit and m2 = 0, and no float
// overflows or underflows.
template <class T, class Fetch>
INLINE Partial moments_of(const T* x, int64_t count, Fetch fetch) {
  return moments_about(x, count, x[0], 0, fetch);
}

template <class Fetch>
INLINE Partial moments_of(const float* x, int64_t count, Fetch fetch) {
  const int64_t chunked = count - count % kChunk;
  if (chunked > 0) {
    Lanes sum, unused;
    add_chunk<float>(sum, unused, [&](int64_t i, Vec<float>& one, Vec<float>& other) {
      one = load<Vec<float>>(x + i);
      other = one - one;
    });
    const float origin = float(sum.total() / kChunk);
    const Partial fast = moments_about(x, count, origin, chunked, fetch);
    const double var = fast.m2 / fast.count;
    if (var > 1e-24 && var < 1e24) return fast;
  }
  return moments_about(x, count, x[0], 0, fetch);
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
template <class T, class Fetch>
INLINE void apply_to(const T* x, T* y, int64_t count, double mean, double scale, double shift,
                     Fetch fetch) {
  const Split<T> centre(mean);
  const T s = T(scale), t = T(shift - centre.rest * scale);
  int64_t i = 0;
  for (; i + kWidth<T> <= count; i += kWidth<T>) {
    fetch.next(x + i);
    store(y + i, (load<Vec<T>>(x + i) - centre.high) * s + t);
  }
  for (; i < count; ++i) y[i] = (x[i] - centre.high) * s + t;
}

struct GradientSums {
  double plain, weighted;
};

// sum(g) and sum(g * (x - mean)), the first `chunked` elements in T and the others in double.
template <class T, class Fetch>
INLINE GradientSums gradient_sums_about(const T* g, const T* x, int64_t count, double mean,
                                        int64_t chunked, Fetch fetch) {
  const Split<T> centre(mean);
  Lanes plain, weighted;
  for (int64_t at = 0; at < chunked; at += kChunk) {
    add_chunk<T>(plain, weighted, [&](int64_t i, Vec<T>& one, Vec<T>& other) {
      fetch.for_writing(at + i);
      one = load<Vec<T>>(g + at + i);
      other = one * (load<Vec<T>>(x + at + i) - centre.high);
    });
  }
  auto add = [&](const T* g_group, const T* x_group) {
    for (int r = 0; r < kRegisters; ++r) {
      const Doubles gradient = load_doubles(g_group + r * kDoubles);
      plain.registers[r] += gradient;
      weighted.registers[r] +=
          gradient * (load_doubles(x_group + r * kDoubles) - double(centre.high));
    }
  };
  int64_t i = chunked;
  for (; i + kLanes <= count; i += kLanes) {
    fetch.for_writing(i);
    add(g + i, x + i);
  }
  if (i < count) {
    T g_group[kLanes], x_group[kLanes];
    pad(g_group, g + i, count - i, T(0));
    pad(x_group, x + i, count - i, centre.high);
    add(g_group, x_group);
  }
  const double sum = plain.total();
  return {sum, weighted.total() - centre.rest * sum};
}

template <class T, class Fetch>
INLINE GradientSums gradient_sums_of(const T* g, const T* x, int64_t count, double mean, Fetch fetch) {
  return gradient_sums_about(g, x, count, mean, 0, fetch);
}

template <class Fetch>
INLINE GradientSums gradient_sums_of(const float* g, const float* x, int64_t count, double mean,
                                     Fetch fetch) {
  const int64_t chunked = count - count % kChunk;
  const GradientSums fast = gradient_sums_about(g, x, count, mean, chunked, fetch);
  // An overflow in float, or a number that is none: only the second stays in double.
  if (__builtin_isfinite(fast.weighted)) return fast;
  return gradient_sums_about(g, x, count, mean, 0, fetch);
}

// dx = a * g + b * (x - mean) + c
template <class T, class Fetch>
INLINE void apply_gradient_to(const T* g, const T* x, T* dx, int64_t count, double mean, double a,
                              double b, double c, Fetch fetch) {
  const Split<T> centre(mean);
  const T ta = T(a), tb = T(b), tc = T(c - centre.rest * b);
  int64_t i = 0;
  for (; i + kWidth<T> <= count; i += kWidth<T>) {
    fetch.next(g + i);
    fetch.next(x + i);
    store(dx + i, load<Vec<T>>(g + i) * ta + ((load<Vec<T>>(x + i) - centre.high) * tb + tc));
  }
  for (; i < count; ++i) dx[i] = g[i] * ta + ((x[i] - centre.high) * tb + tc);
}

}  // namespace MOMENTNORM_NAMESPACE
