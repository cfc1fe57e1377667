// Maps over one block of a plane: y, the gradient sums and dx, from the moments.
#pragma once

#include "activations.h"
#include "plane_block.h"

namespace MOMENTNORM_NAMESPACE {

// A mean in double, split for kernels that compute in T: `high` is the mean as T, and rest() the
// difference. Kernels subtract `high` from x, which is exact for numbers close to each other, and
// add the effect of the rest to the shift.
template <class T>
struct Split {
  T high;
  double mean;
  explicit INLINE Split(double mean_) : high(T(mean_)), mean(mean_) {}
  // The rest is 0 where T has no finite number for the mean. The difference would be NaN there.
  INLINE double rest() const { return __builtin_isfinite(high) ? mean - double(high) : 0; }
  // The shift in (x - high) * scale + shift, from that in (x - mean) * scale + shift. A result that
  // is not finite is rare, so the mean and the scale are examined only then. An infinite scale
  // leaves the shift as it is, since 0 * infinity would make every result NaN.
  INLINE T shift_about_high(double scale, double shift) const {
    const T about_high = T(shift - (mean - double(high)) * scale);
    if (__builtin_expect(__builtin_isfinite(about_high), 1)) return about_high;
    return T(__builtin_isfinite(T(scale)) ? shift - rest() * scale : shift);
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
    store_pair(y, at, (load_pair<kInterleaved<E>>(x, at) - centre.high) * s + t);
  }
  for (; i < count; i += kWidth<T>) {
    store_some(y + i, count - i, (load_some(x + i, count - i) - centre.high) * s + t);
  }
}

// Pointer to element i of an operand that may be null.
template <class E>
INLINE E* moved(E* memory, int64_t i) {
  return memory == nullptr ? nullptr : memory + i;
}

// pre_activation = (x - mean) * scale + shift + residual, in the compute type. residual may be
// null.
template <class E>
INLINE void affine(const E* x, const E* residual, Compute<E>* pre_activation, int64_t count,
                   double mean, double scale, double shift) {
  using T = Compute<E>;
  const Split<T> centre(mean);
  const T s = T(scale), t = centre.shift_about_high(scale, shift);
  for (int64_t i = 0; i < count; i += kWidth<T>) {
    const int64_t n = count - i;
    Vec<T> value = (load_some(x + i, n) - centre.high) * s + t;
    if (residual != nullptr) value += load_some(residual + i, n);
    store_some(pre_activation + i, n, value);
  }
}

// y = activation((x - mean) * scale + shift + residual)
template <class E>
void apply_tail_to(const E* x, E* y, int64_t count, double mean, double scale, double shift,
                   const Tail& tail, const E* residual) {
  Compute<E> pre_activation[kChunk];
  for (int64_t at = 0; at < count; at += kChunk) {
    const int64_t n = count - at < kChunk ? count - at : kChunk;
    affine(x + at, moved(residual, at), pre_activation, n, mean, scale, shift);
    activate(tail, pre_activation, y + at, n);
  }
}

// Gradient in front of the affine map, for one block: the gradient of y itself. prepare(i, n) is
// called before at() of the n elements from i on.
template <class E>
struct DirectGradient {
  static constexpr bool kPairs = kInterleaved<E>;  // whether a VecPair is loaded interleaved
  const E* g;
  INLINE void prepare(int64_t, int64_t) const {}
  INLINE const E* at(int64_t i) const { return g + i; }
};
// Gradient in front of the affine map, for one block: pre_activation_gradient, computed one chunk
// at a time.
template <class E>
struct ActivationGradient {
  static constexpr bool kPairs = false;
  const Tail& tail;
  const E *g, *x, *residual;
  E* residual_gradient;  // output, or null
  double mean, scale, shift;
  int64_t begin;
  Compute<E> chunk[kChunk];

  INLINE ActivationGradient(const Tail& tail_, const E* g_, const E* x_, const E* residual_,
                            E* residual_gradient_, double mean_, double scale_, double shift_)
      : tail(tail_),
        g(g_),
        x(x_),
        residual(residual_),
        residual_gradient(residual_gradient_),
        mean(mean_),
        scale(scale_),
        shift(shift_) {}
  INLINE void prepare(int64_t i, int64_t count) {
    begin = i;
    affine(x + i, moved(residual, i), chunk, count, mean, scale, shift);
    activation_gradient(tail, chunk, g + i, moved(residual_gradient, i), count);
  }
  INLINE const Compute<E>* at(int64_t i) const { return chunk + (i - begin); }
};

struct GradientSums {
  double plain, weighted;
};

// Computes sum(g) and sum(g * (x - mean)) of a block.
template <class Gradient, class E, class Fetch>
INLINE GradientSums gradient_sums_about(Gradient& g, const E* x, int64_t count, double mean,
                                        int64_t chunked, Fetch fetch) {
  using T = Compute<E>;
  const Split<T> centre(mean);
  Lanes plain, weighted;
  add_block<T, Gradient::kPairs>(
      plain, weighted, count, chunked, [&](int64_t i, int64_t n) { g.prepare(i, n); },
      [&](Places at, VecPair<T>& one, VecPair<T>& other) {
        fetch_for_writing<E>(fetch, at);
        one = load_pair<Gradient::kPairs>(g.at(0), at);
        other = one * (load_pair<Gradient::kPairs>(x, at) - centre.high);
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
  return {sum, weighted.total() - centre.rest() * sum};
}

// gradient_sums_about() in the compute type, and again in double where the result is not finite.
template <class Gradient, class E, class Fetch>
INLINE GradientSums gradient_sums_of(Gradient& g, const E* x, int64_t count, double mean,
                                     Fetch fetch) {
  const int64_t chunked = in_columns<E>(count);
  const GradientSums fast = gradient_sums_about(g, x, count, mean, chunked, fetch);
  if (chunked == 0 || __builtin_isfinite(fast.plain + fast.weighted)) return fast;
  // An operand is not finite, or float overflowed. Sums in double overflow in the first case only.
  // A finite sum keeps its bits, so that sum(g) does not depend on x.
  const GradientSums exact = gradient_sums_about(g, x, count, mean, 0, fetch);
  return {__builtin_isfinite(fast.plain) ? fast.plain : exact.plain,
          __builtin_isfinite(fast.weighted) ? fast.weighted : exact.weighted};
}

// dx = a * g + b * (x - mean) + c. With b = 0 the result does not depend on x, even where x or the
// mean is not finite. Evaluation with running statistics needs this, since its moments are
// constants.
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
      VecPair<T> of_x = {all(tc), all(tc)};
      if (uses_x) of_x = (load_pair<Gradient::kPairs>(x, at) - centre.high) * tb + tc;
      const VecPair<T> result = load_pair<Gradient::kPairs>(g.at(0), at) * ta + of_x;
      if constexpr (Gradient::kPairs == kInterleaved<E>) {
        store_pair(dx, at, result);
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
