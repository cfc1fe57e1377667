// Checks every kernel on every instruction set against long double arithmetic: element types,
// layouts, activations, sizes around the vector and block widths, odd addresses, thread counts. It
// is meant to run under the sanitizers, so every buffer is a heap block of just the size that the
// call may touch.
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

#include "../../csrc/momentnorm.h"
#include "output.h"

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

// What the compilers call IEEE half precision.
#if defined(__aarch64__)
using Half = __fp16;
#else
using Half = _Float16;
#endif

// bfloat16 by hand, to compare with.
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

// `count` elements, `offset` elements behind an aligned address, and not one more.
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

// Half of the distance between neighbouring numbers, relative: of the type that is computed in, and
// of the element.
template <class E>
constexpr long double kUnit = sizeof(E) == 8 ? 0x1p-53L : 0x1p-24L;
template <class E>
constexpr long double kRounding = kUnit<E>;
template <>
constexpr long double kRounding<BFloat16> = 0x1p-8L;
template <>
constexpr long double kRounding<Half> = 0x1p-11L;

// Within 16 roundings at this scale, the largest intermediate value, and one of the element.
template <class E>
bool near(E got, long double wanted, long double scale) {
  const long double error = std::fabs((long double)double(got) - wanted);
  const long double smallest = sizeof(E) == 2 ? 0x1p-25L : 0;  // a subnormal half
  return error <= 16 * kUnit<E> * (scale + std::fabs(wanted)) +
                      (sizeof(E) == 2 ? kRounding<E> * 1.01L * std::fabs(wanted) + smallest : 0);
}

struct Activated {
  long double value, slope;
};
Activated activated(const momentnorm_tail& tail, long double z) {
  const long double s = 1 / (1 + std::exp(-z)), t = std::tanh(z);
  const long double phi = std::erfc(-z * std::sqrt(0.5L)) / 2;
  switch (tail.activation) {
    case MOMENTNORM_RELU:
      return {z > 0 ? z : 0, z > 0 ? 1.0L : 0};
    case MOMENTNORM_LEAKY_RELU:
      return {z > 0 ? z : z * (long double)tail.slope, z > 0 ? 1 : (long double)tail.slope};
    case MOMENTNORM_SILU:
      return {z * s, s + z * s * (1 - s)};
    case MOMENTNORM_GELU:
      return {z * phi, phi + z * std::exp(-z * z / 2) / std::sqrt(2 * std::acos(-1.0L))};
    case MOMENTNORM_TANH:
      return {t, 1 - t * t};
    case MOMENTNORM_SIGMOID:
      return {s, s * (1 - s)};
    default:
      return {z, 1};
  }
}

