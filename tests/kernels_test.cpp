// Checks every kernel on every instruction set against long double arithmetic, at sizes around the
// vector and block widths, at odd addresses, and over thread counts; meant to run under the
// sanitizers, so every buffer is a heap block of just the size that the call may touch.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "../csrc/momentnorm.h"

namespace {

int failures = 0;

void check(bool good, const std::string& what) {
  if (good) return;
  ++failures;
  std::fprintf(stderr, "FAILED %s\n", what.c_str());
}

// A thread pool like torch's: at most `threads` ranges of equal length.
unsigned threads = 1;

int32_t thread_count(uint32_t* count) {
  *count = threads;
  return 0;
}

int32_t parallel_for(int64_t begin, int64_t end, int64_t grain, momentnorm_body body,
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

// `count` elements, `offset` elements behind an aligned address, and not one more.
template <class T>
struct Buffer {
  std::unique_ptr<char[]> memory;
  T* data;
  int64_t count;
  Buffer(int64_t count, int64_t offset)
      : memory(new char[size_t(count + offset) * sizeof(T)]),
        data(reinterpret_cast<T*>(memory.get()) + offset),
        count(count) {}
  bool operator==(const Buffer& other) const {
    return std::memcmp(data, other.data, size_t(count) * sizeof(T)) == 0;
  }
};

struct Results {
  std::vector<double> values;
  bool operator==(const Results& other) const {
    return values.size() == other.values.size() &&
           std::memcmp(values.data(), other.values.data(), values.size() * sizeof(double)) == 0;
  }
  template <class T>
  void add(const T* data, int64_t count) {
    for (int64_t i = 0; i < count; ++i) values.push_back(double(data[i]));
  }
};

// Within 16 roundings of T at this scale: the largest intermediate value that is rounded.
template <class T>
bool near(T got, long double wanted, long double scale) {
  const long double unit = sizeof(T) == 4 ? 0x1p-24L : 0x1p-53L;
  return std::fabs((long double)got - wanted) <= 16 * unit * (scale + std::fabs(wanted));
}

template <class T>
Results run(int32_t dtype, int64_t samples, int64_t channels, int64_t size, double centre,
            int64_t offset, bool affine, bool compare, const std::string& label) {
  const int64_t planes = samples * channels, count = planes * size;
  std::mt19937 random(7);
  std::normal_distribution<double> normal;
  Buffer<T> x(count, offset), g(count, offset), y(count, offset), dx(count, offset),
      weight(channels, offset), bias(channels, offset);
  for (int64_t i = 0; i < count; ++i) x.data[i] = T(centre + normal(random));
  for (int64_t i = 0; i < count; ++i) g.data[i] = T(normal(random));
  for (int64_t i = 0; i < channels; ++i) weight.data[i] = T(0.5 + i), bias.data[i] = T(-1.5 * i);
  std::vector<double> mean(planes), var(planes), sums(planes), weighted(planes), a(planes),
      b(planes), c(planes);
  const T* w = affine ? weight.data : nullptr;
  const T* bb = affine ? bias.data : nullptr;
  const double eps = 1e-5;
  Results results;

  check(momentnorm_normalize(dtype, samples, channels, size, x.data, w, bb, eps, y.data,
                             mean.data(), var.data()) == 0, label + " status");
  check(momentnorm_normalize_backward(dtype, samples, channels, size, g.data, x.data, mean.data(),
                                      var.data(), w, eps, dx.data, sums.data(),
                                      weighted.data()) == 0, label + " status");
  results.add(y.data, count), results.add(dx.data, count);
  for (auto* values : {&mean, &var, &sums, &weighted}) results.add(values->data(), planes);

  if (compare) {
    for (int64_t p = 0; p < planes; ++p) {
      const T* xs = x.data + p * size;
      const T* gs = g.data + p * size;
      long double m = 0, v = 0, s = 0, t = 0;
      for (int64_t i = 0; i < size; ++i) m += xs[i];
      m /= size;
      for (int64_t i = 0; i < size; ++i) v += (xs[i] - m) * (xs[i] - m);
      v /= size;
      for (int64_t i = 0; i < size; ++i) s += gs[i], t += gs[i] * (xs[i] - m);
      const long double ww = affine ? (long double)weight.data[p % channels] : 1;
      const long double shift = affine ? (long double)bias.data[p % channels] : 0;
      const long double rstd = 1 / std::sqrt(v + eps);
      // A double mean is rounded at its own size; for floats it carries 29 bits to spare, and sums
      // take a few roundings of float, relative to the terms.
      const long double unit = sizeof(T) == 8 ? 0x1p-53L : 0x1p-24L;
      const long double rounding = 16 * 0x1p-53L * (3 + std::fabs(centre));
      const long double far = sizeof(T) == 8 ? 3 + std::fabs(centre) : 0.25;
      check(std::fabs(mean[p] - m) <= unit + rounding, label + " mean");
      check(std::fabs(var[p] - v) <= (4 * unit + rounding) * (v + 0x1p-20L), label + " var");
      check(std::fabs(sums[p] - s) <= (4 * unit + rounding) * size, label + " sums");
      check(std::fabs(weighted[p] - t) <= (4 * unit + rounding) * size, label + " weighted sums");
      bool good = true;
      for (int64_t i = 0; i < size; ++i) {
        const long double d = xs[i] - m, scale = ww * rstd;
        good &= near(y.data[p * size + i], d * scale + shift, scale * (std::fabs(d) + far));
        const long double wanted = scale * (gs[i] - s / size - d * rstd * rstd * t / size);
        good &= near(dx.data[p * size + i], wanted, scale * 5 * (1 + far * rstd));
      }
      check(good, label + " y, dx");
    }
  }

  // The separate kernels give the same bits as the visits that fuse them.
  std::vector<double> mean2(planes), var2(planes), sums2(planes), weighted2(planes);
  Buffer<T> y2(count, offset), dx2(count, offset);
  momentnorm_moments(dtype, samples, channels, size, x.data, mean2.data(), var2.data());
  momentnorm_gradient_sums(dtype, samples, channels, size, g.data, x.data, mean.data(),
                           sums2.data(), weighted2.data());
  std::vector<double> scale(planes), shift(planes);
  for (int64_t p = 0; p < planes; ++p) {
    const double ww = affine ? double(weight.data[p % channels]) : 1;
    const double rstd = 1 / std::sqrt(var[p] + eps);
    scale[p] = ww * rstd;
    shift[p] = affine ? double(bias.data[p % channels]) : 0;
    b[p] = -scale[p] * rstd * rstd * (weighted[p] / double(size));
    c[p] = -scale[p] * (sums[p] / double(size));
  }
  momentnorm_apply(dtype, samples, channels, size, x.data, mean.data(), scale.data(), shift.data(),
                   y2.data);
  momentnorm_apply_gradient(dtype, samples, channels, size, g.data, x.data, mean.data(),
                            scale.data(), b.data(), c.data(), dx2.data);
  check(mean == mean2 && var == var2 && sums == sums2 && weighted == weighted2 && y == y2 &&
            dx == dx2,
        label + " separate kernels");

  // Over their own input.
  momentnorm_normalize(dtype, samples, channels, size, x.data, w, bb, eps, x.data, mean2.data(),
                       var2.data());
  check(x == y, label + " in place");
  return results;
}

template <class T>
void sweep(int32_t dtype, const std::string& type) {
  std::istringstream names(momentnorm_instruction_sets());
  std::vector<std::string> sets;
  for (std::string name; names >> name;) sets.push_back(name);
  const int64_t shapes[][2] = {{1, 1}, {2, 3}, {1, 5}};
  const int64_t sizes[] = {1, 2, 3, 7, 15, 16, 17, 31, 33, 49, 64, 8191, 8192, 8193, 40000};
  for (const auto& [samples, channels] : shapes) {
    for (int64_t size : sizes) {
      for (int variant = 0; variant < 4; ++variant) {
        const double centre = variant & 1 ? 1000 : 0;
        const int64_t offset = variant & 1 ? 1 : 0;
        const bool affine = variant & 2;
        Results first;
        for (const std::string& set : sets) {
          momentnorm_choose_instruction_set(set.c_str());
          for (unsigned count : {1u, 2u, 3u}) {
            threads = count;
            const std::string label = type + " " + set + " " + std::to_string(samples) + "x" +
                                      std::to_string(channels) + "x" + std::to_string(size) +
                                      " variant " + std::to_string(variant) + " threads " +
                                      std::to_string(count);
            Results results = run<T>(dtype, samples, channels, size, centre, offset, affine,
                                     first.values.empty(), label);
            if (first.values.empty()) first = results;
            check(results == first, label + " bits");
          }
        }
      }
    }
  }
}

void edges() {
  float x = 3, y = 9;
  double mean = 0, var = 0;
  check(momentnorm_normalize(7, 1, 1, 1, &x, nullptr, nullptr, 1e-5, &y, &mean, &var) ==
                MOMENTNORM_UNKNOWN_DTYPE && y == 9, "an unknown dtype writes nothing");
  check(momentnorm_normalize(0, 0, 4, 4, nullptr, nullptr, nullptr, 1e-5, nullptr, nullptr,
                             nullptr) == MOMENTNORM_OK, "an empty batch");
  check(momentnorm_moments(0, 1, 1, 0, nullptr, &mean, &var) == MOMENTNORM_OK &&
            std::isnan(mean) && std::isnan(var), "empty planes");
  check(momentnorm_choose_instruction_set("v9") == MOMENTNORM_NO_INSTRUCTION_SET, "unknown set");
  check(momentnorm_abi_version() == MOMENTNORM_ABI_VERSION, "version");
  momentnorm_advise_fresh(&x, sizeof x);
  check(x == 3, "advice changes nothing");
}

}  // namespace

int main() {
  momentnorm_set_thread_pool(parallel_for, thread_count);
  edges();
  sweep<float>(MOMENTNORM_FLOAT32, "float32");
  sweep<double>(MOMENTNORM_FLOAT64, "float64");
  std::printf("kernels: %s: %d failures\n", momentnorm_instruction_sets(), failures);
  return failures != 0;
}
