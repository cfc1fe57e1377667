// Small planes: arithmetic on registers that hold elements of several channels.
//
// A plane of a few elements is smaller than a register, and adding up the lanes of its sums takes
// longer than forming them. So a sample is one row of channels x size places, and the numbers of a
// plane are repeated for each of its places. small_groups.h has pools of one sample, which are
// summed along the row. small_batches.h has pools of one channel, which are summed down the
// samples.
#pragma once

#include "coefficients.h"
#include "visit.h"

namespace MOMENTNORM_NAMESPACE {

// Planes with fewer elements are small.
constexpr int64_t kSmallPlane = 128;
// Number of samples that are added in the compute type, before their sum is added in double.
constexpr int64_t kRowsInT = 16;

// Sets `count` elements. Up to one register behind them is overwritten.
template <class T>
INLINE void fill(T* target, int64_t count, T value) {
  for (int64_t i = 0; i < count; i += kWidth<T>) store(target + i, all(value));
}

// Weight and bias, repeated for each place.
template <class T>
struct PlaceMaps {
  Array<T> weight, bias;
  INLINE PlaceMaps(const Grid& grid, const void* weights, const void* biases)
      : weight(grid.channels * grid.size + kWidth<T>), bias(grid.channels * grid.size + kWidth<T>) {
    if (!good()) return;
    spread(grid, weights, 1, weight.data);
    spread(grid, biases, 0, bias.data);
  }
  INLINE bool good() const { return weight.data != nullptr && bias.data != nullptr; }
  static INLINE void spread(const Grid& grid, const void* values, double otherwise, T* target) {
    for (int64_t channel = 0; channel < grid.channels; ++channel) {
      const T value = T(parameter(grid, values, channel, otherwise));
      if (grid.size == 1) {
        target[channel] = value;
      } else {
        fill(target + channel * grid.size, grid.size, value);
      }
    }
  }
};

// Operands of a call, starting at one element of the feature maps and at its place in the row.
template <class E>
struct Operands {
  const Tail& tail;
  bool gradient_is_direct;         // pre_activation_gradient is the gradient of y
  const E *g, *x, *residual;       // gradient of y; residual may be null
  E* y;                            // output: y, or dx in a backward
  E* residual_gradient;            // output, or null
  const Compute<E>*weight, *bias;  // of each place
  INLINE Operands from(int64_t element, int64_t place) const {
    return {tail,
            gradient_is_direct,
            moved(g, element),
            x + element,
            moved(residual, element),
            moved(y, element),
            moved(residual_gradient, element),
            weight + place,
            bias + place};
  }
};

// Numbers of a pool, equal for all its places: the mean as T and its rest, the inverse standard
// deviation, and the coefficients b and c of a backward.
template <class T>
struct PoolNumbers {
  T high, rest, rstd, b, c;
  explicit INLINE PoolNumbers(double mean, double rstd_, double b_ = 0, double c_ = 0)
      : PoolNumbers(Split<T>(mean), rstd_, b_, c_) {}
  explicit INLINE PoolNumbers(const Split<T>& mean, double rstd_, double b_, double c_)
      : high(mean.high), rest(T(mean.rest())), rstd(T(rstd_)), b(T(b_)), c(T(c_)) {}
};
// Numbers for the register of places from i on, where all places belong to one pool.
template <class T>
struct OnePool {
  PoolNumbers<T> shared;
  INLINE Vec<T> high(int64_t) const { return all(shared.high); }
  INLINE Vec<T> rest(int64_t) const { return all(shared.rest); }
  INLINE Vec<T> rstd(int64_t) const { return all(shared.rstd); }
  INLINE Vec<T> b(int64_t) const { return all(shared.b); }
  INLINE Vec<T> c(int64_t) const { return all(shared.c); }
};
// Numbers for the register of places from i on, where the places belong to several pools.
template <class T>
struct SeveralPools {
  alignas(kBytes) T values[5][kChunk + kWidth<T>];
  INLINE void set(int64_t i, int64_t count, const PoolNumbers<T>& shared) {
    const T numbers[5] = {shared.high, shared.rest, shared.rstd, shared.b, shared.c};
    for (int k = 0; k < 5; ++k) fill(values[k] + i, count, numbers[k]);
  }
  INLINE Vec<T> high(int64_t i) const { return load(values[0] + i); }
  INLINE Vec<T> rest(int64_t i) const { return load(values[1] + i); }
  INLINE Vec<T> rstd(int64_t i) const { return load(values[2] + i); }
  INLINE Vec<T> b(int64_t i) const { return load(values[3] + i); }
  INLINE Vec<T> c(int64_t i) const { return load(values[4] + i); }
};

// Computes pre_activation = (x - mean) * rstd * weight + bias + residual at the places from `begin`
// to `end`. residual may be null. result(i, n, pre_activation) receives the register of the places
// from i on, of which the first n exist.
template <class E, class Numbers, class Result>
INLINE void affine_places(const Operands<E>& at, const E* residual, int64_t begin, int64_t end,
                          const Numbers& numbers, Result result) {
  using T = Compute<E>;
  for (int64_t i = begin; i < end; i += kWidth<T>) {
    const int64_t n = end - i;
    const Vec<T> centred = (load_some(at.x + i, n) - numbers.high(i)) - numbers.rest(i);
    Vec<T> pre_activation = centred * (numbers.rstd(i) * load(at.weight + i)) + load(at.bias + i);
    if (residual != nullptr) pre_activation += load_some(residual + i, n);
    result(i, n, pre_activation);
  }
}

// Computes y at the places from `begin` to `end` of a chunk. `chunk` is scratch memory.
template <class E, class Numbers>
INLINE void map_places(const Operands<E>& at, int64_t begin, int64_t end, const Numbers& numbers,
                       Compute<E>* chunk) {
  using T = Compute<E>;
  if (plain(at.tail)) {
    affine_places(at, static_cast<const E*>(nullptr), begin, end, numbers,
                  [&](int64_t i, int64_t n, Vec<T> pre_activation) {
                    store_some(at.y + i, n, pre_activation);
                  });
    return;
  }
  affine_places(at, at.residual, begin, end, numbers,
                [&](int64_t i, int64_t n, Vec<T> pre_activation) {
                  store_some(chunk + i, n, pre_activation);
                });
  activate(at.tail, chunk + begin, at.y + begin, end - begin);
}

// Stores pre_activation_gradient of the places from `begin` to `end` in `chunk`, in the compute
// type.
template <class E, class Numbers>
INLINE void gradient_of_places(const Operands<E>& at, int64_t begin, int64_t end,
                               const Numbers& numbers, Compute<E>* chunk) {
  using T = Compute<E>;
  if (at.gradient_is_direct) {
    for (int64_t i = begin; i < end; i += kWidth<T>) {
      store_some(chunk + i, end - i, load_some(at.g + i, end - i));
    }
    return;
  }
  affine_places(at, at.residual, begin, end, numbers,
                [=](int64_t i, int64_t n, Vec<T> pre_activation) {
                  store_some(chunk + i, n, pre_activation);
                });
  activation_gradient(at.tail, chunk + begin, at.g + begin, moved(at.residual_gradient, begin),
                      end - begin);
}

// Two sums over the samples, for each place of a chunk.
template <class T>
struct PlaceSums {
  alignas(kBytes) T rows[2][kChunk + kWidth<T>];
  alignas(kBytes) double totals[2][kChunk];
  INLINE void add(int64_t i, Vec<T> one, Vec<T> other) {
    store(rows[0] + i, load(rows[0] + i) + one);
    store(rows[1] + i, load(rows[1] + i) + other);
  }
};

// Adds the samples from `begin` to `end`. row(sample) adds one sample to the sums.
template <class T, class Row>
INLINE void add_samples(PlaceSums<T>& sums, int64_t begin, int64_t end, int64_t count, Row row) {
  for (double (&total)[kChunk] : sums.totals) memset(total, 0, size_t(count) * sizeof(double));
  for (int64_t first = begin; first < end; first += kRowsInT) {
    const int64_t last = first + kRowsInT < end ? first + kRowsInT : end;
    for (T(&added)[kChunk + kWidth<T>] : sums.rows) {
      memset(added, 0, size_t(count + kWidth<T>) * sizeof(T));
    }
    for (int64_t sample = first; sample < last; ++sample) row(sample);
    for (int k = 0; k < 2; ++k) {
      for (int64_t i = 0; i < count; ++i) sums.totals[k][i] += double(sums.rows[k][i]);
    }
  }
}

// Processes the places from `begin` to `end`, where `chunk` holds pre_activation_gradient g. With
// kAdd it adds g * (x - mean) * rstd and g to the sums. With kMap it stores dx = weight * rstd * g
// + b * (x - mean) + c.
template <bool kAdd, bool kMap, class E, class Numbers>
INLINE void backward_places(const Operands<E>& at, int64_t begin, int64_t end,
                            const Numbers& numbers, const Compute<E>* chunk,
                            PlaceSums<Compute<E>>& sums) {
  using T = Compute<E>;
  for (int64_t i = begin; i < end; i += kWidth<T>) {
    const int64_t n = end - i;
    const Vec<T> g = load_some(chunk + i, n), rstd = numbers.rstd(i);
    const Vec<T> centred = (load_some(at.x + i, n) - numbers.high(i)) - numbers.rest(i);
    if constexpr (kMap) {
      store_some(at.y + i, n,
                 g * (rstd * load(at.weight + i)) + (centred * numbers.b(i) + numbers.c(i)));
    }
    // Lanes behind `end` are places of the next run. They have to add 0, also where the mean or
    // rstd of this run is not finite and their product is NaN.
    if constexpr (kAdd) sums.add(i, first_lanes<T>(g * (centred * rstd), n), g);
  }
}

// Sums over the places of a channel. Four partial sums are faster than one, in which each addition
// waits for the previous one.
struct ChannelSums {
  double first, second;
};
template <class T>
INLINE ChannelSums over_places(const PlaceSums<T>& sums, int64_t begin, int64_t size) {
  double parts[2][4] = {};
  for (int k = 0; k < 2; ++k) {
    const double* const places = sums.totals[k] + begin;
    int64_t i = 0;
    for (; i + 4 <= size; i += 4) {
      for (int part = 0; part < 4; ++part) parts[k][part] += places[i + part];
    }
    for (; i < size; ++i) parts[k][0] += places[i];
  }
  return {(parts[0][0] + parts[0][1]) + (parts[0][2] + parts[0][3]),
          (parts[1][0] + parts[1][1]) + (parts[1][2] + parts[1][3])};
}

// Returns the elements of a chunk in the compute type: x itself, or a converted copy in `values`.
template <class E>
INLINE const Compute<E>* computed(const E* x, int64_t count, Compute<E>* values) {
  using T = Compute<E>;
  if constexpr (sizeof(E) == sizeof(T)) {
    return x;
  } else {
    for (int64_t i = 0; i < count; i += kWidth<T>) {
      store_some(values + i, count - i, load_some(x + i, count - i));
    }
    return values;
  }
}

}  // namespace MOMENTNORM_NAMESPACE
