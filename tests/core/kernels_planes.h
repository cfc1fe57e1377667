// Checks of the kernels with pools of one plane.
#pragma once

#include <random>

#include "kernels_support.h"

// One call of each kernel, with equal operands. run() makes the checks in order.
template <class E, class P>
struct PlaneCase {
  const momentnorm_grid grid;
  const double centre;
  const int64_t offset;
  const bool affine;
  const int32_t activation;
  const std::string label;
  const int64_t channels = grid.channels, size = grid.size;
  const int64_t planes = grid.samples * channels, count = planes * size;
  const double eps = 1e-5;

  std::mt19937 random{7};
  std::normal_distribution<double> normal{};
  Buffer<E> x{count, offset}, g{count, offset}, y{count, offset}, dx{count, offset};
  Buffer<E> residual{count, offset}, residual_gradient{count, offset};
  Buffer<P> weight{channels, offset}, bias{channels, offset};
  Buffer<P> dweight{channels, offset}, dbias{channels, offset};
  std::vector<double> mean = values(), var = values(), sums = values(), weighted = values();
  std::vector<double> scale = values(), shift = values(), b = values(), c = values();
  // Results of the separate kernels.
  Buffer<E> y2{count, offset}, dx2{count, offset}, residual_gradient2{count, offset};
  std::vector<double> mean2 = values(), var2 = values(), sums2 = values(), weighted2 = values();
  Results results = {};

  std::vector<double> values() const { return std::vector<double>(size_t(planes)); }
  int64_t at(int64_t p, int64_t i) const { return element(grid, p, i); }
  const P* w() const { return affine ? weight.data : nullptr; }
  const P* bb() const { return affine ? bias.data : nullptr; }

  void fill() {
    for (int64_t i = 0; i < count; ++i) x.data[i] = E(centre + normal(random));
    for (int64_t i = 0; i < count; ++i) g.data[i] = E(normal(random));
    for (int64_t i = 0; i < channels; ++i) {
      weight.data[i] = P(0.5 + double(i % 7)), bias.data[i] = P(-1.5 * double(i % 5));
    }
  }

  // The visits without a tail.
  void visit() {
    check(momentnorm_normalize(&grid, nullptr, x.data, w(), bb(), eps, y.data, mean.data(),
                               var.data()) == 0,
          label + " status");
    check(momentnorm_normalize_backward(&grid, nullptr, g.data, x.data, mean.data(), var.data(),
                                        w(), bb(), eps, dx.data, nullptr, dweight.data, dbias.data,
                                        sums.data(), weighted.data()) == 0,
          label + " status");
    results.add(dweight.data, channels), results.add(dbias.data, channels);
    results.add(y.data, count), results.add(dx.data, count);
    for (auto* numbers : {&mean, &var, &sums, &weighted}) results.add(numbers->data(), planes);
  }