template <class E, class P>
Results run(momentnorm_grid grid, double centre, int64_t offset, bool affine, bool compare,
            int32_t activation, const std::string& label) {
  const int64_t channels = grid.channels, size = grid.size;
  const int64_t planes = grid.samples * channels, count = planes * size;
  // Where element i of plane p is.
  auto at = [=](int64_t p, int64_t i) {
    return grid.layout == MOMENTNORM_CHANNELS_FIRST
               ? p * size + i
               : (p / channels * size + i) * channels + p % channels;
  };
  std::mt19937 random(7);
  std::normal_distribution<double> normal;
  Buffer<E> x(count, offset), g(count, offset), y(count, offset), dx(count, offset);
  Buffer<P> weight(channels, offset), bias(channels, offset);
  for (int64_t i = 0; i < count; ++i) x.data[i] = E(centre + normal(random));
  for (int64_t i = 0; i < count; ++i) g.data[i] = E(normal(random));
  for (int64_t i = 0; i < channels; ++i) {
    weight.data[i] = P(0.5 + double(i % 7)), bias.data[i] = P(-1.5 * double(i % 5));
  }
  std::vector<double> mean(planes), var(planes), sums(planes), weighted(planes);
  const P* w = affine ? weight.data : nullptr;
  const P* bb = affine ? bias.data : nullptr;
  const double eps = 1e-5;
  Results results;

  check(momentnorm_normalize(&grid, nullptr, x.data, w, bb, eps, y.data, mean.data(), var.data()) ==
            0,
        label + " status");
  Buffer<P> dweight(channels, offset), dbias(channels, offset);
  check(momentnorm_normalize_backward(&grid, nullptr, g.data, x.data, mean.data(), var.data(), w,
                                      bb, eps, dx.data, nullptr, dweight.data, dbias.data,
                                      sums.data(), weighted.data()) == 0,
        label + " status");
  results.add(dweight.data, channels), results.add(dbias.data, channels);
  results.add(y.data, count), results.add(dx.data, count);
  for (auto* values : {&mean, &var, &sums, &weighted}) results.add(values->data(), planes);

  for (int64_t p = 0; compare && p < planes; ++p) {
    std::vector<long double> xs(size), gs(size);
    for (int64_t i = 0; i < size; ++i)
      xs[i] = double(x.data[at(p, i)]), gs[i] = double(g.data[at(p, i)]);
    long double m = 0, v = 0, s = 0, t = 0;
    for (int64_t i = 0; i < size; ++i) m += xs[i];
    m /= size;
    for (int64_t i = 0; i < size; ++i) v += (xs[i] - m) * (xs[i] - m);
    v /= size;
    for (int64_t i = 0; i < size; ++i) s += gs[i], t += gs[i] * (xs[i] - m);
    const long double ww = affine ? (long double)double(weight.data[p % channels]) : 1;
    const long double shift = affine ? (long double)double(bias.data[p % channels]) : 0;
    const long double rstd = 1 / std::sqrt(v + eps);
    // A double mean is rounded at its own size; for floats it carries 29 bits to spare, and sums
    // take a few roundings of float, relative to the terms.
    const long double unit = kUnit<E>;
    const long double rounding = 16 * 0x1p-53L * (3 + std::fabs(centre));
    const long double far = sizeof(E) == 8 ? 3 + std::fabs(centre) : 0.25;
    const long double spread = 1 + std::sqrt(v);
    check(std::fabs(mean[p] - m) <= unit * spread + rounding, label + " mean");
    check(std::fabs(var[p] - v) <= (8 * unit + rounding) * (v + 0x1p-20L), label + " var");
    check(std::fabs(sums[p] - s) <= (4 * unit + rounding) * size, label + " sums");
    check(std::fabs(weighted[p] - t) <= (4 * unit + rounding) * size * spread,
          label + " weighted sums");
    bool good = true;
    for (int64_t i = 0; i < size; ++i) {
      const long double d = xs[i] - m, scale = ww * rstd;
      good &= near(y.data[at(p, i)], d * scale + shift, scale * (std::fabs(d) + far));
      const long double wanted = scale * (gs[i] - s / size - d * rstd * rstd * t / size);
      good &= near(dx.data[at(p, i)], wanted, scale * 5 * (1 + far * rstd));
    }
    check(good, label + " y, dx");
  }

  // The separate kernels give the same bits as the visits that fuse them.
  std::vector<double> mean2(planes), var2(planes), sums2(planes), weighted2(planes), scale(planes),
      shift(planes), b(planes), c(planes);
  Buffer<E> y2(count, offset), dx2(count, offset);
  momentnorm_moments(&grid, x.data, mean2.data(), var2.data());
  momentnorm_gradient_sums(&grid, nullptr, g.data, x.data, mean.data(), nullptr, nullptr,
                           sums2.data(), weighted2.data());
  for (int64_t p = 0; p < planes; ++p) {
    const double rstd = 1 / std::sqrt(var[p] + eps);
    scale[p] = (affine ? double(weight.data[p % channels]) : 1) * rstd;
    shift[p] = affine ? double(bias.data[p % channels]) : 0;
    b[p] = -scale[p] * rstd * rstd * (weighted[p] / double(size));
    c[p] = -scale[p] * (sums[p] / double(size));
  }
  momentnorm_apply(&grid, nullptr, x.data, mean.data(), scale.data(), shift.data(), y2.data);
  momentnorm_apply_gradient(&grid, nullptr, g.data, x.data, mean.data(), nullptr, nullptr,
                            scale.data(), b.data(), c.data(), dx2.data, nullptr);
  check(mean == mean2 && var == var2 && sums == sums2 && weighted == weighted2 && y == y2 &&
            dx == dx2,
        label + " separate kernels");

  // With its own moments given, one of each channel.
  if (grid.samples == 1 && !affine) {
    momentnorm_grid given = grid;
    given.parameters = MOMENTNORM_FLOAT64;
    momentnorm_normalize_with(&given, nullptr, x.data, mean.data(), var.data(), nullptr, nullptr,
                              eps, y2.data);
    bool good = true;
    for (int64_t i = 0; i < count; ++i) {
      good &= near(y2.data[i], double(y.data[i]), 3 + std::fabs(double(y.data[i])));
    }
    check(good, label + " given moments");
  }

  // Through a tail: the gradient of z is an output that the other gradients are checked with.
  Buffer<E> residual(count, offset), residual_gradient(count, offset), residual_gradient2(count, offset);
  for (int64_t i = 0; i < count; ++i) residual.data[i] = E(normal(random));
  const bool adds = affine || activation == MOMENTNORM_IDENTITY;
  const momentnorm_tail tail = {activation, 0.125, adds ? residual.data : nullptr};
  momentnorm_normalize(&grid, &tail, x.data, w, bb, eps, y.data, mean2.data(), var2.data());
  momentnorm_normalize_backward(&grid, &tail, g.data, x.data, mean.data(), var.data(), w, bb, eps,
                                dx.data, residual_gradient.data, dweight.data, dbias.data, sums.data(),
                                weighted.data());
  results.add(y.data, count), results.add(dx.data, count), results.add(residual_gradient.data, count);
  results.add(dweight.data, channels), results.add(dbias.data, channels);
  bool good = mean == mean2 && var == var2;
  for (int64_t p = 0; compare && p < planes; ++p) {
    long double s = 0;
    for (int64_t i = 0; i < size; ++i) {
      const int64_t k = at(p, i);
      const long double d = (long double)double(x.data[k]) - mean[p];
      const long double r = adds ? (long double)double(residual.data[k]) : 0;
      const Activated wanted = activated(tail, d * scale[p] + shift[p] + r);
      const long double step = double(g.data[k]) * wanted.slope;
      const long double size_of_z = 4 + std::fabs(shift[p]) + scale[p] * (std::fabs(d) + 1);
      good &= near(y.data[k], wanted.value, size_of_z);
      // At the corner of a ReLU either slope may come out.
      const bool corner = std::fabs(d * scale[p] + shift[p] + r) < 1e-5;
      good &= corner || near(residual_gradient.data[k], step, std::fabs(double(g.data[k])) * size_of_z);
      s += step;
    }
    if (activation != MOMENTNORM_RELU && activation != MOMENTNORM_LEAKY_RELU) {
      good &= std::fabs(sums[p] - s) <= 64 * kUnit<E> * size * (8 + std::fabs(shift[p]));
    }
  }
  check(good, label + " activation " + std::to_string(activation));
  momentnorm_gradient_sums(&grid, &tail, g.data, x.data, mean.data(), scale.data(), shift.data(),
                           sums2.data(), weighted2.data());
  for (int64_t p = 0; p < planes; ++p) {
    const double rstd = 1 / std::sqrt(var[p] + eps);
    b[p] = -scale[p] * rstd * rstd * (weighted[p] / double(size));
    c[p] = -scale[p] * (sums[p] / double(size));
  }
  momentnorm_apply(&grid, &tail, x.data, mean.data(), scale.data(), shift.data(), y2.data);
  momentnorm_apply_gradient(&grid, &tail, g.data, x.data, mean.data(), scale.data(), shift.data(),
                            scale.data(), b.data(), c.data(), dx2.data, residual_gradient2.data);
  check(sums == sums2 && weighted == weighted2 && y == y2 && dx == dx2 && residual_gradient == residual_gradient2,
        label + " separate kernels with a tail");

  // Over their own inputs: z's gradient over y's, dx over x.
  Buffer<E> x2(count, offset);
  std::memcpy(x2.data, x.data, size_t(count) * sizeof(E));
  momentnorm_normalize(&grid, &tail, x2.data, w, bb, eps, x2.data, mean2.data(), var2.data());
  check(x2 == y, label + " in place");
  momentnorm_normalize_backward(&grid, &tail, g.data, x.data, mean.data(), var.data(), w, bb, eps,
                                x.data, g.data, dweight.data, dbias.data, sums2.data(),
                                weighted2.data());
  check(x == dx && g == residual_gradient && sums == sums2, label + " gradients in place");
  return results;
}

