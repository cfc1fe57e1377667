// Kernels for feature maps whose planes are contiguous. Compiled once for each instruction set,
// into a namespace of its own.
#include "coefficients.h"
#include "small_batches.h"
#include "small_groups.h"
#include "visit.h"

namespace MOMENTNORM_NAMESPACE {
namespace {

INLINE void no_close(int64_t) {}
INLINE void no_map(int64_t, int64_t, int64_t, int64_t) {}

// The kernels of element type E.
template <class E>
struct ChannelsFirst {
  using T = Compute<E>;

  static INLINE const E* in(const void* data) { return static_cast<const E*>(data); }
  static INLINE E* out(void* data) { return static_cast<E*>(data); }

  // Calls visit(fetch) with the prefetches that fit a pool. Pools up to 32 KB leave room for the
  // next pool and the result in the caches, and pools up to 128 KB for the result.
  template <class Visit>
  static INLINE void with_fetch(const Grid& grid, void* result, Visit visit) {
    const int64_t size = grid.pool_samples * grid.pool_channels * grid.size;
    const int64_t kilobytes = size * int64_t(sizeof(E)) >> 10;
    if (kilobytes <= 32) {
      visit(FetchBoth<E>{out(result), grid.pool_channels * grid.size * together(size)});
    } else if (kilobytes <= 128) {
      visit(FetchResult<E>{out(result)});
    } else {
      visit(NoFetch{});
    }
  }

  // Computes the moments of each plane. Then calls close() for each pool and map() for each block,
  // as visit.h describes.
  template <class Fetch, class Close, class Map>
  static INLINE void visit_moments(const ThreadPool& threads, const Grid& grid, const void* x,
                                   double* mean, double* var, Fetch fetch, Close close, Map map) {
    visit<Compute<E>, Partial>(
        threads, Pools(grid), grid.size,
        [=, &grid](int64_t plane, int64_t begin, int64_t count) {
          return origin_of(in(x) + plane * grid.size + begin, count);
        },
        [=, &grid](int64_t plane, int64_t begin, int64_t count, Compute<E> origin) {
          const int64_t at = plane * grid.size + begin;
          return moments_of(in(x) + at, count, origin, fetch.from(at));
        },
        [](Partial& into, const Partial& next) { into.merge(next); },
        [=](int64_t plane, const Partial& all) {
          mean[plane] = all.mean;
          var[plane] = all.m2 / all.count;
        },
        close, map);
  }

  // Makes the gradient of a block where pre_activation_gradient is the gradient of y.
  struct FromMemory {
    static constexpr bool kPlain = true;
    const E* g;
    INLINE DirectGradient<E> operator()(int64_t, int64_t i, void*) const { return {g + i}; }
  };
  // Makes the gradient of a block where pre_activation_gradient is computed through a tail.
  struct FromTail {
    static constexpr bool kPlain = false;
    const Tail& tail;
    const E *g, *x;
    const double *mean, *scale, *shift;
    INLINE ActivationGradient<E> operator()(int64_t plane, int64_t i,
                                            void* residual_gradient) const {
      return {tail,
              g + i,
              x + i,
              moved(in(tail.residual), i),
              moved(out(residual_gradient), i),
              mean[plane],
              scale[plane],
              shift[plane]};
    }
  };
  // Calls body(FromTail) or body(FromMemory).
  template <class Body>
  static INLINE void with_gradient(const Tail& tail, const void* g, const void* x,
                                   const double* mean, const double* scale, const double* shift,
                                   const void* residual_gradient, Body body) {
    if (goes_through_tail(tail, residual_gradient)) {
      body(FromTail{tail, in(g), in(x), mean, scale, shift});
    } else {
      body(FromMemory{in(g)});
    }
  }

  // Calls finish(plane, sums) with the sums of the gradient over each plane. Then calls close() for
  // each pool and map() for each block, as visit.h describes.
  template <class Gradient, class Finish, class Fetch, class Close, class Map>
  static INLINE void visit_gradient(const ThreadPool& threads, const Grid& grid, Gradient gradient,
                                    const void* x, const double* mean, Finish finish, Fetch fetch,
                                    Close close, Map map) {
    visit<int, GradientSums>(
        threads, Pools(grid), grid.size, [](int64_t, int64_t, int64_t) { return 0; },
        [=, &grid](int64_t plane, int64_t begin, int64_t count, int) {
          const int64_t at = plane * grid.size + begin;
          auto g = gradient(plane, at, nullptr);
          return gradient_sums_of(g, in(x) + at, count, mean[plane], fetch.from(at));
        },
        [](GradientSums& into, const GradientSums& next) {
          into.plain += next.plain;
          into.weighted += next.weighted;
        },
        finish, close, map);
  }

