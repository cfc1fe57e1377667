// Coefficients: the numbers of a plane and of its pool that are computed between the two readings
// of the plane. Both layouts use them.
//
// The kernels use no C++ standard library. The linker keeps one copy of its inline functions, and a
// copy compiled for AVX-512 would crash on an older processor.
#pragma once

#include "../kernel_table.h"
#include "array.h"
#include "plane_map.h"

namespace MOMENTNORM_NAMESPACE {

INLINE int64_t planes(const Grid& grid) { return grid.samples * grid.channels; }

// The pools of a grid and their planes. The planes of pool p are plane(p * planes + i), sample
// after sample.
struct Pools {
  int64_t samples, channels;  // of a pool
  int64_t planes;             // of a pool
  int64_t across, count;      // pools over the channels, and pools in total
  explicit INLINE Pools(const Grid& grid)
      : samples(grid.pool_samples),
        channels(grid.pool_channels),
        planes(samples * channels),
        across(grid.channels / channels),
        count(grid.samples / samples * across) {}
  INLINE int64_t plane(int64_t i) const {
    if (samples == 1) return i;
    const int64_t pool = i / planes, member = i % planes;
    const int64_t sample = pool / across * samples + member / channels;
    return sample * (across * channels) + pool % across * channels + member % channels;
  }
  INLINE int64_t of(int64_t plane) const {
    if (samples == 1) return plane / channels;
    const int64_t sample = plane / (across * channels), channel = plane % (across * channels);
    return sample / samples * across + channel / channels;
  }
};

// The value of a parameter for a channel, or `otherwise` where there is no parameter.
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

// Stores the value of a parameter, or of its gradient, for a channel.
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

// 1 / sqrt(var + eps), and 0 instead of infinity for var = eps = 0, like torch.
INLINE double inverse_std(double var, double eps) {
  const double total = var + eps;
  return total == 0 ? 0 : 1 / __builtin_sqrt(total);
}

// The moments of a pool of `count` planes: E[mean_i] and E[var_i] + Var[mean_i], where plane(i) is
// the index of plane i. Equal means are pooled exactly.
struct Moments {
  double mean, var;
};
template <class Plane>
INLINE Moments pooled(const double* mean, const double* var, int64_t count, Plane plane) {
  const double first = mean[plane(0)];
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += mean[plane(i)] - first;
  const double centre = first + sum / double(count);
  double spread = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double offset = mean[plane(i)] - centre;
    spread += var[plane(i)] + offset * offset;
  }
  return {centre, spread / double(count)};
}

// Coefficients of y = (x - mean) * scale + shift.
struct Forward {
  double scale, shift;
};
INLINE Forward forward(const Grid& grid, const void* weight, const void* bias, int64_t channel,
                       double var, double eps) {
  return {parameter(grid, weight, channel, 1) * inverse_std(var, eps),
          parameter(grid, bias, channel, 0)};
}

// The part of one plane in b and c of dx = a * gradient + b * (x - mean) + c. The coefficients of a
// pool are the sums over its planes. b comes from the variance, c from the mean.
struct Backward {
  double b, c;
};
INLINE Backward backward(const Grid& grid, const void* weight, int64_t channel, double rstd,
                         double count, double sum, double weighted_sum) {
  const double a = parameter(grid, weight, channel, 1) * rstd;
  return {-a * rstd * rstd * (weighted_sum / count), -a * (sum / count)};
}

