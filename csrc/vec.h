// Vectors of the compiler's own extension: the only lines that know how wide they are.
//
// A sum is kept in kLanes double lanes on every machine: element i of a block goes to lane
// i mod kLanes, and the lanes are added in one fixed tree. A wider register holds more of the lanes
// at once, which changes the speed and not the bits. (Nor may the compiler contract a*b+c into one
// rounding where the machine can: see -ffp-contract=off in CMakeLists.txt.)
#pragma once

#include <stdint.h>
#include <string.h>

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

#define INLINE inline __attribute__((always_inline))

typedef double Doubles __attribute__((vector_size(kBytes)));

// A register of T, for arithmetic in T.
template <class T>
struct Native;
template <>
struct Native<float> {
  typedef float Vec __attribute__((vector_size(kBytes)));
  // As many elements as Doubles has.
  typedef float Part __attribute__((vector_size(kBytes / 2)));
};
template <>
struct Native<double> {
  typedef double Vec __attribute__((vector_size(kBytes)));
  typedef Vec Part;
};

template <class T>
using Vec = typename Native<T>::Vec;

template <class T>
constexpr int kWidth = kBytes / int(sizeof(T));

template <class V, class T>
INLINE V load(const T* source) {
  V vector;
  memcpy(&vector, source, sizeof vector);
  return vector;
}

template <class V, class T>
INLINE void store(T* target, V vector) {
  memcpy(target, &vector, sizeof vector);
}

// kDoubles elements, widened.
template <class T>
INLINE Doubles load_doubles(const T* source) {
  return __builtin_convertvector(load<typename Native<T>::Part>(source), Doubles);
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