// The kernels that look at pools, with a residual and an activation or without.
template <class E, class P>
Results run_pools(const momentnorm_grid& grid, double centre, int64_t offset, bool compare,
                  int32_t activation, const std::string& label) {
  const int64_t channels = grid.channels, size = grid.size;
  const int64_t planes = grid.samples * channels, count = planes * size;
  const int64_t across = channels / grid.pool_channels;
  const int64_t pools = grid.samples / grid.pool_samples * across;
  auto at = [=](int64_t p, int64_t i) {
    return grid.layout == MOMENTNORM_CHANNELS_FIRST
               ? p * size + i
               : (p / channels * size + i) * channels + p % channels;
  };
  auto pool_of = [=](int64_t p) {
    return p / channels / grid.pool_samples * across + p % channels / grid.pool_channels;
  };
  std::mt19937 random(11);
  std::normal_distribution<double> normal;
  Buffer<E> x(count, offset), g(count, offset), residual(count, offset), y(count, offset),
      dx(count, offset), residual_gradient(count, offset);
  Buffer<P> weight(channels, offset), bias(channels, offset), dweight(channels, offset),
      dbias(channels, offset);
  for (int64_t i = 0; i < count; ++i) {
    x.data[i] = E(centre + normal(random)), g.data[i] = E(normal(random));
    residual.data[i] = E(normal(random));
  }
  for (int64_t i = 0; i < channels; ++i) {
    weight.data[i] = P(0.5 + double(i % 7)), bias.data[i] = P(-1.5 * double(i % 5));
  }
  const double eps = 1e-5;
  const bool plain = activation == MOMENTNORM_IDENTITY;
  const momentnorm_tail tail = {activation, 0.125, plain ? nullptr : residual.data};
  E* const through = plain ? nullptr : residual_gradient.data;
  std::vector<double> mean(pools), var(pools);
  check(momentnorm_normalize(&grid, &tail, x.data, weight.data, bias.data, eps, y.data, mean.data(),
                             var.data()) == 0 &&
            momentnorm_normalize_backward(&grid, &tail, g.data, x.data, mean.data(), var.data(),
                                          weight.data, bias.data, eps, dx.data, through,
                                          dweight.data, dbias.data, nullptr, nullptr) == 0,
        label + " status");
  Results results;
  results.add(y.data, count), results.add(dx.data, count);
  results.add(dweight.data, channels), results.add(dbias.data, channels);
  results.add(mean.data(), pools), results.add(var.data(), pools);
  if (through != nullptr) results.add(through, count);

  if (compare) {
    const long double n = grid.pool_samples * grid.pool_channels * size;
    std::vector<long double> m(pools), v(pools), s(pools), t(pools), dw(channels), db(channels);
    auto each = [&](auto body) {
      for (int64_t p = 0; p < planes; ++p) {
        for (int64_t i = 0; i < size; ++i) body(p, pool_of(p), at(p, i));
      }
    };
    each([&](int64_t, int64_t pool, int64_t k) { m[pool] += double(x.data[k]); });
    for (long double& value : m) value /= n;
    each([&](int64_t, int64_t pool, int64_t k) {
      const long double d = (long double)double(x.data[k]) - m[pool];
      v[pool] += d * d;
    });
    for (long double& value : v) value /= n;
    auto rstd = [&](int64_t pool) { return 1 / std::sqrt(v[pool] + eps); };
    auto z = [&](int64_t p, int64_t pool, int64_t k) {
      const long double d = (long double)double(x.data[k]) - m[pool];
      return d * rstd(pool) * double(weight.data[p % channels]) + double(bias.data[p % channels]) +
             (plain ? 0 : double(residual.data[k]));
    };
    auto step = [&](int64_t p, int64_t pool, int64_t k) {
      return double(g.data[k]) * activated(tail, z(p, pool, k)).slope;
    };
    each([&](int64_t p, int64_t pool, int64_t k) {
      const long double d = (long double)double(x.data[k]) - m[pool], h = step(p, pool, k);
      const long double w = double(weight.data[p % channels]);
      s[pool] += w * h, t[pool] += w * h * d;
      dw[p % channels] += h * d * rstd(pool), db[p % channels] += h;
    });
    // As for planes above, with sums of more terms.
    const long double far = sizeof(E) == 8 ? 3 + std::fabs(centre) : 0.25;
    bool good = true;
    each([&](int64_t p, int64_t pool, int64_t k) {
      const long double d = (long double)double(x.data[k]) - m[pool], r = rstd(pool);
      const long double w = double(weight.data[p % channels]);
      good &= near(y.data[k], activated(tail, z(p, pool, k)).value,
                   4 + w * r * (std::fabs(d) + far) + 8);
      const long double wanted =
          w * r * step(p, pool, k) - r * (s[pool] / n) - d * r * r * r * (t[pool] / n);
      good &= near(dx.data[k], wanted, 7 * r * 20 * (1 + far * r));
    });
    check(good, label + " y, dx");
    good = true;
    long double largest = 1;
    for (int64_t pool = 0; pool < pools; ++pool) largest = std::max(largest, rstd(pool));
    const long double terms = (long double)(grid.samples * size) * 8 * (1 + far * largest);
    for (int64_t c = 0; c < channels; ++c) {
      good &= near(P(dweight.data[c]), dw[c], terms) && near(P(dbias.data[c]), db[c], terms);
    }
    check(good, label + " dweight, dbias");
    good = true;
    for (int64_t pool = 0; pool < pools; ++pool) {
      const long double rounding = 16 * 0x1p-53L * (3 + std::fabs(centre));
      good &= std::fabs(mean[pool] - m[pool]) <= kUnit<E> * (1 + std::sqrt(v[pool])) + rounding;
      good &= std::fabs(var[pool] - v[pool]) <= (8 * kUnit<E> + rounding) * (v[pool] + 0x1p-20L);
    }
    check(good, label + " moments");
  }

  // Over their own inputs.
  Buffer<E> x2(count, offset);
  std::memcpy(x2.data, x.data, size_t(count) * sizeof(E));
  momentnorm_normalize(&grid, &tail, x2.data, weight.data, bias.data, eps, x2.data, mean.data(),
                       var.data());
  check(x2 == y, label + " in place");
  momentnorm_normalize_backward(&grid, &tail, g.data, x.data, mean.data(), var.data(), weight.data,
                                bias.data, eps, x.data, plain ? nullptr : g.data, dweight.data,
                                dbias.data, nullptr, nullptr);
  check(x == dx && (plain || g == residual_gradient), label + " gradients in place");
  return results;
}

