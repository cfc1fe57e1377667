// The arithmetic on one block: at most kBlock neighbouring elements of one plane.
#pragma once

#include "vec.h"

namespace MOMENTNORM_NAMESPACE {

// Partial results are per block, and blocks are folded in order, so where the blocks begin is part
// of the result's bits. 8192 floats are 32 KB: a block's second reading comes from the L1 cache.
constexpr int64_t kBlock = 8192;

// Calls body(pointer, ...) for kLanes elements at a time. The last, shorter group is padded.
// Padding with the block's first element adds exact zeros to sums of (x - first element).
template <class T>
INLINE void padded(T (&group)[kLanes], const T* source, int64_t count, T padding) {
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

// Sums are shifted by the block's first element. The distance of one element from the mean is at
// most sqrt(count) standard deviations, so whatever the data, m2 loses at most a factor `count`
// (13 of 53 bits) to cancellation. A constant block has the mean to the last bit, and m2 = 0.
template <class T>
INLINE Partial moments_of(const T* x, int64_t count) {
  const double first = x[0];
  Lanes sum, squares;
  auto add = [&](const T* group) {
    for (int r = 0; r < kRegisters; ++r) {
      const Doubles shifted = load_doubles(group + r * kDoubles) - first;
      sum.registers[r] += shifted;
      squares.registers[r] += shifted * shifted;
    }
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) add(x + i);
  if (i < count) {
    T group[kLanes];
    padded(group, x + i, count - i, x[0]);
    add(group);
  }
  const double offset = sum.total() / double(count);
  const double m2 = squares.total() - offset * offset * double(count);
  return {double(count), first + offset, m2 < 0 ? 0 : m2};
}

// x - mean, for a mean that is more precise than T: in two parts, so that the difference of nearby
// numbers has no error beyond its own rounding.
template <class T>
struct Centre {
  T high, low;
  explicit INLINE Centre(double mean) : high(T(mean)), low(T(mean - double(T(mean)))) {}
  template <class V>
  INLINE V operator()(V x) const {
    return (x - high) - low;
  }
};

// y = (x - mean) * scale + shift
template <class T>
INLINE void apply_to(const T* x, T* y, int64_t count, double mean, double scale, double shift) {
  const Centre<T> centred(mean);
  const T s = T(scale), t = T(shift);
  int64_t i = 0;
  for (; i + kWidth<T> <= count; i += kWidth<T>) {
    store(y + i, centred(load<Vec<T>>(x + i)) * s + t);
  }
  for (; i < count; ++i) y[i] = centred(x[i]) * s + t;
}

struct GradientSums {
  double plain, weighted;
};

// sum(g) and sum(g * (x - mean))
template <class T>
INLINE GradientSums gradient_sums_of(const T* g, const T* x, int64_t count, double mean) {
  Lanes plain, weighted;
  auto add = [&](const T* g_group, const T* x_group) {
    for (int r = 0; r < kRegisters; ++r) {
      const Doubles gradient = load_doubles(g_group + r * kDoubles);
      plain.registers[r] += gradient;
      weighted.registers[r] += gradient * (load_doubles(x_group + r * kDoubles) - mean);
    }
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) add(g + i, x + i);
  if (i < count) {
    T g_group[kLanes], x_group[kLanes];
    padded(g_group, g + i, count - i, T(0));
    padded(x_group, x + i, count - i, T(mean));
    add(g_group, x_group);
  }
  return {plain.total(), weighted.total()};
}

// dx = a * g + b * (x - mean) + c
template <class T>
INLINE void apply_gradient_to(const T* g, const T* x, T* dx, int64_t count, double mean, double a,
                              double b, double c) {
  const Centre<T> centred(mean);
  const T ta = T(a), tb = T(b), tc = T(c);
  int64_t i = 0;
  for (; i + kWidth<T> <= count; i += kWidth<T>) {
    store(dx + i, load<Vec<T>>(g + i) * ta + (centred(load<Vec<T>>(x + i)) * tb + tc));
  }
  for (; i < count; ++i) dx[i] = g[i] * ta + (centred(x[i]) * tb + tc);
}

}  // namespace MOMENTNORM_NAMESPACE