  static int32_t moments(const ThreadPool& threads, const Grid& grid, const void* x, double* mean,
                         double* var) {
    if (no_elements(grid, mean, var, __builtin_nan(""))) return MOMENTNORM_OK;
    visit_moments(threads, grid, x, mean, var, NoFetch{}, no_close, no_map);
    return MOMENTNORM_OK;
  }

  // Computes y of one block.
  template <class Fetch>
  static INLINE void map_forward(const Tail& tail, const void* x, void* y, int64_t i, int64_t count,
                                 double mean, double scale, double shift, Fetch fetch) {
    if (plain(tail)) {
      apply_to(in(x) + i, out(y) + i, count, mean, scale, shift, fetch);
    } else {
      apply_tail_to(in(x) + i, out(y) + i, count, mean, scale, shift, tail,
                    moved(in(tail.residual), i));
    }
  }

  static int32_t apply(const ThreadPool& threads, const Grid& grid, const Tail& tail, const void* x,
                       const double* mean, const double* scale, const double* shift, void* y) {
    visit_map(threads, planes(grid), grid.size,
              [=, &grid, &tail](int64_t plane, int64_t begin, int64_t count) {
                map_forward(tail, x, y, plane * grid.size + begin, count, mean[plane], scale[plane],
                            shift[plane], NoFetch{});
              });
    return MOMENTNORM_OK;
  }

  // Forward of small planes, by small_groups.h or small_batches.h.
  static int32_t normalize_small(const ThreadPool& threads, const Grid& grid, const Tail& tail,
                                 const void* x, const void* weight, const void* bias, double eps,
                                 void* y, double* mean, double* var) {
    const PlaceMaps<T> maps(grid, weight, bias);
    if (!maps.good()) return MOMENTNORM_NO_MEMORY;
    const Operands<E> operands = {
        tail,   true,    nullptr,          in(x),         in(tail.residual),
        out(y), nullptr, maps.weight.data, maps.bias.data};
    if (down_columns(grid)) {
      BatchColumns<E>(threads, grid).normalize(threads, operands, eps, mean, var);
      return MOMENTNORM_OK;
    }
    const Runs runs(grid);
    if (runs.length < kShortRun) {
      normalize_short_runs(threads, grid, operands, eps, mean, var);
      return MOMENTNORM_OK;
    }
    const Grid of_runs = grid_of_runs(grid);
    with_fetch(of_runs, y, [&](auto fetch) {
      visit_moments(threads, of_runs, x, mean, var, fetch, no_close,
                    [&](int64_t run, int64_t, int64_t begin, int64_t count) {
                      const int64_t sample = run / runs.per_sample;
                      const int64_t before = sample * runs.per_sample;
                      for (int64_t i = begin; i < begin + count; i += kChunk) {
                        const int64_t n = begin + count - i < kChunk ? begin + count - i : kChunk;
                        const int64_t first = (run - before) * runs.length + i;
                        map_runs(runs, operands.from(sample * runs.width + first, first),
                                 mean + before, var + before, eps, first, first + n);
                      }
                    });
    });
    return MOMENTNORM_OK;
  }