std::vector<std::string> instruction_sets() {
  std::istringstream names(momentnorm_instruction_sets());
  std::vector<std::string> sets;
  for (std::string name; names >> name;) sets.push_back(name);
  return sets;
}

template <class E, class P>
void sweep(int32_t dtype, int32_t parameters, const std::string& type) {
  const std::vector<std::string> sets = instruction_sets();
  struct Shape {
    int64_t samples, channels, size;
  };
  std::vector<Shape> shapes;
  for (int64_t size : {1, 2, 15, 16, 17, 49, 1023, 1025, 8193, 20000}) {
    shapes.push_back({1, 1, size});
    shapes.push_back({2, 3, size});
  }
  for (int64_t channels : {5, 17, 48, 64, 512}) {
    for (int64_t size : {2, 17, 300}) shapes.push_back({2, channels, size});
  }
  int32_t which = 0;
  for (const Shape& shape : shapes) {
    for (int variant = 0; variant < 4; ++variant) {
      const int32_t layout = variant & 1;
      const momentnorm_grid grid = {shape.samples, shape.channels, shape.size, 1, 1,
                                    dtype,         parameters,     layout};
      const bool far = (shape.size + variant / 2) % 2;
      const int64_t offset = far ? 1 : 0;
      const double centre = far ? sizeof(E) == 2 ? 10 : 1000 : 0;
      const int32_t activation = which++ % 7;
      Results first;
      for (const std::string& set : sets) {
        momentnorm_choose_instruction_set(set.c_str());
        for (unsigned count : {1u, 3u}) {
          threads = count;
          const std::string label =
              type + " " + set + " " + std::to_string(shape.samples) + "x" +
              std::to_string(shape.channels) + "x" + std::to_string(shape.size) + " layout " +
              std::to_string(layout) + " centre " + std::to_string(int(centre)) + " threads " +
              std::to_string(count);
          Results results =
              run<E, P>(grid, centre, offset, variant & 2, first.values.empty(), activation, label);
          if (first.values.empty()) first = results;
          check(results == first, label + " bits");
        }
      }
    }
  }
}

