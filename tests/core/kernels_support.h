// Helpers of kernels_test.cpp: a thread pool, element types, exact buffers, and tolerances.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/momentnorm.h"

inline int failures = 0;

// Counts and prints a failure, unless `good`.
inline void check(bool good, const std::string& what) {
  if (good) return;
  ++failures;
  std::fprintf(stderr, "FAILED %s\n", what.c_str());
}

// A thread pool like that of torch: at most `threads` ranges of equal length.
inline unsigned threads = 1;

inline int32_t thread_count(uint32_t* count) {
  *count = threads;
  return 0;
}

inline int32_t parallel_for(int64_t begin, int64_t end, int64_t grain, momentnorm_body body,
                            void* context) {
  const int64_t ranges = std::max<int64_t>(1, std::min<int64_t>(threads, (end - begin) / grain));
  const int64_t length = (end - begin + ranges - 1) / ranges;
  std::vector<std::thread> workers;
  for (int64_t from = begin; from < end; from += length) {
    workers.emplace_back(body, from, std::min(end, from + length), context);
  }
  for (std::thread& worker : workers) worker.join();
  return 0;
}

// IEEE half precision, by the compiler's name.
#if defined(__aarch64__)
using Half = __fp16;
#else
using Half = _Float16;
#endif

// bfloat16 by integer arithmetic, for comparison.
struct BFloat16 {
  uint16_t bits;
  BFloat16() = default;
  explicit BFloat16(double value) {
    const float narrowed = float(value);
    uint32_t word;
    std::memcpy(&word, &narrowed, sizeof word);
    bits = uint16_t((word + 0x7fff + (word >> 16 & 1)) >> 16);
  }
  operator double() const {
    const uint32_t word = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &word, sizeof value);
    return value;
  }
};

// Exactly `count` elements, which begin `offset` elements behind an aligned address.
template <class E>
struct Buffer {
  std::unique_ptr<char[]> memory;
  E* data;
  int64_t count;
  Buffer(int64_t count, int64_t offset)
      : memory(new char[size_t(count + offset) * sizeof(E)]),
        data(reinterpret_cast<E*>(memory.get()) + offset),
        count(count) {}
  bool operator==(const Buffer& other) const {
    return std::memcmp(data, other.data, size_t(count) * sizeof(E)) == 0;
  }
};

// Outputs of calls, to be compared bit by bit.
struct Results {
  std::vector<double> values;
  bool operator==(const Results& other) const {
    return values.size() == other.values.size() &&
           std::memcmp(values.data(), other.values.data(), values.size() * sizeof(double)) == 0;
  }
  template <class E>
  void add(const E* data, int64_t count) {
    for (int64_t i = 0; i < count; ++i) values.push_back(double(data[i]));
  }
};

// Largest relative rounding error of the compute type, and of the element type.
template <class E>
constexpr long double kUnit = sizeof(E) == 8 ? 0x1p-53L : 0x1p-24L;
template <class E>
constexpr long double kRounding = kUnit<E>;
template <>
constexpr long double kRounding<BFloat16> = 0x1p-8L;
template <>
constexpr long double kRounding<Half> = 0x1p-11L;

// Whether a result is within 16 roundings of the compute type and one of the element type. `scale`
// is the largest intermediate value.
template <class E>
bool near(E got, long double wanted, long double scale) {
  const long double error = std::fabs((long double)double(got) - wanted);
  const long double smallest = sizeof(E) == 2 ? 0x1p-25L : 0;  // a subnormal half
  return error <= 16 * kUnit<E> * (scale + std::fabs(wanted)) +
                      (sizeof(E) == 2 ? kRounding<E> * 1.01L * std::fabs(wanted) + smallest : 0);
}

// An activation and its derivative in long double.
struct Activated {
  long double value, slope;
};
inline Activated activated(const momentnorm_tail& tail, long double x) {
  const long double s = 1 / (1 + std::exp(-x)), t = std::tanh(x);
  const long double phi = std::erfc(-x * std::sqrt(0.5L)) / 2;
  switch (tail.activation) {
    case MOMENTNORM_RELU:
      return {x > 0 ? x : 0, x > 0 ? 1.0L : 0};
    case MOMENTNORM_LEAKY_RELU:
      return {x > 0 ? x : x * (long double)tail.slope, x > 0 ? 1 : (long double)tail.slope};
    case MOMENTNORM_SILU:
      return {x * s, s + x * s * (1 - s)};
    case MOMENTNORM_GELU:
      return {x * phi, phi + x * std::exp(-x * x / 2) / std::sqrt(2 * std::acos(-1.0L))};
    case MOMENTNORM_TANH:
      return {t, 1 - t * t};
    case MOMENTNORM_SIGMOID:
      return {s, s * (1 - s)};
    default:
      return {x, 1};
  }
}

// Index of element i of plane p in a feature map.
inline int64_t element(const momentnorm_grid& grid, int64_t p, int64_t i) {
  return grid.layout == MOMENTNORM_CHANNELS_FIRST
             ? p * grid.size + i
             : (p / grid.channels * grid.size + i) * grid.channels + p % grid.channels;
}
