// Small planes: arithmetic on the places of a sample, several channels to a register.
//
// A plane of a few elements is less than a register, and its sums take longer to come to an end
// than to be formed. So a sample is taken as a row of places, its channels x size elements, and
// what belongs to a plane is spread over its places. small_groups.h has the pools of one sample,
// which add along the rows; small_batches.h those of one channel, which add down the samples.
#pragma once

#include "coefficients.h"
#include "visit.h"

namespace MOMENTNORM_NAMESPACE {

// Planes below this size are small.
constexpr int64_t kSmallPlane = 128;
// So many samples are added in the compute type before they are added in double.
constexpr int64_t kRowsInT = 16;

// Writes up to a register more than `count`.
template <class T>
INLINE void fill(T* target, int64_t count, T value) {
  for (int64_t i = 0; i < count; i += kWidth<T>) store(target + i, all(value));
}

// The weight and bias of each place.
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

// The operands of a call, from one element of the feature maps and its place on.
template <class E>
struct Operands {
  const Tail& tail;
  bool given;  // whether the gradient is simply the given one
  const E *g, *x, *residual;
  E *y, *copy;
  const Compute<E>*weight, *bias;
  INLINE Operands from(int64_t element, int64_t place) const {
    return {tail,
            given,
            moved(g, element),
            x + element,
            moved(residual, element),
            moved(y, element),
            moved(copy, element),
            weight + place,
            bias + place};
  }
};

// What the places of a pool share: its mean as T and a rest, and three more numbers.
template <class T>
struct Shared {
  T high, rest, rstd, b, c;
  explicit INLINE Shared(double mean, double rstd_, double b_ = 0, double c_ = 0)
      : Shared(Split<T>(mean), rstd_, b_, c_) {}
  explicit INLINE Shared(const Split<T>& mean, double rstd_, double b_, double c_)
      : high(mean.high), rest(T(mean.rest)), rstd(T(rstd_)), b(T(b_)), c(T(c_)) {}
};
// Of the register of places from i on: the same numbers for all, ...
template <class T>
struct OfOne {
  Shared<T> shared;
  INLINE Vec<T> high(int64_t) const { return all(shared.high); }
  INLINE Vec<T> rest(int64_t) const { return all(shared.rest); }
  INLINE Vec<T> rstd(int64_t) const { return all(shared.rstd); }
  INLINE Vec<T> b(int64_t) const { return all(shared.b); }
  INLINE Vec<T> c(int64_t) const { return all(shared.c); }
};
// ... or those of several pools, given in order.
template <class T>
struct OfSeveral {
  alignas(kBytes) T values[5][kChunk + kWidth<T>];
  INLINE void set(int64_t i, int64_t count, const Shared<T>& shared) {
    const T numbers[5] = {shared.high, shared.rest, shared.rstd, shared.b, shared.c};
    for (int k = 0; k < 5; ++k) fill(values[k] + i, count, numbers[k]);
  }
  INLINE Vec<T> high(int64_t i) const { return load(values[0] + i); }
  INLINE Vec<T> rest(int64_t i) const { return load(values[1] + i); }
  INLINE Vec<T> rstd(int64_t i) const { return load(values[2] + i); }
  INLINE Vec<T> b(int64_t i) const { return load(values[3] + i); }
  INLINE Vec<T> c(int64_t i) const { return load(values[4] + i); }
};

// z = (x - mean) * rstd * weight + bias + residual at some places; residual may be null. result(i,
// n, z) takes a register, of which n places count.
template <class E, class Numbers, class Result>
INLINE void affine_places(const Operands<E>& at, const E* residual, int64_t begin, int64_t end,
                          const Numbers& numbers, Result result) {
  using T = Compute<E>;
  for (int64_t i = begin; i < end; i += kWidth<T>) {
    const int64_t n = end - i;
    const Vec<T> centred = (load_some(at.x + i, n) - numbers.high(i)) - numbers.rest(i);
    Vec<T> z = centred * (numbers.rstd(i) * load(at.weight + i)) + load(at.bias + i);
    if (residual != nullptr) z += load_some(residual + i, n);
    result(i, n, z);
  }
}

// y at some places of a chunk; `chunk` is memory to work in.
template <class E, class Numbers>
INLINE void map_places(const Operands<E>& at, int64_t begin, int64_t end, const Numbers& numbers,
                       Compute<E>* chunk) {
  using T = Compute<E>;
  if (plain(at.tail)) {
    affine_places(at, static_cast<const E*>(nullptr), begin, end, numbers,
                  [&](int64_t i, int64_t n, Vec<T> z) { store_some(at.y + i, n, z); });
    return;
  }
  affine_places(at, at.residual, begin, end, numbers,
                [&](int64_t i, int64_t n, Vec<T> z) { store_some(chunk + i, n, z); });
  activate(at.tail, chunk + begin, at.y + begin, end - begin);
}

// The gradient of z at some places of a chunk, in the compute type, into `chunk`.
template <class E, class Numbers>
INLINE void gradient_of_places(const Operands<E>& at, int64_t begin, int64_t end,
                               const Numbers& numbers, Compute<E>* chunk) {
  using T = Compute<E>;
  if (at.given) {
    for (int64_t i = begin; i < end; i += kWidth<T>) {
      store_some(chunk + i, end - i, load_some(at.g + i, end - i));
    }
    return;
  }
  affine_places(at, at.residual, begin, end, numbers,
                [=](int64_t i, int64_t n, Vec<T> z) { store_some(chunk + i, n, z); });
  activation_gradient(at.tail, chunk + begin, at.g + begin, moved(at.copy, begin), end - begin);
}

// Two sums down the samples for each place of a chunk.
template <class T>
struct PlaceSums {
  alignas(kBytes) T rows[2][kChunk + kWidth<T>];
  alignas(kBytes) double totals[2][kChunk];
  INLINE void add(int64_t i, Vec<T> one, Vec<T> other) {
    store(rows[0] + i, load(rows[0] + i) + one);
    store(rows[1] + i, load(rows[1] + i) + other);
  }
};

// row(sample) adds a sample's places to the sums.
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

// Of the gradient in `chunk` at some places: the terms g * (x - mean) * rstd and g of the sums, and
// dx = weight * rstd * g + b * (x - mean) + c; either or both.
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
    // The lanes behind `end` are places of the next run. They add 0, even where a mean or rstd of
    // this run is not finite and makes their product NaN.
    if constexpr (kAdd) sums.add(i, first_lanes<T>(g * (centred * rstd), n), g);
  }
}

// The sums over the places of a channel: four at a time, since one addition waits for the one
// before.
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

// The elements of a chunk in the compute type: where they are, or in `values`.
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