template <class E, class P>
void sweep_pools(int32_t dtype, int32_t parameters, const std::string& type) {
  struct Shape {
    int64_t samples, channels, size, pool_samples, pool_channels;
  };
  std::vector<Shape> shapes;
  for (int64_t size : {1, 15, 49, 128, 1025}) {
    shapes.push_back({2, 6, size, 1, 3});
    shapes.push_back({4, 6, size, 2, 1});
    shapes.push_back({4, 6, size, 2, 2});
  }
  for (const Shape& shape :
       {Shape{70, 24, 1, 1, 8}, Shape{70, 3, 7, 70, 1}, Shape{17, 32, 2, 1, 32},
        Shape{1, 64, 49, 1, 64}, Shape{1, 4, 20000, 1, 2}, Shape{3, 2, 9000, 3, 1}}) {
    shapes.push_back(shape);
  }
  int32_t which = 0;
  for (const Shape& shape : shapes) {
    for (int32_t layout : {MOMENTNORM_CHANNELS_FIRST, MOMENTNORM_CHANNELS_LAST}) {
      for (bool activated : {false, true}) {
        const momentnorm_grid grid = {
            shape.samples,       shape.channels, shape.size, shape.pool_samples,
            shape.pool_channels, dtype,          parameters, layout};
        const bool far = which % 3 == 0;
        // Smooth ones: at a corner either slope may come out.
        const int32_t smooth[] = {MOMENTNORM_SILU, MOMENTNORM_GELU, MOMENTNORM_TANH,
                                  MOMENTNORM_SIGMOID};
        const int32_t activation = activated ? smooth[which++ % 4] : MOMENTNORM_IDENTITY;
        Results first;
        for (const std::string& set : instruction_sets()) {
          momentnorm_choose_instruction_set(set.c_str());
          for (unsigned count : {1u, 3u}) {
            threads = count;
            const std::string label =
                type + " " + set + " " + std::to_string(shape.samples) + "x" +
                std::to_string(shape.channels) + "x" + std::to_string(shape.size) + " pools " +
                std::to_string(shape.pool_samples) + "x" + std::to_string(shape.pool_channels) +
                " layout " + std::to_string(layout) + " activation " + std::to_string(activation) +
                " threads " + std::to_string(count);
            Results results = run_pools<E, P>(grid, far ? sizeof(E) == 2 ? 10 : 1000 : 0, far,
                                              first.values.empty(), activation, label);
            if (first.values.empty()) first = results;
            check(results == first, label + " bits");
          }
        }
      }
    }
  }
}