  // Backward of small planes, by small_groups.h or small_batches.h.
  static int32_t normalize_small_backward(const ThreadPool& threads, const Grid& grid,
                                          const Tail& tail, const void* g, const void* x,
                                          const double* mean, const double* var, const void* weight,
                                          const void* bias, double eps, void* dx,
                                          void* residual_gradient, void* dweight, void* dbias) {
    const PlaceMaps<T> maps(grid, weight, bias);
    const int64_t pools = Pools(grid).count;
    const int64_t blocks =
        down_columns(grid) ? grid.samples / grid.pool_samples : ceil_div(grid.samples, kRows);
    const Array<double> of_channels(2 * blocks * grid.channels);
    const Array<GradientSums> of_runs(pools);
    if (!maps.good() || of_channels.data == nullptr || of_runs.data == nullptr) {
      return MOMENTNORM_NO_MEMORY;
    }
    const Operands<E> operands = {tail,
                                  !goes_through_tail(tail, residual_gradient),
                                  in(g),
                                  in(x),
                                  in(tail.residual),
                                  out(dx),
                                  out(residual_gradient),
                                  maps.weight.data,
                                  maps.bias.data};
    if (down_columns(grid)) {
      BatchColumns<E>(threads, grid).backward(threads, operands, mean, var, eps, of_channels.data);
    } else {
      const Runs runs(grid);
      if (!runs.whole) {
        auto gradient = [&](int64_t run, int64_t at, const void*) {
          return WeightedGradient<E>(operands.from(at, at % runs.width),
                                     PoolNumbers<T>(mean[run], inverse_std(var[run], eps)));
        };
        visit_gradient(
            threads, grid_of_runs(grid), gradient, x, mean,
            [&](int64_t run, const GradientSums& all) { of_runs.data[run] = all; }, NoFetch{},
            no_close, no_map);
      }
      map_runs_backward(threads, grid, operands, mean, var, eps, of_runs.data, of_channels.data);
    }
    for (int64_t channel = 0; channel < grid.channels; ++channel) {
      double of_weight = 0, of_bias = 0;
      for (int64_t block = 0; block < blocks; ++block) {
        of_weight += of_channels.data[2 * block * grid.channels + channel];
        of_bias += of_channels.data[(2 * block + 1) * grid.channels + channel];
      }
      set_parameter(grid, dweight, channel, of_weight);
      set_parameter(grid, dbias, channel, of_bias);
    }
    return MOMENTNORM_OK;
  }

  static int32_t normalize(const ThreadPool& threads, const Grid& grid, const Tail& tail,
                           const void* x, const void* weight, const void* bias, double eps, void* y,
                           double* mean, double* var) {
    if (no_elements(grid, mean, var, __builtin_nan(""))) return MOMENTNORM_OK;
    if (along_runs(grid) || down_columns(grid)) {
      return normalize_small(threads, grid, tail, x, weight, bias, eps, y, mean, var);
    }
    const Pools pools(grid);
    const bool alone = pools.planes == 1;
    const Array<double> own(alone ? 0 : 2 * planes(grid));  // the moments of each plane
    if (own.data == nullptr) return MOMENTNORM_NO_MEMORY;
    double *const plane_mean = alone ? mean : own.data, *const plane_var =
                                                            alone ? var : own.data + planes(grid);
    auto close = [=, &pools](int64_t pool) {
      if (alone) return;
      const Moments all = pooled(plane_mean, plane_var, pools.planes, [=, &pools](int64_t i) {
        return pools.plane(pool * pools.planes + i);
      });
      mean[pool] = all.mean, var[pool] = all.var;
    };
    with_fetch(grid, y, [=, &threads, &grid, &tail](auto fetch) {
      visit_moments(threads, grid, x, plane_mean, plane_var, fetch, close,
                    [=, &grid, &tail](int64_t plane, int64_t pool, int64_t begin, int64_t count) {
                      const Forward k =
                          forward(grid, weight, bias, plane % grid.channels, var[pool], eps);
                      map_forward(tail, x, y, plane * grid.size + begin, count, mean[pool], k.scale,
                                  k.shift, fetch);
                    });
    });
    return MOMENTNORM_OK;
  }

  static int32_t normalize_with(const ThreadPool& threads, const Grid& grid, const Tail& tail,
                                const void* x, const void* mean, const void* var,
                                const void* weight, const void* bias, double eps, void* y) {
    if (grid.size == 0) return MOMENTNORM_OK;
    if (grid.size < kSmallPlane) {
      const PlaceMaps<T> maps(grid, weight, bias);
      if (!maps.good()) return MOMENTNORM_NO_MEMORY;
      const Operands<E> operands = {
          tail,   true,    nullptr,          in(x),         in(tail.residual),
          out(y), nullptr, maps.weight.data, maps.bias.data};
      Grid batch = grid;
      batch.pool_samples = grid.samples;
      BatchColumns<E>(threads, batch).normalize_with(threads, operands, eps, mean, var);
      return MOMENTNORM_OK;
    }
    visit_map(threads, planes(grid), grid.size,
              [=, &grid, &tail](int64_t plane, int64_t begin, int64_t count) {
                const int64_t channel = plane % grid.channels;
                const Forward k =
                    forward(grid, weight, bias, channel, parameter(grid, var, channel, 1), eps);
                map_forward(tail, x, y, plane * grid.size + begin, count,
                            parameter(grid, mean, channel, 0), k.scale, k.shift, NoFetch{});
              });
    return MOMENTNORM_OK;
  }

