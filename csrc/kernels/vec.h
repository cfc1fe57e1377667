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
INLINE Some<uint32_t, count> round_bfloat16(Some<float, count> values) {
  typedef Some<uint32_t, count> Bits;
  const Bits bits = same_bits<Bits>(values);
  const Bits rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return values != values ? Bits{} + 0x7fc00000 : rounded;  // not a number
}
template <int count>
INLINE void narrow(BFloat16* target, Some<float, count> values) {
  typedef Some<uint32_t, count> Bits;
  const Bits words = round_bfloat16<count>(values) >> 16;
  const auto halves = __builtin_convertvector(words, Some<uint16_t, count>);
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

// Left to itself, the compiler converts half a register at a time here, too.
INLINE Doubles to_doubles(Some<double, kDoubles> values) { return values; }
INLINE Doubles to_doubles(Some<float, kDoubles> values) {
#if defined(__AVX512F__)
  return (Doubles)_mm512_maskz_cvtps_pd(0xff, (__m256)values);
#elif defined(__AVX2__)
  return (Doubles)_mm256_cvtps_pd((__m128)values);
#else
  return __builtin_convertvector(values, Doubles);
#endif
}

// Two registers that are loaded and stored together.
template <class T>
struct Two {
  Vec<T> first, second;

  INLINE Two& operator+=(const Two& other) {
    first += other.first, second += other.second;
    return *this;
  }
};
template <class T>
INLINE Two<T> operator+(const Two<T>& a, const Two<T>& b) {
  return {a.first + b.first, a.second + b.second};
}
template <class T>
INLINE Two<T> operator*(const Two<T>& a, const Two<T>& b) {
  return {a.first * b.first, a.second * b.second};
}
template <class T>
INLINE Two<T> operator+(const Two<T>& a, T b) {
  return {a.first + b, a.second + b};
}
template <class T>
INLINE Two<T> operator-(const Two<T>& a, T b) {
  return {a.first - b, a.second - b};
}
template <class T>
INLINE Two<T> operator*(const Two<T>& a, T b) {
  return {a.first * b, a.second * b};
}

// Whether Two are the even and the odd of neighbours, rather than two runs. Of bfloat16 this leaves
// every element in its place of the register, which is twice as fast as widening a run.
template <class E>
constexpr bool kInterleaved = false;
template <>
constexpr bool kInterleaved<BFloat16> = true;

// Where the elements of Two are: 2 * kWidth neighbours from `first` on, or two runs of kWidth.
struct Places {
  int64_t first, second;
};
// The `vec`-th Two of 2 * kLanes elements from `begin` on.
template <class T, bool interleaved>
INLINE Places places(int64_t begin, int vec) {
  if (interleaved) return {begin + 2 * vec * kWidth<T>, begin + (2 * vec + 1) * kWidth<T>};
  return {begin + vec * kWidth<T>, begin + kLanes + vec * kWidth<T>};
}
template <class T>
INLINE Places neighbours(int64_t begin) {
  return {begin, begin + kWidth<T>};
}

template <bool interleaved, class E>
INLINE Two<Compute<E>> load_two(const E* source, Places at) {
  if constexpr (interleaved) {
    typedef Some<uint32_t, kWidth<float>> Bits;
    const Bits words = load_as_is<Bits>(source + at.first);
    return {same_bits<Vec<float>>(Bits(words << 16)),
            same_bits<Vec<float>>(Bits(words & 0xffff0000))};
  } else {
    return {load(source + at.first), load(source + at.second)};
  }
}
template <class E>
INLINE void store_two(E* target, Places at, Two<Compute<E>> values) {
  if constexpr (kInterleaved<E>) {
    typedef Some<uint32_t, kWidth<float>> Bits;
    const Bits even = round_bfloat16<kWidth<float>>(values.first);
    const Bits odd = round_bfloat16<kWidth<float>>(values.second);
    const Bits words = (even >> 16) | (odd & 0xffff0000);
    memcpy(target + at.first, &words, sizeof words);
  } else {
    store(target + at.first, values.first);
    store(target + at.second, values.second);
  }
}

// kDoubles elements, as doubles.
template <class E>
INLINE Doubles load_doubles(const E* source) {
  return to_doubles(widen<kDoubles>(source));
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

// Adds the upper half of a vector to the lower, until one number is left.
template <int count>
INLINE double fold(Some<double, count> lanes) {
  if constexpr (count == 1) {
    return lanes[0];
  } else {
    Some<double, count / 2> halves[2];
    memcpy(halves, &lanes, sizeof lanes);
    return fold<count / 2>(halves[0] + halves[1]);
  }
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
    return fold<kDoubles>(sums[0]);
  }
};

}  // namespace MOMENTNORM_NAMESPACE