// Every half, and floats of every exponent to a half and a bfloat16: x = (x - 0) * 1 + 0.
void conversions() {
  const double zero = 0;
  for (const std::string& set : instruction_sets()) {
    momentnorm_choose_instruction_set(set.c_str());
    threads = 1;
    std::vector<Half> halves, copies;
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
      const uint16_t word = uint16_t(bits);
      Half half;
      std::memcpy(&half, &word, sizeof half);
      if (half == half) halves.push_back(half);
    }
    // An odd length, so that the last ones take the way of single elements.
    copies.resize(halves.size());
    momentnorm_grid grid = {
        1, 1, int64_t(halves.size()), 1, 1, MOMENTNORM_FLOAT16, MOMENTNORM_FLOAT32, 0};
    // Rounding: halves at a scale between them.
    for (double scale : {1.0, 1.0 + 0x1p-10, 0x1.7p-5, 0x1p-14, 3e4}) {
      momentnorm_apply(&grid, nullptr, halves.data(), &zero, &scale, &zero, copies.data());
      int wrong = 0;
      for (size_t i = 0; i < halves.size(); ++i) {
        const Half wanted = Half(float(halves[i]) * float(scale));
        wrong += wanted != copies[i] && wanted == wanted;
      }
      check(wrong == 0, set + " float16 conversion at scale " + std::to_string(scale));
    }
    std::vector<BFloat16> words(0x10000 - 3), copied(words.size());
    for (size_t i = 0; i < words.size(); ++i) words[i].bits = uint16_t(i);
    grid = {1, 1, int64_t(words.size()), 1, 1, MOMENTNORM_BFLOAT16, MOMENTNORM_FLOAT32, 0};
    for (double scale : {1.0, 1.0 + 0x1p-7, 0x1.7p-5}) {
      momentnorm_apply(&grid, nullptr, words.data(), &zero, &scale, &zero, copied.data());
      int wrong = 0;
      for (size_t i = 0; i < words.size(); ++i) {
        const double exact = words[i];
        if (exact != exact) {
          wrong += double(copied[i]) == double(copied[i]);
        } else {
          const BFloat16 wanted(float(exact) * float(scale));
          wrong += double(wanted) != double(copied[i]);
        }
      }
      check(wrong == 0, set + " bfloat16 conversion at scale " + std::to_string(scale));
    }
  }
}

