// The activations that may follow the affine map, and their gradients.
//
// z is formed a few thousand elements at a time in memory of the compute type, which stays in the
// first level cache; an activation then reads it from there. So the loops that form z know no
// activations, and half types are rounded once, behind the activation.
//
// In float the functions are made of the same few operations on every instruction set. In double
// they are the C library's, one element at a time.
#pragma once

#include "../kernel_table.h"
#include "vec.h"

namespace MOMENTNORM_NAMESPACE {

INLINE bool plain(const Tail& tail) {
  return tail.activation == MOMENTNORM_IDENTITY && tail.residual == nullptr;
}

// Whether a gradient is not simply the given one.
INLINE bool through(const Tail& tail, const void* z_gradient) {
  return !plain(tail) || z_gradient != nullptr;
}

template <class T>
INLINE Vec<T> all(T value) {
  return Vec<T>{} + value;
}

INLINE Vec<float> magnitude(Vec<float> z) {
  typedef Some<uint32_t, kWidth<float>> Bits;
  return same_bits<Vec<float>>(Bits(same_bits<Bits>(z) & 0x7fffffff));
}

template <int count>
INLINE Vec<float> polynomial(Vec<float> z, const float (&coefficients)[count]) {
  Vec<float> sum = all(coefficients[count - 1]);
  for (int i = count - 2; i >= 0; --i) sum = sum * z + coefficients[i];
  return sum;
}

// exp(z) for z <= 0, to a relative 2e-7; 0 where the result would be subnormal. The coefficients
// here and below are from tools/fit_activations.py.
INLINE Vec<float> exp_negative(Vec<float> z) {
  typedef Some<uint32_t, kWidth<float>> Bits;
  const Vec<float> bounded = z < -87.0f ? all(-87.0f) : z;
  const float round = 0x1.8p23f;  // adding it leaves an integer in the lowest bits
  const Vec<float> shifted = bounded * 1.44269504f + round;
  const Vec<float> n = shifted - round;
  const Vec<float> r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;  // z - n ln 2
  const Vec<float> p = polynomial(r, {4.999999345e-01f, 1.666652069e-01f, 4.166838741e-02f,
                                      8.368710036e-03f, 1.381461101e-03f});
  const Bits power = (same_bits<Bits>(shifted) + 127) << 23;  // 2^n
  const Vec<float> result = (r * r * p + r + 1) * same_bits<Vec<float>>(power);
  return z < -87.0f ? Vec<float>{} : result;
}

// Of each activation: value(z), and gradient(z, g) = g * value'(z). Where z is not a number, or g,
// the result is not either.

template <class T>
struct Identity {
  INLINE Vec<T> value(Vec<T> z) const { return z; }
  INLINE Vec<T> gradient(Vec<T>, Vec<T> g) const { return g; }
};

template <class T>
struct Relu {
  INLINE Vec<T> value(Vec<T> z) const { return z <= 0 ? Vec<T>{} : z; }
  INLINE Vec<T> gradient(Vec<T> z, Vec<T> g) const { return z <= 0 ? Vec<T>{} : g; }
};

template <class T>
struct LeakyRelu {
  T slope;
  INLINE Vec<T> value(Vec<T> z) const { return z > 0 ? z : z * slope; }
  INLINE Vec<T> gradient(Vec<T> z, Vec<T> g) const { return z > 0 ? g : g * slope; }
};

// Of functions without a formula in double: element by element.
template <class Function>
INLINE Vec<double> each(Vec<double> z, Function function) {
  Vec<double> result = {};
  for (int i = 0; i < kWidth<double>; ++i) result[i] = function(z[i]);
  return result;
}
INLINE Vec<double> exp_negative(Vec<double> z) {
  return each(z, [](double value) { return __builtin_exp(value); });
}
INLINE Vec<double> magnitude(Vec<double> z) { return z < 0 ? -z : z; }

template <class T>
struct Sigmoid {
  // 1 / (1 + exp(-z)) and 1 minus that, both without cancellation.
  struct Both {
    Vec<T> value, complement;
  };
  static INLINE Both both(Vec<T> z) {
    const Vec<T> e = exp_negative(-magnitude(z)), larger = 1 / (1 + e), smaller = e * larger;
    return {z < 0 ? smaller : larger, z < 0 ? larger : smaller};
  }
  INLINE Vec<T> value(Vec<T> z) const { return both(z).value; }
  INLINE Vec<T> gradient(Vec<T> z, Vec<T> g) const {
    const Both s = both(z);
    return g * (s.value * s.complement);
  }
};

template <class T>
struct Silu {
  INLINE Vec<T> value(Vec<T> z) const { return z * Sigmoid<T>::both(z).value; }
  INLINE Vec<T> gradient(Vec<T> z, Vec<T> g) const {
    const auto s = Sigmoid<T>::both(z);
    return g * (s.value * (1 + z * s.complement));
  }
};

template <class T>
struct Tanh {
  static INLINE Vec<float> of(Vec<float> z) {
    const Vec<float> s = z * z, size = magnitude(z), e = exp_negative(-2 * size);
    const Vec<float> small =
        z + z * s *
                polynomial(s, {-3.333328392e-01f, 1.333149125e-01f, -5.374349526e-02f,
                               2.065057899e-02f, -5.717036548e-03f});
    const Vec<float> large = (1 - e) / (1 + e);
    return size < 0.625f ? small : z < 0 ? -large : large;
  }
  static INLINE Vec<double> of(Vec<double> z) {
    return each(z, [](double value) { return __builtin_tanh(value); });
  }
  INLINE Vec<T> value(Vec<T> z) const { return of(z); }
  INLINE Vec<T> gradient(Vec<T> z, Vec<T> g) const {
    const Vec<T> e = exp_negative(-2 * magnitude(z)), one = 1 + e;
    return g * (4 * e / (one * one));  // 1 - tanh^2, without cancellation
  }
};

template <class T>
struct Gelu {
  // The normal distribution's function at z, and its density.
  struct Both {
    Vec<T> function, density;
  };
  static INLINE Both both(Vec<float> z) {
    const Vec<float> e = exp_negative(-0.5f * z * z), t = 1 / (1 + 0.247487373f * magnitude(z));
    const Vec<float> tail =
        0.5f * e * t *
        polynomial(t, {1.974737274e-01f, 1.973262839e-01f, 1.863969675e-01f, 1.579752990e-01f,
                       1.270169384e-01f, 1.214384994e-01f, -6.798691040e-02f, 2.109254789e-01f,
                       -1.711756934e-01f, 4.060941817e-02f});
    return {z > 0 ? 1 - tail : tail, 0.398942280f * e};
  }
  static INLINE Both both(Vec<double> z) {
    return {
        each(z, [](double value) { return 0.5 * __builtin_erfc(value * -0.70710678118654752); }),
        each(z, [](double value) {
          return 0.39894228040143268 * __builtin_exp(-0.5 * value * value);
        })};
  }
  INLINE Vec<T> value(Vec<T> z) const { return z * both(z).function; }
  INLINE Vec<T> gradient(Vec<T> z, Vec<T> g) const {
    const Both normal = both(z);
    return g * (normal.function + z * normal.density);
  }
};

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

// A register of the `count` elements from `source`, and back: fewer than a register at the end.
template <class E>
INLINE Vec<Compute<E>> load_some(const E* source, int64_t count) {
  if (count >= kWidth<Compute<E>>) return load(source);
  E elements[kWidth<Compute<E>>] = {};
  for (int64_t i = 0; i < count; ++i) elements[i] = source[i];
  return load(elements);
}
template <class E>
INLINE void store_some(E* target, int64_t count, Vec<Compute<E>> values) {
  if (count >= kWidth<Compute<E>>) return store(target, values);
  E elements[kWidth<Compute<E>>];
  store(elements, values);
  for (int64_t i = 0; i < count; ++i) target[i] = elements[i];
}

// The first `count` lanes of a register, and 0 in the others.
template <class T>
INLINE Vec<T> first_lanes(Some<T, kWidth<T>> values, int64_t count) {
  if (count >= kWidth<T>) return values;
  T lanes[kWidth<T>];
  store(lanes, values);
  return load_some(lanes, count);
}

// y = activation(z)
template <class E>
void activate(const Tail& tail, const Compute<E>* z, E* y, int64_t count) {
  using T = Compute<E>;
  with_activation<T>(tail, [=](auto activation) {
    for (int64_t i = 0; i < count; i += kWidth<T>) {
      store_some(y + i, count - i, activation.value(load_some(z + i, count - i)));
    }
  });
}

// z = the gradient of what activate() makes of z, given the gradient g of y; a copy to `copy`.
template <class E>
void activation_gradient(const Tail& tail, Compute<E>* z, const E* g, E* copy, int64_t count) {
  using T = Compute<E>;
  with_activation<T>(tail, [=](auto activation) {
    for (int64_t i = 0; i < count; i += kWidth<T>) {
      const int64_t n = count - i;
      const Vec<T> gradient = activation.gradient(load_some(z + i, n), load_some(g + i, n));
      store_some(z + i, n, gradient);
      if (copy != nullptr) store_some(copy + i, n, gradient);
    }
  });
}

}  // namespace MOMENTNORM_NAMESPACE
