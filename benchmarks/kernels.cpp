// Times of the kernels on one thread, in copies, for docs/kernels.md.
//
//   g++ -std=c++20 -O3 -march=x86-64-v4 -Wno-psabi -ffp-contract=off -fno-math-errno \
//       -fno-trapping-math -DMOMENTNORM_NAMESPACE=kernels benchmarks/kernels.cpp \
//       csrc/kernels/channels_first.cpp csrc/kernels/channels_last.cpp csrc/memory.cpp -o kernels
//   ./kernels 8 128 4096 0 0         # samples, channels, size, dtype, layout as in momentnorm.h
//   ./kernels 8 128 4096 0 0 1 16    # followed by samples and channels of a pool
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../csrc/kernel_table.h"

namespace MOMENTNORM_NAMESPACE {
extern const Kernels kChannelsFirst[];
extern const Kernels kChannelsLast[];
}  // namespace MOMENTNORM_NAMESPACE

namespace {

// Lower quartile of 200 calls, in microseconds.
template <class Call>
double time(Call call) {
  static const int kCalls = std::getenv("CALLS") ? std::atoi(std::getenv("CALLS")) : 200;
  std::vector<double> times;
  for (int i = 0; i < kCalls; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    call();
    const std::chrono::duration<double, std::micro> taken =
        std::chrono::steady_clock::now() - begin;
    times.push_back(taken.count());
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 4];
}

}  // namespace

int main(int count, char** values) {
  if (count != 6 && count != 8) {
    std::fprintf(stderr, "usage: %s samples channels size dtype layout [samples channels]\n",
                 values[0]);
    return 2;
  }
  int64_t numbers[7] = {0, 0, 0, 0, 0, 1, 1};
  for (int i = 0; i + 1 < count; ++i) numbers[i] = std::atoll(values[i + 1]);
  const auto [samples, channels, size, dtype, layout, pool_samples, pool_channels] = numbers;
  if (dtype != MOMENTNORM_FLOAT32 && dtype != MOMENTNORM_BFLOAT16) {
    std::fprintf(stderr, "dtype is 0 for float32 or 2 for bfloat16\n");
    return 2;
  }
  const Grid grid = {
      samples,        channels,           size,           pool_samples, pool_channels,
      int32_t(dtype), MOMENTNORM_FLOAT32, int32_t(layout)};
  const size_t elements = size_t(samples * channels * size);
  const size_t width = dtype == MOMENTNORM_FLOAT32 ? 4 : 2, bytes = elements * width;
  const size_t whole = (bytes + (size_t(2) << 20)) & ~((size_t(2) << 20) - 1);
  char *x, *g, *y;
  for (char** memory : {&x, &g, &y}) {
    *memory = static_cast<char*>(std::aligned_alloc(size_t(2) << 20, whole));
    std::memset(*memory, 0, whole);
  }
  for (size_t i = 0; i < elements; ++i) {
    const float value = float(std::rand() % 1000) / 500 - 1, towards = -value * value;
    // The upper half of a float is a bfloat16.
    std::memcpy(x + i * width, reinterpret_cast<const char*>(&value) + 4 - width, width);
    std::memcpy(g + i * width, reinterpret_cast<const char*>(&towards) + 4 - width, width);
  }
  const size_t planes = size_t(samples * channels);
  std::vector<double> mean(planes), var(planes), sums(planes), weighted_sums(planes);
  std::vector<float> weight(size_t(channels), 1), bias(size_t(channels), 0);
  std::vector<float> dweight(weight), dbias(bias);
  const ThreadPool alone = {nullptr, nullptr};
  const Tail plain = {MOMENTNORM_IDENTITY, 0, nullptr};
  const Kernels* const tables[] = {MOMENTNORM_NAMESPACE::kChannelsFirst,
                                   MOMENTNORM_NAMESPACE::kChannelsLast};
  const Kernels& kernels = tables[layout][dtype];

  const double copy = time([&] { std::memcpy(y, x, bytes); });
  const double forward = time([&] {
    kernels.normalize(alone, grid, plain, x, weight.data(), bias.data(), 1e-5, y, mean.data(),
                      var.data());
  });
  const double backward = time([&] {
    kernels.normalize_backward(alone, grid, plain, g, x, mean.data(), var.data(), weight.data(),
                               bias.data(), 1e-5, y, nullptr, dweight.data(), dbias.data(),
                               sums.data(), weighted_sums.data());
  });
  std::printf("copy %.0f us, forward %.0f us = %.2f copies, backward %.0f us = %.2f copies\n", copy,
              forward, forward / copy, backward, backward / copy);
}