void edges() {
  const momentnorm_tail unknown = {7, 0, nullptr};
  float x = 3, y = 9;
  double mean = 0, var = 0;
  auto normalize = [&](momentnorm_grid grid, const momentnorm_tail* tail = nullptr) {
    return momentnorm_normalize(&grid, tail, &x, nullptr, nullptr, 1e-5, &y, &mean, &var);
  };
  check(normalize({1, 1, 1, 1, 1, 7, 0, 0}) == MOMENTNORM_UNKNOWN_GRID &&
            normalize({1, 1, 1, 1, 1, 0, -1, 0}) == MOMENTNORM_UNKNOWN_GRID &&
            normalize({1, 1, 1, 1, 1, 0, 0, 2}) == MOMENTNORM_UNKNOWN_GRID &&
            normalize({1, 1, 1, 1, 1, 0, 0, 0}, &unknown) == MOMENTNORM_UNKNOWN_GRID && y == 9,
        "an unknown dtype, layout or activation writes nothing");
  check(normalize({1, 1, 1, 2, 1, 0, 0, 0}) == MOMENTNORM_UNEVEN_POOL &&
            normalize({1, 1, 1, 1, 2, 0, 0, 0}) == MOMENTNORM_UNEVEN_POOL &&
            normalize({1, 1, 1, 0, 1, 0, 0, 0}) == MOMENTNORM_UNEVEN_POOL && y == 9,
        "a pool that does not divide the grid writes nothing");
  for (int32_t layout : {MOMENTNORM_CHANNELS_FIRST, MOMENTNORM_CHANNELS_LAST}) {
    check(normalize({0, 4, 4, 1, 1, 0, 0, layout}) == MOMENTNORM_OK, "an empty batch");
    check(normalize({4, 0, 4, 1, 1, 0, 0, layout}) == MOMENTNORM_OK, "no channels");
    check(normalize({1, 1, 0, 1, 1, 0, 0, layout}) == MOMENTNORM_OK && std::isnan(mean) &&
              std::isnan(var) && y == 9,
          "empty planes");
    const momentnorm_grid empty = {1, 1, 0, 1, 1, 0, 0, layout};
    check(momentnorm_apply(&empty, nullptr, &x, &mean, &mean, &mean, &y) == MOMENTNORM_OK &&
              momentnorm_apply_gradient(&empty, nullptr, &x, &x, &mean, &mean, &mean, &mean, &mean,
                                        &mean, &y, nullptr) == MOMENTNORM_OK &&
              y == 9,
          "maps of empty planes");
  }
  check(momentnorm_choose_instruction_set("v9") == MOMENTNORM_NO_INSTRUCTION_SET, "unknown set");
  check(momentnorm_abi_version() == MOMENTNORM_ABI_VERSION, "version");
}

