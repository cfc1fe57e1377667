// The activations that may follow the affine map, and their gradients.
//
// A pre_activation is formed for a few thousand elements at a time, in the compute type, in memory
// that stays in the first level cache. A second loop reads it there and applies the activation. So
// the loops that form a pre_activation are independent of the activation, and half types are
// rounded once, after it.
//
// In float, exp, tanh and erf are computed from the same additions and multiplications on every
// instruction set. In double they are the C library's functions, called for one element at a time.
#pragma once

#include "../kernel_table.h"
#include "vec.h"

namespace MOMENTNORM_NAMESPACE {

// Whether y is the affine map alone, without an activation or a residual.
INLINE bool plain(const Tail& tail) {
  return tail.activation == MOMENTNORM_IDENTITY && tail.residual == nullptr;
}

// Whether pre_activation_gradient has to be computed, because it differs from the gradient of y or
// has to be stored in residual_gradient.
INLINE bool goes_through_tail(const Tail& tail, const void* residual_gradient) {
  return !plain(tail) || residual_gradient != nullptr;
}

INLINE Vec<float> magnitude(Vec<float> x) {
  typedef Vector<uint32_t, kWidth<float>> Bits;
  return same_bits<Vec<float>>(Bits(same_bits<Bits>(x) & 0x7fffffff));
}

template <int count>
INLINE Vec<float> polynomial(Vec<float> x, const float (&coefficients)[count]) {
  Vec<float> sum = all(coefficients[count - 1]);
  for (int i = count - 2; i >= 0; --i) sum = sum * x + coefficients[i];
  return sum;
}

// exp(x) for x <= 0, with a relative error of at most 2e-7. A subnormal result becomes 0. This
// file's coefficients are from tools/fit_activations.py.
INLINE Vec<float> exp_negative(Vec<float> x) {
  typedef Vector<uint32_t, kWidth<float>> Bits;
  const Vec<float> bounded = x < -87.0f ? all(-87.0f) : x;
  const float round = 0x1.8p23f;  // adding it leaves an integer in the lowest bits
  const Vec<float> shifted = bounded * 1.44269504f + round;
  const Vec<float> n = shifted - round;
  const Vec<float> r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;  // x - n ln 2
  const Vec<float> p = polynomial(r, {4.999999345e-01f, 1.666652069e-01f, 4.166838741e-02f,
                                      8.368710036e-03f, 1.381461101e-03f});
  const Bits power = (same_bits<Bits>(shifted) + 127) << 23;  // 2^n
  const Vec<float> result = (r * r * p + r + 1) * same_bits<Vec<float>>(power);
  return x < -87.0f ? Vec<float>{} : result;
}

// Each activation has value(x), and gradient(x, g) = g * value'(x). Both give NaN where x or g is
// NaN.

template <class T>
struct Identity {
  INLINE Vec<T> value(Vec<T> x) const { return x; }
  INLINE Vec<T> gradient(Vec<T>, Vec<T> g) const { return g; }
};

template <class T>
struct Relu {
  INLINE Vec<T> value(Vec<T> x) const { return x <= 0 ? Vec<T>{} : x; }
  INLINE Vec<T> gradient(Vec<T> x, Vec<T> g) const { return x <= 0 ? Vec<T>{} : g; }
};

template <class T>
struct LeakyRelu {
  T slope;
  INLINE Vec<T> value(Vec<T> x) const { return x > 0 ? x : x * slope; }
  INLINE Vec<T> gradient(Vec<T> x, Vec<T> g) const { return x > 0 ? g : g * slope; }
};

// Applies a function of the C library to each element.
template <class Function>
INLINE Vec<double> each(Vec<double> x, Function function) {
  Vec<double> result = {};
  for (int i = 0; i < kWidth<double>; ++i) result[i] = function(x[i]);
  return result;
}
INLINE Vec<double> exp_negative(Vec<double> x) {
  return each(x, [](double value) { return __builtin_exp(value); });
}
INLINE Vec<double> magnitude(Vec<double> x) { return x < 0 ? -x : x; }

template <class T>
struct Sigmoid {
  // value = 1 / (1 + exp(-x)) and complement = 1 - value, both without cancellation.
  struct Both {
    Vec<T> value, complement;
  };
  static INLINE Both both(Vec<T> x) {
    const Vec<T> e = exp_negative(-magnitude(x)), larger = 1 / (1 + e), smaller = e * larger;
    return {x < 0 ? smaller : larger, x < 0 ? larger : smaller};
  }
  INLINE Vec<T> value(Vec<T> x) const { return both(x).value; }
  INLINE Vec<T> gradient(Vec<T> x, Vec<T> g) const {
    const Both s = both(x);
    return g * (s.value * s.complement);
  }
};

template <class T>
struct Silu {
  INLINE Vec<T> value(Vec<T> x) const { return x * Sigmoid<T>::both(x).value; }
  INLINE Vec<T> gradient(Vec<T> x, Vec<T> g) const {
    const auto s = Sigmoid<T>::both(x);
    return g * (s.value * (1 + x * s.complement));
  }
};

template <class T>
struct Tanh {
  static INLINE Vec<float> of(Vec<float> x) {
    const Vec<float> s = x * x, size = magnitude(x), e = exp_negative(-2 * size);
    const Vec<float> small =
        x + x * s *
                polynomial(s, {-3.333328392e-01f, 1.333149125e-01f, -5.374349526e-02f,
                               2.065057899e-02f, -5.717036548e-03f});
    const Vec<float> large = (1 - e) / (1 + e);
    return size < 0.625f ? small : x < 0 ? -large : large;
  }
  static INLINE Vec<double> of(Vec<double> x) {
    return each(x, [](double value) { return __builtin_tanh(value); });
  }
  INLINE Vec<T> value(Vec<T> x) const { return of(x); }
  INLINE Vec<T> gradient(Vec<T> x, Vec<T> g) const {
    const Vec<T> e = exp_negative(-2 * magnitude(x)), one = 1 + e;
    return g * (4 * e / (one * one));  // 1 - tanh^2, without cancellation
  }
};

template <class T>
struct Gelu {
  // The cumulative distribution function of the normal distribution at x, and its density.
  struct Both {
    Vec<T> function, density;
  };
  static INLINE Both both(Vec<float> x) {
    const Vec<float> e = exp_negative(-0.5f * x * x), t = 1 / (1 + 0.247487373f * magnitude(x));
    const Vec<float> tail =
        0.5f * e * t *
        polynomial(t, {1.974737274e-01f, 1.973262839e-01f, 1.863969675e-01f, 1.579752990e-01f,
                       1.270169384e-01f, 1.214384994e-01f, -6.798691040e-02f, 2.109254789e-01f,
                       -1.711756934e-01f, 4.060941817e-02f});
    return {x > 0 ? 1 - tail : tail, 0.398942280f * e};
  }
  static INLINE Both both(Vec<double> x) {
    return {
        each(x, [](double value) { return 0.5 * __builtin_erfc(value * -0.70710678118654752); }),
        each(x, [](double value) {
          return 0.39894228040143268 * __builtin_exp(-0.5 * value * value);
        })};
  }
  INLINE Vec<T> value(Vec<T> x) const { return x * both(x).function; }
  INLINE Vec<T> gradient(Vec<T> x, Vec<T> g) const {
    const Both normal = both(x);
    return g * (normal.function + x * normal.density);
  }
};

// Calls body(activation) with the activation of a tail.
template <class T, class Body>
INLINE void with_activation(const Tail& tail, Body body) {
  switch (tail.activation) {
    case MOMENTNORM_RELU:
      return body(Relu<T>{});
    case MOMENTNORM_LEAKY_RELU:
      return body(LeakyRelu<T>{T(tail.slope)});
    case MOMENTNORM_SILU:
      return body(Silu<T>{});
    case MOMENTNORM_GELU:
      return body(Gelu<T>{});
    case MOMENTNORM_TANH:
      return body(Tanh<T>{});
    case MOMENTNORM_SIGMOID:
      return body(Sigmoid<T>{});
    default:
      return body(Identity<T>{});
  }
}

// y = activation(pre_activation)
template <class E>
void activate(const Tail& tail, const Compute<E>* pre_activation, E* y, int64_t count) {
  using T = Compute<E>;
  with_activation<T>(tail, [=](auto activation) {
    for (int64_t i = 0; i < count; i += kWidth<T>) {
      store_some(y + i, count - i, activation.value(load_some(pre_activation + i, count - i)));
    }
  });
}

// Replaces the pre_activation in `values` by pre_activation_gradient, where g is the gradient of y.
// Stores it in residual_gradient as well, unless that is null.
template <class E>
void activation_gradient(const Tail& tail, Compute<E>* values, const E* g, E* residual_gradient,
                         int64_t count) {
  using T = Compute<E>;
  with_activation<T>(tail, [=](auto activation) {
    for (int64_t i = 0; i < count; i += kWidth<T>) {
      const int64_t n = count - i;
      const Vec<T> gradient = activation.gradient(load_some(values + i, n), load_some(g + i, n));
      store_some(values + i, n, gradient);
      if (residual_gradient != nullptr) store_some(residual_gradient + i, n, gradient);
    }
  });
}

}  // namespace MOMENTNORM_NAMESPACE
