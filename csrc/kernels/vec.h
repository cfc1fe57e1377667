// Vectors: the compiler's vector extension. No other file depends on the width of a register.
//
// A sum is kept in kLanes double lanes on every machine: element i of a block goes to lane
// i mod kLanes, and the lanes are added in one fixed tree. A wider register holds more of the lanes
// at once, which changes the speed and not the bits. For the same reason CMakeLists.txt sets
// -ffp-contract=off: a * b + c has two roundings on every machine.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace MOMENTNORM_NAMESPACE {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

constexpr int kDoubles = kBytes / 8;
constexpr int kLanes = 16;
constexpr int kRegisters = kLanes / kDoubles;

// Sanitized builds set -DINLINE=inline, because forced inlining makes them compile for minutes.
#ifndef INLINE
#define INLINE inline __attribute__((always_inline))
#endif

typedef double Doubles __attribute__((vector_size(kBytes)));

// Half types, which have no arithmetic. They are computed in float.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// Compute<E> is the type in which elements of type E are computed.
template <class E>
struct ComputeOf {
  typedef float Type;
};
template <>
struct ComputeOf<double> {
  typedef double Type;
};
template <class E>
using Compute = typename ComputeOf<E>::Type;

// One register of numbers of type T.
template <class T>
using Vec __attribute__((vector_size(kBytes))) = T;

template <class T>
constexpr int kWidth = kBytes / int(sizeof(T));

// `count` numbers of type T.
template <class T, int count>
using Vector __attribute__((vector_size(sizeof(T) * count))) = T;

template <class V, class W>
INLINE V same_bits(W from) {
  static_assert(sizeof(V) == sizeof(W));
  V to;
  memcpy(&to, &from, sizeof to);
  return to;
}

template <class V>
INLINE V load_as_is(const void* source) {
  V vector;
  memcpy(&vector, source, sizeof vector);
  return vector;
}

// widen() loads `count` elements in their compute type, and narrow() stores them. float and double
// stay as they are.
template <int count>
INLINE Vector<float, count> widen(const float* source) {
  return load_as_is<Vector<float, count>>(source);
}
template <int count>
INLINE Vector<double, count> widen(const double* source) {
  return load_as_is<Vector<double, count>>(source);
}
template <int count>
INLINE void narrow(float* target, Vector<float, count> values) {
  memcpy(target, &values, sizeof values);
}
template <int count>
INLINE void narrow(double* target, Vector<double, count> values) {
  memcpy(target, &values, sizeof values);
}

// Loads 16-bit words as 32-bit ones. The intrinsics widen a whole register at once, which the
// compiler does in two halves.
template <int count>
INLINE Vector<uint32_t, count> widen_words(const void* source) {
  typedef Vector<uint32_t, count> Bits;
#if defined(__AVX512F__)
  if constexpr (count == 16) {
    return (Bits)_mm512_maskz_cvtepu16_epi32(0xffff, load_as_is<__m256i>(source));
  }
#endif
#if defined(__AVX2__)
  if constexpr (count == 8) return (Bits)_mm256_cvtepu16_epi32(load_as_is<__m128i>(source));
#endif
  return __builtin_convertvector((load_as_is<Vector<uint16_t, count>>(source)), Bits);
}

// bfloat16 is the upper half of a float. Rounding is to the nearest, ties to even.
template <int count>
INLINE Vector<float, count> widen(const BFloat16* source) {
  typedef Vector<uint32_t, count> Bits;
  return same_bits<Vector<float, count>>(Bits(widen_words<count>(source) << 16));
}
template <int count>
INLINE Vector<uint32_t, count> round_bfloat16(Vector<float, count> values) {
  typedef Vector<uint32_t, count> Bits;
  const Bits bits = same_bits<Bits>(values);
  const Bits rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return values != values ? Bits{} + 0x7fc00000 : rounded;  // NaN
}
template <int count>
INLINE void narrow(BFloat16* target, Vector<float, count> values) {
  typedef Vector<uint32_t, count> Bits;
  const Bits words = round_bfloat16<count>(values) >> 16;
  const auto halves = __builtin_convertvector(words, Vector<uint16_t, count>);
  memcpy(target, &halves, sizeof halves);
}

