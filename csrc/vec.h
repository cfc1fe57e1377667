// Vectors of the compiler's own extension: the only lines that know how wide they are.
//
// A sum is kept in kLanes double lanes on every machine: element i of a block goes to lane
// i mod kLanes, and the lanes are added in one fixed tree. A wider register holds more of the lanes
// at once, which changes the speed and not the bits. (Nor may the compiler contract a*b+c into one
// rounding where the machine can: see -ffp-contract=off in CMakeLists.txt.)
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

// Sanitized builds say -DINLINE=inline: everything in one function takes them minutes to compile.
#ifndef INLINE
#define INLINE inline __attribute__((always_inline))
#endif

typedef double Doubles __attribute__((vector_size(kBytes)));

// Element types without arithmetic of their own.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// The type that an element type is computed in.
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

// A register of T, for arithmetic in T.
template <class T>
using Vec __attribute__((vector_size(kBytes))) = T;

template <class T>
constexpr int kWidth = kBytes / int(sizeof(T));

// Vectors of `count` numbers.
template <class T, int count>
using Some __attribute__((vector_size(sizeof(T) * count))) = T;

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

// float and double: `count` elements as they are.
template <int count>
INLINE Some<float, count> widen(const float* source) {
  return load_as_is<Some<float, count>>(source);
}
template <int count>
INLINE Some<double, count> widen(const double* source) {
  return load_as_is<Some<double, count>>(source);
}
template <int count>
INLINE void narrow(float* target, Some<float, count> values) {
  memcpy(target, &values, sizeof values);
}
template <int count>
INLINE void narrow(double* target, Some<double, count> values) {
  memcpy(target, &values, sizeof values);
}

// 16-bit words as 32-bit ones. Left to itself, the compiler widens half a register at a time.
template <int count>
INLINE Some<uint32_t, count> widen_words(const void* source) {
  typedef Some<uint32_t, count> Bits;
#if defined(__AVX512F__)
  if constexpr (count == 16) {
    return (Bits)_mm512_maskz_cvtepu16_epi32(0xffff, load_as_is<__m256i>(source));
  }
#endif
#if defined(__AVX2__)
  if constexpr (count == 8) return (Bits)_mm256_cvtepu16_epi32(load_as_is<__m128i>(source));
#endif
  return __builtin_convertvector((load_as_is<Some<uint16_t, count>>(source)), Bits);
}

// bfloat16 is the upper half of a float; rounding is to the nearest, ties to even.
template <int count>
INLINE Some<float, count> widen(const BFloat16* source) {
  typedef Some<uint32_t, count> Bits;
  return same_bits<Some<float, count>>(Bits(widen_words<count>(source) << 16));
}
template <int count>
INLINE void narrow(BFloat16* target, Some<float, count> values) {
  typedef Some<uint32_t, count> Bits;
  const Bits bits = same_bits<Bits>(values);
  const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Bits result = values != values ? Bits{} + 0x7fc0 : rounded;  // not a number
  const auto halves = __builtin_convertvector(result, Some<uint16_t, count>);
  memcpy(target, &halves, sizeof halves);
}

// IEEE half precision, by integer arithmetic: for tails, and for processors without conversions.
template <int count>
INLINE Some<float, count> widen_by_integers(const Float16* source) {
  typedef Some<uint32_t, count> Bits;
  typedef Some<float, count> Floats;
  const Bits bits = widen_words<count>(source);
  const Bits sign = (bits & 0x8000) << 16, magnitude = (bits & 0x7fff) << 13;
  // A float with this exponent field is 2^-112 of the half's value, subnormals included.
  const Floats scaled = same_bits<Floats>(magnitude) * 0x1p112f;
  const Bits special = same_bits<Bits>((bits & 0x7c00) == 0x7c00);  // infinity or not a number
  const Bits quiet = same_bits<Bits>((bits & 0x3ff) != 0) & special & 0x400000;
  const Bits result = same_bits<Bits>(scaled) | (special & 0x7f800000) | quiet;
  return same_bits<Floats>(result | sign);
}
template <int count>
INLINE void narrow_by_integers(Float16* target, Some<float, count> values) {
  typedef Some<uint32_t, count> Bits;
  typedef Some<float, count> Floats;
  const Bits bits = same_bits<Bits>(values);
  const Bits sign = bits & 0x80000000, magnitude = bits & 0x7fffffff;
  // Normal halves: rebias the exponent, round to the nearest, ties to even.
  const Bits normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Subnormal halves: adding 1/2 leaves just the half's bits, rounded by the addition.
  const Bits subnormal = same_bits<Bits>(Floats(same_bits<Floats>(magnitude) + 0.5f)) - 0x3f000000;
  const Bits small = same_bits<Bits>(magnitude < 0x38800000);
  const Bits large = same_bits<Bits>(magnitude >= 0x47800000);
  const Bits nan = same_bits<Bits>(magnitude > 0x7f800000);
  Bits result = (normal & ~small) | (subnormal & small);
  result = (result & ~large) | (large & 0x7c00);
  result = ((result & ~nan) | (nan & 0x7e00)) | (sign >> 16);
  const auto halves = __builtin_convertvector(result, Some<uint16_t, count>);
  memcpy(target, &halves, sizeof halves);
}
template <int count>
INLINE Some<float, count> widen(const Float16* source) {
#if defined(__AVX512F__)
  if constexpr (count == 16) {
    return (Some<float, count>)_mm512_maskz_cvtph_ps(0xffff, load_as_is<__m256i>(source));
  }
#endif
#if defined(__F16C__)
  if constexpr (count == 8) {
    return (Some<float, count>)_mm256_cvtph_ps(load_as_is<__m128i>(source));
  }
#elif defined(__aarch64__)
  if constexpr (count == 4) {
    return (Some<float, count>)vcvt_f32_f16(load_as_is<float16x4_t>(source));
  }
#endif
  return widen_by_integers<count>(source);
}
template <int count>
INLINE void narrow(Float16* target, Some<float, count> values) {
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

// A whole register of elements, in the type that they are computed in.
template <class E>
INLINE Vec<Compute<E>> load(const E* source) {
  return widen<kWidth<Compute<E>>>(source);
}
template <class E>
INLINE void store(E* target, Vec<Compute<E>> values) {
  narrow<kWidth<Compute<E>>>(target, values);
}

// kDoubles elements, as doubles.
template <class E>
INLINE Doubles load_doubles(const E* source) {
  return __builtin_convertvector(widen<kDoubles>(source), Doubles);
}

// One element.
template <class E>
INLINE Compute<E> get(E element) {
  return widen<1>(&element)[0];
}
template <class E>
INLINE E put(Compute<E> value) {
  E element;
  narrow<1>(&element, Some<Compute<E>, 1>{value});
  return element;
}

// One sum in kLanes lanes.
struct Lanes {
  Doubles registers[kRegisters] = {};

  // The fixed tree: lane k takes lane k + 8, then k + 4, k + 2, k + 1.
  INLINE double total() const {
    Doubles sums[kRegisters];
    for (int r = 0; r < kRegisters; ++r) sums[r] = registers[r];
    for (int half = kRegisters / 2; half > 0; half /= 2) {
      for (int r = 0; r < half; ++r) sums[r] += sums[r + half];
    }
    double lanes[kDoubles];
    memcpy(lanes, sums, sizeof lanes);
    for (int half = kDoubles / 2; half > 0; half /= 2) {
      for (int k = 0; k < half; ++k) lanes[k] += lanes[k + half];
    }
    return lanes[0];
  }
};

}  // namespace MOMENTNORM_NAMESPACE