void memory() {
  constexpr int64_t kMegabyte = int64_t(1) << 20;
  auto output = [](int64_t megabytes) {
    const int64_t shape[] = {megabytes, kMegabyte / 4}, strides[] = {kMegabyte / 4, 1};
    return static_cast<Output*>(
        momentnorm_new_output(2, shape, strides, MOMENTNORM_FLOAT32, megabytes * kMegabyte));
  };
  momentnorm_limit_kept_memory(64 * kMegabyte);
  Output* first = output(16);
  check(first->device_type == 1 && first->dimensions == 2 && first->type_bits == 32 &&
            first->shape[0] == 16 && first->strides[0] == kMegabyte / 4,
        "what DLPack says of an output");
  first->data[0] = first->data[16 * kMegabyte / 4 - 1] = 1;
  float* const memory = first->data;
  first->deleter(first);
  check(momentnorm_kept_memory() == 16 * kMegabyte, "kept");
  Output *again = output(15), *other = output(16);
  check(again->data == memory && other->data != memory, "used again, once");
  again->deleter(again), other->deleter(other);
  for (int64_t size : {40, 100, 2}) {
    Output* const next = output(size);
    next->deleter(next);
  }
  check(momentnorm_kept_memory() <= 64 * kMegabyte, "the limit of kept memory");
  std::vector<std::thread> workers;
  for (int i = 0; i < 4; ++i) {
    workers.emplace_back([&] {
      for (int k = 0; k < 200; ++k) {
        Output *one = output(4), *two = output(4);
        one->data[0] = 1, two->data[0] = 2;
        check(one->data[0] == 1, "two owners of one block");
        one->deleter(one), two->deleter(two);
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
  momentnorm_limit_kept_memory(0);
  check(momentnorm_kept_memory() == 0 && output(16) == nullptr, "nothing kept");
}

int report() {
  std::printf("kernels: %s: %d failures\n", momentnorm_instruction_sets(), failures);
  return failures != 0;
}

}  // namespace

// `kernels_test some` checks the keeper and the pools of float32 alone: what the thread sanitizer
// slows down, in less time.
int main(int argc, char** argv) {
  const bool some = argc > 1 && std::string(argv[1]) == "some";
  memory();
  momentnorm_set_thread_pool(parallel_for, thread_count);
  edges();
  sweep_pools<float, float>(MOMENTNORM_FLOAT32, MOMENTNORM_FLOAT32, "float32");
  if (some) return report();
  conversions();
  sweep<float, float>(MOMENTNORM_FLOAT32, MOMENTNORM_FLOAT32, "float32");
  sweep<double, double>(MOMENTNORM_FLOAT64, MOMENTNORM_FLOAT64, "float64");
  sweep_pools<double, double>(MOMENTNORM_FLOAT64, MOMENTNORM_FLOAT64, "float64");
  sweep<BFloat16, float>(MOMENTNORM_BFLOAT16, MOMENTNORM_FLOAT32, "bfloat16");
  sweep_pools<BFloat16, float>(MOMENTNORM_BFLOAT16, MOMENTNORM_FLOAT32, "bfloat16");
  sweep<Half, Half>(MOMENTNORM_FLOAT16, MOMENTNORM_FLOAT16, "float16");
  sweep_pools<Half, Half>(MOMENTNORM_FLOAT16, MOMENTNORM_FLOAT16, "float16");
  return report();
}