// IEEE half precision by integer arithmetic, for fewer elements than a register and for processors
// without conversion instructions.
template <int count>
INLINE Vector<float, count> widen_by_integers(const Float16* source) {
  typedef Vector<uint32_t, count> Bits;
  typedef Vector<float, count> Floats;
  const Bits bits = widen_words<count>(source);
  const Bits sign = (bits & 0x8000) << 16, magnitude = (bits & 0x7fff) << 13;
  // A float with this exponent field is 2^-112 of the half's value, subnormals included.
  const Floats scaled = same_bits<Floats>(magnitude) * 0x1p112f;
  const Bits special = same_bits<Bits>((bits & 0x7c00) == 0x7c00);  // infinity or NaN
  const Bits quiet = same_bits<Bits>((bits & 0x3ff) != 0) & special & 0x400000;
  const Bits result = same_bits<Bits>(scaled) | (special & 0x7f800000) | quiet;
  return same_bits<Floats>(result | sign);
}
template <int count>
INLINE void narrow_by_integers(Float16* target, Vector<float, count> values) {
  typedef Vector<uint32_t, count> Bits;
  typedef Vector<float, count> Floats;
  const Bits bits = same_bits<Bits>(values);
  const Bits sign = bits & 0x80000000, magnitude = bits & 0x7fffffff;
  // Normal halves: rebias the exponent, round to the nearest, ties to even.
  const Bits normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Subnormal halves: adding 1/2 rounds to the bits of the half, and leaves them lowest.
  const Bits subnormal = same_bits<Bits>(Floats(same_bits<Floats>(magnitude) + 0.5f)) - 0x3f000000;
  const Bits small = same_bits<Bits>(magnitude < 0x38800000);
  const Bits large = same_bits<Bits>(magnitude >= 0x47800000);
  const Bits nan = same_bits<Bits>(magnitude > 0x7f800000);
  Bits result = (normal & ~small) | (subnormal & small);
  result = (result & ~large) | (large & 0x7c00);
  result = ((result & ~nan) | (nan & 0x7e00)) | (sign >> 16);
  const auto halves = __builtin_convertvector(result, Vector<uint16_t, count>);
  memcpy(target, &halves, sizeof halves);
}
template <int count>
INLINE Vector<float, count> widen(const Float16* source) {
#if defined(__AVX512F__)
  if constexpr (count == 16) {
    return (Vector<float, count>)_mm512_maskz_cvtph_ps(0xffff, load_as_is<__m256i>(source));
  }
#endif
#if defined(__F16C__)
  if constexpr (count == 8) {
    return (Vector<float, count>)_mm256_cvtph_ps(load_as_is<__m128i>(source));
  }
#elif defined(__aarch64__)
  if constexpr (count == 4) {
    return (Vector<float, count>)vcvt_f32_f16(load_as_is<float16x4_t>(source));
  }
#endif
  return widen_by_integers<count>(source);
}
template <int count>
INLINE void narrow(Float16* target, Vector<float, count> values) {
#if defined(__AVX512F__)
  if constexpr (count == 16) {
    const __m256i halves = _mm512_maskz_cvtps_ph(0xffff, (__m512)values, _MM_FROUND_TO_NEAREST_INT);
    memcpy(target, &halves, sizeof halves);
    return;
  }
#endif
#if defined(__F16C__)
  if constexpr (count == 8) {
    const __m128i halves = _mm256_cvtps_ph((__m256)values, _MM_FROUND_TO_NEAREST_INT);
    memcpy(target, &halves, sizeof halves);
    return;
  }
#elif defined(__aarch64__)
  if constexpr (count == 4) {
    const float16x4_t halves = vcvt_f16_f32((float32x4_t)values);
    memcpy(target, &halves, sizeof halves);
    return;
  }
#endif
  narrow_by_integers<count>(target, values);
}

// Loads a whole register of elements in their compute type, and stores it.
template <class E>
INLINE Vec<Compute<E>> load(const E* source) {
  return widen<kWidth<Compute<E>>>(source);
}
template <class E>
INLINE void store(E* target, Vec<Compute<E>> values) {
  narrow<kWidth<Compute<E>>>(target, values);
}

// A register whose lanes are all `value`.
template <class T>
INLINE Vec<T> all(T value) {
  return Vec<T>{} + value;
}

// Loads a register of the next elements, of which `count` exist, and stores it. Lanes beyond
// `count` load 0 and are not stored.
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

// Keeps the first `count` lanes of a register, and sets the others to 0.
template <class T>
INLINE Vec<T> first_lanes(Vector<T, kWidth<T>> values, int64_t count) {
  if (count >= kWidth<T>) return values;
  T lanes[kWidth<T>];
  store(lanes, values);
  return load_some(lanes, count);
}

// Converts to double. The intrinsics convert a whole register at once, which the compiler does in
// two halves.
INLINE Doubles to_doubles(Vector<double, kDoubles> values) { return values; }
INLINE Doubles to_doubles(Vector<float, kDoubles> values) {
#if defined(__AVX512F__)
  return (Doubles)_mm512_maskz_cvtps_pd(0xff, (__m256)values);
#elif defined(__AVX2__)
  return (Doubles)_mm256_cvtps_pd((__m128)values);
#else
  return __builtin_convertvector(values, Doubles);
#endif
}

