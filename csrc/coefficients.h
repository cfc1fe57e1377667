// What the kernels of every layout share: the numbers of one plane, between its two readings.
//
// No standard library in the kernels: an inline function of it, compiled with AVX-512 and shared by
// the linker, would crash an older processor.
#pragma once

#include "kernels.h"
#include "loops.h"

namespace MOMENTNORM_NAMESPACE {

INLINE int64_t planes(const Grid& grid) { return grid.samples * grid.channels; }

// The weight or bias of a channel.
INLINE double parameter(const Grid& grid, const void* values, int64_t channel, double otherwise) {
  if (values == nullptr) return otherwise;
  switch (grid.parameters) {
    case MOMENTNORM_FLOAT32:
      return double(static_cast<const float*>(values)[channel]);
    case MOMENTNORM_FLOAT64:
      return static_cast<const double*>(values)[channel];
    case MOMENTNORM_BFLOAT16:
      return double(get(static_cast<const BFloat16*>(values)[channel]));
    default:
      return double(get(static_cast<const Float16*>(values)[channel]));
  }
}

// 1 / sqrt(var + eps), and 0 rather than infinity for var = eps = 0, as torch has it.
INLINE double inverse_std(double var, double eps) {
  const double total = var + eps;
  return total == 0 ? 0 : 1 / __builtin_sqrt(total);
}

// y = (x - mean) * scale + shift
struct Forward {
  double scale, shift;
};
INLINE Forward forward(const Grid& grid, const void* weight, const void* bias, int64_t plane,
                       double var, double eps) {
  const int64_t channel = plane % grid.channels;
  return {parameter(grid, weight, channel, 1) * inverse_std(var, eps),
          parameter(grid, bias, channel, 0)};
}

// dx = a * gradient + b * (x - mean) + c
struct Backward {
  double a, b, c;
};
INLINE Backward backward(const Grid& grid, const void* weight, int64_t plane, double var,
                         double eps, double sum, double weighted_sum) {
  const double rstd = inverse_std(var, eps), size = double(grid.size);
  const double a = parameter(grid, weight, plane % grid.channels, 1) * rstd;
  // What flows through the variance, and through the mean.
  return {a, -a * rstd * rstd * (weighted_sum / size), -a * (sum / size)};
}

// Moments or sums of planes without elements: the mean of nothing is not a number.
INLINE bool no_elements(const Grid& grid, double* first, double* second, double value) {
  if (grid.size > 0) return false;
  for (int64_t plane = 0; plane < planes(grid); ++plane) first[plane] = second[plane] = value;
  return true;
}

}  // namespace MOMENTNORM_NAMESPACE