// Operands of a backward for each plane: mean and inverse standard deviation of its pool. With a
// tail, scale and shift of its affine map as well.
struct PlaneMaps {
  Array<double> own_mean, inverse, scale, shift;
  const double* mean;
  INLINE PlaneMaps(const Grid& grid, bool with_tail, const void* weight, const void* bias,
                   const double* pool_mean, const double* var, double eps)
      : own_mean(alone(grid) ? 0 : planes(grid)),
        inverse(planes(grid)),
        scale(with_tail ? planes(grid) : 0),
        shift(with_tail ? planes(grid) : 0),
        mean(alone(grid) ? pool_mean : own_mean.data) {
    if (!good()) return;
    if (alone(grid)) {
      for (int64_t i = 0; i < planes(grid); ++i) inverse.data[i] = inverse_std(var[i], eps);
    } else {
      const Pools pools(grid);
      for (int64_t pool = 0; pool < pools.count; ++pool) {
        const double rstd = inverse_std(var[pool], eps);
        for (int64_t i = 0; i < pools.planes; ++i) {
          const int64_t plane = pools.plane(pool * pools.planes + i);
          own_mean.data[plane] = pool_mean[pool];
          inverse.data[plane] = rstd;
        }
      }
    }
    for (int64_t plane = 0; with_tail && plane < planes(grid); ++plane) {
      const int64_t channel = plane % grid.channels;
      scale.data[plane] = parameter(grid, weight, channel, 1) * inverse.data[plane];
      shift.data[plane] = parameter(grid, bias, channel, 0);
    }
  }
  // Whether each pool is one plane.
  static INLINE bool alone(const Grid& grid) { return Pools(grid).planes == 1; }
  INLINE bool good() const {
    return own_mean.data != nullptr && inverse.data != nullptr && scale.data != nullptr &&
           shift.data != nullptr;
  }
};

// Sums of a gradient over each plane, and the coefficients b and c of each pool. The sums are in
// the caller's memory, or in an own array where the caller passes none.
struct PoolSums {
  Array<double> own, b, c;
  double *plain, *weighted;
  INLINE PoolSums(const Grid& grid, double* sums, double* weighted_sums)
      : own(sums == nullptr ? 2 * planes(grid) : 0),
        b(Pools(grid).count),
        c(Pools(grid).count),
        plain(sums == nullptr ? own.data : sums),
        weighted(sums == nullptr ? own.data + planes(grid) : weighted_sums) {}
  INLINE bool good() const { return own.data != nullptr && b.data != nullptr && c.data != nullptr; }
  INLINE void set_to_zero(const Grid& grid) const {
    for (int64_t plane = 0; plane < planes(grid); ++plane) plain[plane] = weighted[plane] = 0;
  }
  // Computes b and c of a pool, after the sums of all its planes.
  INLINE void close(const Grid& grid, const void* weight, const PlaneMaps& maps,
                    int64_t pool) const {
    const Pools pools(grid);
    const double count = double(pools.planes * grid.size);
    for (int64_t i = 0; i < pools.planes; ++i) {
      const int64_t plane = pools.plane(pool * pools.planes + i);
      const Backward k = backward(grid, weight, plane % grid.channels, maps.inverse.data[plane],
                                  count, plain[plane], weighted[plane]);
      b.data[pool] = i == 0 ? k.b : b.data[pool] + k.b;
      c.data[pool] = i == 0 ? k.c : c.data[pool] + k.c;
    }
  }
};

// Computes dweight and dbias from the sums of each plane, in the order of the samples.
inline void parameter_gradients(const Grid& grid, const double* inverse, const double* sums,
                                const double* weighted_sums, void* dweight, void* dbias) {
  constexpr int kTogether = 64;
  for (int64_t first = 0; first < grid.channels; first += kTogether) {
    const int64_t rest = grid.channels - first, count = rest < kTogether ? rest : kTogether;
    double of_weight[kTogether] = {}, of_bias[kTogether] = {};
    for (int64_t sample = 0; sample < grid.samples; ++sample) {
      const int64_t at = sample * grid.channels + first;
      for (int64_t i = 0; i < count; ++i) {
        of_weight[i] += weighted_sums[at + i] * inverse[at + i];
        of_bias[i] += sums[at + i];
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      set_parameter(grid, dweight, first + i, of_weight[i]);
      set_parameter(grid, dbias, first + i, of_bias[i]);
    }
  }
}

// Sets both results of each pool to `value` if planes have no elements, and returns whether they
// do.
INLINE bool no_elements(const Grid& grid, double* first, double* second, double value) {
  if (grid.size > 0) return false;
  const int64_t count = Pools(grid).count;
  for (int64_t pool = 0; pool < count; ++pool) first[pool] = second[pool] = value;
  return true;
}

}  // namespace MOMENTNORM_NAMESPACE