  void compare_plane(int64_t p) {
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
    const long double bias_of_plane = affine ? (long double)double(bias.data[p % channels]) : 0;
    const long double rstd = 1 / std::sqrt(v + eps);
    // A double mean is rounded relative to its own size. Relative to float it has 29 bits to spare,
    // and sums have a few roundings of float, relative to their terms.
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
      const long double d = xs[i] - m, factor = ww * rstd;
      good &= near(y.data[at(p, i)], d * factor + bias_of_plane, factor * (std::fabs(d) + far));
      const long double wanted = factor * (gs[i] - s / size - d * rstd * rstd * t / size);
      good &= near(dx.data[at(p, i)], wanted, factor * 5 * (1 + far * rstd));
    }
    check(good, label + " y, dx");
  }

  void set_coefficients() {
    for (int64_t p = 0; p < planes; ++p) {
      const double rstd = 1 / std::sqrt(var[p] + eps);
      scale[p] = (affine ? double(weight.data[p % channels]) : 1) * rstd;
      shift[p] = affine ? double(bias.data[p % channels]) : 0;
      b[p] = -scale[p] * rstd * rstd * (weighted[p] / double(size));
      c[p] = -scale[p] * (sums[p] / double(size));
    }
  }

  // The separate kernels have the bits of the visits.
  void separate_kernels() {
    momentnorm_moments(&grid, x.data, mean2.data(), var2.data());
    momentnorm_gradient_sums(&grid, nullptr, g.data, x.data, mean.data(), nullptr, nullptr,
                             sums2.data(), weighted2.data());
    set_coefficients();
    momentnorm_apply(&grid, nullptr, x.data, mean.data(), scale.data(), shift.data(), y2.data);
    momentnorm_apply_gradient(&grid, nullptr, g.data, x.data, mean.data(), nullptr, nullptr,
                              scale.data(), b.data(), c.data(), dx2.data, nullptr);
    check(mean == mean2 && var == var2 && sums == sums2 && weighted == weighted2 && y == y2 &&
              dx == dx2,
          label + " separate kernels");
  }

  // The forward with given moments, which are its own here.
  void given_moments() {
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

  // The visits with a tail. residual_gradient is compared, and so are the sums from it.
  void visit_tail(const momentnorm_tail& tail, bool compare) {
    momentnorm_normalize(&grid, &tail, x.data, w(), bb(), eps, y.data, mean2.data(), var2.data());
    momentnorm_normalize_backward(&grid, &tail, g.data, x.data, mean.data(), var.data(), w(), bb(),
                                  eps, dx.data, residual_gradient.data, dweight.data, dbias.data,
                                  sums.data(), weighted.data());
    results.add(y.data, count), results.add(dx.data, count);
    results.add(residual_gradient.data, count);
    results.add(dweight.data, channels), results.add(dbias.data, channels);
    bool good = mean == mean2 && var == var2;
    for (int64_t p = 0; compare && p < planes; ++p) good &= compare_tail(tail, p);
    check(good, label + " activation " + std::to_string(activation));
  }

  bool compare_tail(const momentnorm_tail& tail, int64_t p) {
    bool good = true;
    long double s = 0;
    for (int64_t i = 0; i < size; ++i) {
      const int64_t k = at(p, i);
      const long double d = (long double)double(x.data[k]) - mean[p];
      const long double r = tail.residual != nullptr ? (long double)double(residual.data[k]) : 0;
      const long double pre_activation = d * scale[p] + shift[p] + r;
      const Activated wanted = activated(tail, pre_activation);
      const long double step = double(g.data[k]) * wanted.slope;
      const long double largest = 4 + std::fabs(shift[p]) + scale[p] * (std::fabs(d) + 1);
      good &= near(y.data[k], wanted.value, largest);
      // At the corner of a ReLU both slopes are right.
      const bool corner = std::fabs(pre_activation) < 1e-5;
      good &=
          corner || near(residual_gradient.data[k], step, std::fabs(double(g.data[k])) * largest);
      s += step;
    }
    if (activation != MOMENTNORM_RELU && activation != MOMENTNORM_LEAKY_RELU) {
      good &= std::fabs(sums[p] - s) <= 64 * kUnit<E> * size * (8 + std::fabs(shift[p]));
    }
    return good;
  }

  // The separate kernels with a tail have the bits of the visits.
  void separate_kernels_with_tail(const momentnorm_tail& tail) {
    momentnorm_gradient_sums(&grid, &tail, g.data, x.data, mean.data(), scale.data(), shift.data(),
                             sums2.data(), weighted2.data());
    set_coefficients();
    momentnorm_apply(&grid, &tail, x.data, mean.data(), scale.data(), shift.data(), y2.data);
    momentnorm_apply_gradient(&grid, &tail, g.data, x.data, mean.data(), scale.data(), shift.data(),
                              scale.data(), b.data(), c.data(), dx2.data, residual_gradient2.data);
    check(sums == sums2 && weighted == weighted2 && y == y2 && dx == dx2 &&
              residual_gradient == residual_gradient2,
          label + " separate kernels with a tail");
  }

  // Outputs in the memory of inputs: residual_gradient over the gradient of y, dx over x.
  void in_place(const momentnorm_tail& tail) {
    Buffer<E> x2(count, offset);
    std::memcpy(x2.data, x.data, size_t(count) * sizeof(E));
    momentnorm_normalize(&grid, &tail, x2.data, w(), bb(), eps, x2.data, mean2.data(), var2.data());
    check(x2 == y, label + " in place");
    momentnorm_normalize_backward(&grid, &tail, g.data, x.data, mean.data(), var.data(), w(), bb(),
                                  eps, x.data, g.data, dweight.data, dbias.data, sums2.data(),
                                  weighted2.data());
    check(x == dx && g == residual_gradient && sums == sums2, label + " gradients in place");
  }

  Results run(bool compare) {
    fill();
    visit();
    for (int64_t p = 0; compare && p < planes; ++p) compare_plane(p);
    separate_kernels();
    if (grid.samples == 1 && !affine) given_moments();
    for (int64_t i = 0; i < count; ++i) residual.data[i] = E(normal(random));
    const bool adds = affine || activation == MOMENTNORM_IDENTITY;
    const momentnorm_tail tail = {activation, 0.125, adds ? residual.data : nullptr};
    visit_tail(tail, compare);
    separate_kernels_with_tail(tail);
    in_place(tail);
    return results;
  }
};