// A pair of registers that are loaded and stored together.
template <class T>
struct VecPair {
  Vec<T> first, second;

  INLINE VecPair& operator+=(const VecPair& other) {
    first += other.first, second += other.second;
    return *this;
  }
};
template <class T>
INLINE VecPair<T> operator+(const VecPair<T>& a, const VecPair<T>& b) {
  return {a.first + b.first, a.second + b.second};
}
template <class T>
INLINE VecPair<T> operator*(const VecPair<T>& a, const VecPair<T>& b) {
  return {a.first * b.first, a.second * b.second};
}
template <class T>
INLINE VecPair<T> operator+(const VecPair<T>& a, T b) {
  return {a.first + b, a.second + b};
}
template <class T>
INLINE VecPair<T> operator-(const VecPair<T>& a, T b) {
  return {a.first - b, a.second - b};
}
template <class T>
INLINE VecPair<T> operator*(const VecPair<T>& a, T b) {
  return {a.first * b, a.second * b};
}

// Whether a VecPair of elements E holds the even and the odd elements of one run, instead of two
// runs. For bfloat16 this is twice as fast, since no element changes its place in the register.
template <class E>
constexpr bool kInterleaved = false;
template <>
constexpr bool kInterleaved<BFloat16> = true;

// Positions of the elements of a VecPair: 2 * kWidth elements from `first` on where interleaved,
// otherwise kWidth elements from `first` on and kWidth from `second` on.
struct Places {
  int64_t first, second;
};
// Positions of the `vec`-th VecPair among the 2 * kLanes elements from `begin` on.
template <class T, bool interleaved>
INLINE Places places(int64_t begin, int vec) {
  if (interleaved) return {begin + 2 * vec * kWidth<T>, begin + (2 * vec + 1) * kWidth<T>};
  return {begin + vec * kWidth<T>, begin + kLanes + vec * kWidth<T>};
}
// Positions of the 2 * kWidth elements from `begin` on.
template <class T>
INLINE Places neighbours(int64_t begin) {
  return {begin, begin + kWidth<T>};
}

template <bool interleaved, class E>
INLINE VecPair<Compute<E>> load_pair(const E* source, Places at) {
  if constexpr (interleaved) {
    typedef Vector<uint32_t, kWidth<float>> Bits;
    const Bits words = load_as_is<Bits>(source + at.first);
    return {same_bits<Vec<float>>(Bits(words << 16)),
            same_bits<Vec<float>>(Bits(words & 0xffff0000))};
  } else {
    return {load(source + at.first), load(source + at.second)};
  }
}
template <class E>
INLINE void store_pair(E* target, Places at, VecPair<Compute<E>> values) {
  if constexpr (kInterleaved<E>) {
    typedef Vector<uint32_t, kWidth<float>> Bits;
    const Bits even = round_bfloat16<kWidth<float>>(values.first);
    const Bits odd = round_bfloat16<kWidth<float>>(values.second);
    const Bits words = (even >> 16) | (odd & 0xffff0000);
    memcpy(target + at.first, &words, sizeof words);
  } else {
    store(target + at.first, values.first);
    store(target + at.second, values.second);
  }
}

// Loads kDoubles elements as doubles.
template <class E>
INLINE Doubles load_doubles(const E* source) {
  return to_doubles(widen<kDoubles>(source));
}

// Converts one element to its compute type, and back.
template <class E>
INLINE Compute<E> get(E element) {
  return widen<1>(&element)[0];
}
template <class E>
INLINE E put(Compute<E> value) {
  E element;
  narrow<1>(&element, Vector<Compute<E>, 1>{value});
  return element;
}

// Adds the upper half of a vector to its lower half until one number is left.
template <int count>
INLINE double fold(Vector<double, count> lanes) {
  if constexpr (count == 1) {
    return lanes[0];
  } else {
    Vector<double, count / 2> halves[2];
    memcpy(halves, &lanes, sizeof lanes);
    return fold<count / 2>(halves[0] + halves[1]);
  }
}

// A sum that is kept in kLanes lanes.
struct Lanes {
  Doubles registers[kRegisters] = {};

  // Adds the lanes in a fixed tree: lane k takes lane k + 8, then k + 4, k + 2, k + 1.
  INLINE double total() const {
    Doubles sums[kRegisters];
    for (int r = 0; r < kRegisters; ++r) sums[r] = registers[r];
    for (int half = kRegisters / 2; half > 0; half /= 2) {
      for (int r = 0; r < half; ++r) sums[r] += sums[r + half];
    }
    return fold<kDoubles>(sums[0]);
  }
};

}  // namespace MOMENTNORM_NAMESPACE
