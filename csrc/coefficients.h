// What the kernels of every layout share: the numbers of one plane, between its two readings.
//
// No standard library in the kernels: an inline function of it, compiled with AVX-512 and shared by
// the linker, would crash an older processor.
#pragma once

#include <stdlib.h>

#include "kernels.h"
#include "loops.h"

namespace MOMENTNORM_NAMESPACE {

INLINE int64_t planes(const Grid& grid) { return grid.samples * grid.channels; }

// Memory from malloc, freed at the end of the scope.
template <class T>
struct Array {
  T* data;
  explicit INLINE Array(int64_t count)
      : data(static_cast<T*>(malloc(size_t(count > 0 ? count : 1) * sizeof(T)))) {}
  INLINE ~Array() { free(data); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
};

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

INLINE void set_parameter(const Grid& grid, void* values, int64_t channel, double value) {
  switch (grid.parameters) {
    case MOMENTNORM_FLOAT32:
      static_cast<float*>(values)[channel] = float(value);
      break;
    case MOMENTNORM_FLOAT64:
      static_cast<double*>(values)[channel] = value;
      break;
    case MOMENTNORM_BFLOAT16:
      static_cast<BFloat16*>(values)[channel] = put<BFloat16>(float(value));
      break;
    default:
      static_cast<Float16*>(values)[channel] = put<Float16>(float(value));
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

// The affine map of each plane: what a gradient through the tail of a normalization needs.
struct PlaneMaps {
  Array<double> scale, shift;
  INLINE PlaneMaps(const Grid& grid, bool needed, const void* weight, const void* bias,
                   const double* var, double eps)
      : scale(needed ? planes(grid) : 0), shift(needed ? planes(grid) : 0) {
    for (int64_t plane = 0; good() && needed && plane < planes(grid); ++plane) {
      const Forward k = forward(grid, weight, bias, plane, var[plane], eps);
      scale.data[plane] = k.scale;
      shift.data[plane] = k.shift;
    }
  }
  INLINE bool good() const { return scale.data != nullptr && shift.data != nullptr; }
};

// What belongs to the channels: dweight and dbias from the sums over planes, sample after sample.
inline void parameter_gradients(const Grid& grid, const double* var, double eps, const double* sums,
                                const double* weighted_sums, void* dweight, void* dbias) {
  constexpr int kTogether = 64;
  for (int64_t first = 0; first < grid.channels; first += kTogether) {
    const int64_t rest = grid.channels - first, count = rest < kTogether ? rest : kTogether;
    double of_weight[kTogether] = {}, of_bias[kTogether] = {};
    for (int64_t sample = 0; sample < grid.samples; ++sample) {
      const int64_t at = sample * grid.channels + first;
      for (int64_t i = 0; i < count; ++i) {
        of_weight[i] += weighted_sums[at + i] * inverse_std(var[at + i], eps);
        of_bias[i] += sums[at + i];
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      set_parameter(grid, dweight, first + i, of_weight[i]);
      set_parameter(grid, dbias, first + i, of_bias[i]);
    }
  }
}

// Moments or sums of planes without elements: the mean of nothing is not a number.
INLINE bool no_elements(const Grid& grid, double* first, double* second, double value) {
  if (grid.size > 0) return false;
  for (int64_t plane = 0; plane < planes(grid); ++plane) first[plane] = second[plane] = value;
  return true;
}

}  // namespace MOMENTNORM_NAMESPACE
