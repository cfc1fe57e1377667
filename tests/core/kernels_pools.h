// Checks of the kernels with pools of several planes.
#pragma once

#include <random>

#include "kernels_support.h"

// A forward and a backward, with a residual and an activation or without. run() makes the checks.
template <class E, class P>
struct PoolCase {
  const momentnorm_grid grid;
  const double centre;
  const int64_t offset;
  const int32_t activation;
  const std::string label;
  const int64_t channels = grid.channels, size = grid.size;
  const int64_t planes = grid.samples * channels, count = planes * size;
  const int64_t across = channels / grid.pool_channels;
  const int64_t pools = grid.samples / grid.pool_samples * across;
  const double eps = 1e-5;
  const bool plain = activation == MOMENTNORM_IDENTITY;

  Buffer<E> x{count, offset}, g{count, offset}, residual{count, offset}, y{count, offset};
  Buffer<E> dx{count, offset}, residual_gradient{count, offset};
  Buffer<P> weight{channels, offset}, bias{channels, offset};
  Buffer<P> dweight{channels, offset}, dbias{channels, offset};
  std::vector<double> mean = std::vector<double>(size_t(pools)), var = mean;
  momentnorm_tail tail = {activation, 0.125, plain ? nullptr : residual.data};
  // Exact results of pools and channels: moments, sums of w * g and w * g * (x - mean), gradients.
  using Exact = std::vector<long double>;
  Exact m = Exact(size_t(pools)), v = m, s = m, t = m;
  Exact dw = Exact(size_t(channels)), db = dw;

  int64_t pool_of(int64_t p) const {
    return p / channels / grid.pool_samples * across + p % channels / grid.pool_channels;
  }
  // Calls body(plane, pool, element) for all elements.
  template <class Body>
  void each(Body body) const {
    for (int64_t p = 0; p < planes; ++p) {
      for (int64_t i = 0; i < size; ++i) body(p, pool_of(p), element(grid, p, i));
    }
  }
  long double centred(int64_t pool, int64_t k) const {
    return (long double)double(x.data[k]) - m[pool];
  }
  long double rstd(int64_t pool) const { return 1 / std::sqrt(v[pool] + eps); }
  long double weight_of(int64_t p) const { return double(weight.data[p % channels]); }
  long double pre_activation(int64_t p, int64_t pool, int64_t k) const {
    return centred(pool, k) * rstd(pool) * weight_of(p) + double(bias.data[p % channels]) +
           (plain ? 0 : double(residual.data[k]));
  }
  long double pre_activation_gradient(int64_t p, int64_t pool, int64_t k) const {
    return double(g.data[k]) * activated(tail, pre_activation(p, pool, k)).slope;
  }

  void fill() {
    std::mt19937 random(11);
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < count; ++i) {
      x.data[i] = E(centre + normal(random)), g.data[i] = E(normal(random));
      residual.data[i] = E(normal(random));
    }
    for (int64_t i = 0; i < channels; ++i) {
      weight.data[i] = P(0.5 + double(i % 7)), bias.data[i] = P(-1.5 * double(i % 5));
    }
  }

  Results visit() {
    E* const wanted_residual_gradient = plain ? nullptr : residual_gradient.data;
    check(momentnorm_normalize(&grid, &tail, x.data, weight.data, bias.data, eps, y.data,
                               mean.data(), var.data()) == 0 &&
              momentnorm_normalize_backward(&grid, &tail, g.data, x.data, mean.data(), var.data(),
                                            weight.data, bias.data, eps, dx.data,
                                            wanted_residual_gradient, dweight.data, dbias.data,
                                            nullptr, nullptr) == 0,
          label + " status");
    Results results;
    results.add(y.data, count), results.add(dx.data, count);
    results.add(dweight.data, channels), results.add(dbias.data, channels);
    results.add(mean.data(), pools), results.add(var.data(), pools);
    if (!plain) results.add(residual_gradient.data, count);
    return results;
  }

  void compute_exact() {
    const long double n = grid.pool_samples * grid.pool_channels * size;
    each([&](int64_t, int64_t pool, int64_t k) { m[pool] += double(x.data[k]); });
    for (long double& value : m) value /= n;
    each([&](int64_t, int64_t pool, int64_t k) { v[pool] += centred(pool, k) * centred(pool, k); });
    for (long double& value : v) value /= n;
    each([&](int64_t p, int64_t pool, int64_t k) {
      const long double d = centred(pool, k), h = pre_activation_gradient(p, pool, k);
      s[pool] += weight_of(p) * h, t[pool] += weight_of(p) * h * d;
      dw[p % channels] += h * d * rstd(pool), db[p % channels] += h;
    });
  }

  // Tolerances are those of kernels_planes.h, for sums of more terms.
  void compare() {
    compute_exact();
    const long double n = grid.pool_samples * grid.pool_channels * size;
    const long double far = sizeof(E) == 8 ? 3 + std::fabs(centre) : 0.25;
    bool good = true;
    each([&](int64_t p, int64_t pool, int64_t k) {
      const long double d = centred(pool, k), r = rstd(pool), w = weight_of(p);
      good &= near(y.data[k], activated(tail, pre_activation(p, pool, k)).value,
                   4 + w * r * (std::fabs(d) + far) + 8);
      const long double wanted = w * r * pre_activation_gradient(p, pool, k) - r * (s[pool] / n) -
                                 d * r * r * r * (t[pool] / n);
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

  // Outputs in the memory of inputs.
  void in_place() {
    Buffer<E> x2(count, offset);
    std::memcpy(x2.data, x.data, size_t(count) * sizeof(E));
    momentnorm_normalize(&grid, &tail, x2.data, weight.data, bias.data, eps, x2.data, mean.data(),
                         var.data());
    check(x2 == y, label + " in place");
    momentnorm_normalize_backward(&grid, &tail, g.data, x.data, mean.data(), var.data(),
                                  weight.data, bias.data, eps, x.data, plain ? nullptr : g.data,
                                  dweight.data, dbias.data, nullptr, nullptr);
    check(x == dx && (plain || g == residual_gradient), label + " gradients in place");
  }

  Results run(bool compares) {
    fill();
    Results results = visit();
    if (compares) compare();
    in_place();
    return results;
  }
};