  static int32_t gradient_sums(const ThreadPool& threads, const Grid& grid, const Tail& tail,
                               const void* g, const void* x, const double* mean,
                               const double* scale, const double* shift, double* sums,
                               double* weighted_sums) {
    if (no_elements(grid, sums, weighted_sums, 0)) return MOMENTNORM_OK;
    with_gradient(tail, g, x, mean, scale, shift, nullptr, [=, &threads, &grid](auto gradient) {
      visit_gradient(
          threads, grid, gradient, x, mean,
          [=](int64_t plane, const GradientSums& all) {
            sums[plane] = all.plain, weighted_sums[plane] = all.weighted;
          },
          NoFetch{}, no_close, no_map);
    });
    return MOMENTNORM_OK;
  }

  static int32_t apply_gradient(const ThreadPool& threads, const Grid& grid, const Tail& tail,
                                const void* g, const void* x, const double* mean,
                                const double* scale, const double* shift, const double* a,
                                const double* b, const double* c, void* dx,
                                void* residual_gradient) {
    with_gradient(
        tail, g, x, mean, scale, shift, residual_gradient, [=, &threads, &grid](auto gradient) {
          visit_map(threads, planes(grid), grid.size,
                    [=, &grid](int64_t plane, int64_t begin, int64_t count) {
                      const int64_t at = plane * grid.size + begin;
                      auto of_block = gradient(plane, at, residual_gradient);
                      apply_gradient_to(of_block, in(x) + at, out(dx) + at, count, mean[plane],
                                        a[plane], b[plane], c[plane], NoFetch{});
                    });
        });
    return MOMENTNORM_OK;
  }

  static int32_t normalize_backward(const ThreadPool& threads, const Grid& grid, const Tail& tail,
                                    const void* g, const void* x, const double* mean,
                                    const double* var, const void* weight, const void* bias,
                                    double eps, void* dx, void* residual_gradient, void* dweight,
                                    void* dbias, double* sums, double* weighted_sums) {
    if (grid.size > 0 && (along_runs(grid) || down_columns(grid))) {
      return normalize_small_backward(threads, grid, tail, g, x, mean, var, weight, bias, eps, dx,
                                      residual_gradient, dweight, dbias);
    }
    const PlaneMaps maps(grid, goes_through_tail(tail, residual_gradient), weight, bias, mean, var,
                         eps);
    const PoolSums all(grid, sums, weighted_sums);
    if (!maps.good() || !all.good()) return MOMENTNORM_NO_MEMORY;
    auto finish = [&](int64_t plane, const GradientSums& sums) {
      all.plain[plane] = sums.plain, all.weighted[plane] = sums.weighted;
    };
    auto close = [&](int64_t pool) { all.close(grid, weight, maps, pool); };
    with_gradient(
        tail, g, x, maps.mean, maps.scale.data, maps.shift.data, residual_gradient,
        [&](auto gradient) {
          auto visit_with = [&](auto fetch) {
            visit_gradient(
                threads, grid, gradient, x, maps.mean, finish, fetch, close,
                [=, &grid, &maps, &all](int64_t plane, int64_t pool, int64_t begin, int64_t count) {
                  const int64_t at = plane * grid.size + begin;
                  const double a =
                      parameter(grid, weight, plane % grid.channels, 1) * maps.inverse.data[plane];
                  auto of_block = gradient(plane, at, residual_gradient);
                  apply_gradient_to(of_block, in(x) + at, out(dx) + at, count, maps.mean[plane], a,
                                    all.b.data[pool], all.c.data[pool], fetch);
                });
          };
          if (grid.size == 0) {
            all.set_to_zero(grid);
          } else if constexpr (decltype(gradient)::kPlain) {
            with_fetch(grid, dx, visit_with);
          } else {
            visit_with(NoFetch{});
          }
        });
    parameter_gradients(grid, maps.inverse.data, all.plain, all.weighted, dweight, dbias);
    return MOMENTNORM_OK;
  }

  static constexpr Kernels table() {
    return {moments,       apply,          normalize,         normalize_with,
            gradient_sums, apply_gradient, normalize_backward};
  }
};

}  // namespace

extern const Kernels kChannelsFirst[kDtypes];
const Kernels kChannelsFirst[kDtypes] = {
    ChannelsFirst<float>::table(), ChannelsFirst<double>::table(), ChannelsFirst<BFloat16>::table(),
    ChannelsFirst<Float16>::table()};

}  // namespace MOMENTNORM_NAMESPACE
