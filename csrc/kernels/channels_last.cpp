// Kernels for feature maps that are channels_last. Compiled once for each instruction set, into a
// namespace of its own.
//
// Samples that share their statistics are contiguous in memory, and count as one longer sample.
// Channels that share their statistics are pooled after the sums of a sample. visit_samples.h
// visits the samples.
#include "visit_samples.h"

namespace MOMENTNORM_NAMESPACE {
namespace {

// The kernels of element type E.
template <class E>
struct ChannelsLast {
  using T = Compute<E>;

  static INLINE const E* in(const void* data) { return static_cast<const E*>(data); }
  static INLINE E* out(void* data) { return static_cast<E*>(data); }

  // The grid in which the samples of a pool are one sample.
  static INLINE Grid folded(const Grid& grid) {
    Grid fewer = grid;
    fewer.samples /= grid.pool_samples;
    fewer.size *= grid.pool_samples;
    fewer.pool_samples = 1;
    return fewer;
  }

  // Index of the first element of a block.
  static INLINE int64_t element(const Rows& shape, int64_t sample, int64_t block) {
    return sample * shape.size * shape.channels + shape.offset(block);
  }

  // Stores the coefficients of a channel for each of its columns: the mean as T, and three more.
  static INLINE void spread(const Rows& shape, T* coefficients, int64_t channel, double mean,
                            double first, double second, double third) {
    for (int64_t column = channel; column < shape.width; column += shape.channels) {
      coefficients[column] = T(mean);
      coefficients[column + shape.width] = T(first);
      coefficients[column + 2 * shape.width] = T(second);
      coefficients[column + 3 * shape.width] = T(third);
    }
  }

  static INLINE void spread_forward(const Rows& shape, T* coefficients, int64_t channel,
                                    double mean, double scale, double shift) {
    spread(shape, coefficients, channel, mean, scale, Split<T>(mean).shift_about_high(scale, shift),
           0);
  }

  static INLINE void spread_backward(const Rows& shape, T* coefficients, int64_t channel,
                                     double mean, double a, double b, double c) {
    spread(shape, coefficients, channel, mean, a, b, Split<T>(mean).shift_about_high(b, c));
  }

  // y = activation((x - mean) * scale + shift + residual) over a block.
  static INLINE void map_forward(const Rows& shape, const Tail& tail, const E* x, const E* residual,
                                 E* y, int64_t block, const T* coefficients,
                                 const Scratch<T>& scratch) {
    struct Held {
      Vec<T> mean, scale, shift;
    };
    const T *const mean = coefficients, *const scale = mean + shape.width,
                   *const shift = scale + shape.width;
    auto one = [=](int64_t i, int64_t channel) {
      return (get(x[i]) - mean[channel]) * scale[channel] + shift[channel];
    };
    if (plain(tail)) {
      map_rows<T>(
          shape, block,
          [=](int64_t column) {
            return Held{load(mean + column), load(scale + column), load(shift + column)};
          },
          [](int64_t, int64_t) {},
          [=](int64_t i, const Held& k) {
            fetch_ahead(x + i);
            fetch_ahead_for_writing(y + i);
            store(y + i, (load(x + i) - k.mean) * k.scale + k.shift);
          },
          [=](int64_t i, int64_t channel) { y[i] = put<E>(one(i, channel)); });
      return;
    }
    map_tiles(
        shape, block,
        [=, &shape, &tail](int64_t i, int64_t rows) {
          affine_rows(x + i, moved(residual, i), scratch.tile, rows, shape.width, mean, scale,
                      shift);
          activate(tail, scratch.tile, y + i, rows * shape.width);
        },
        [=, &tail](int64_t i, int64_t channel) {
          T pre_activation = one(i, channel);
          if (residual != nullptr) pre_activation += get(residual[i]);
          activate(tail, &pre_activation, y + i, 1);
        });
  }

  // dx = a * g + b * (x - mean) + c over a block. With b = 0 the result does not depend on x, even
  // where x or the mean is not finite.
  template <class Gradient>
  static INLINE void map_backward(const Rows& shape, Gradient g, const E* x, E* dx, int64_t block,
                                  const T* coefficients) {
    struct Held {
      Vec<T> mean, a, b, c;
    };
    map_rows<T>(
        shape, block,
        [=](int64_t column) {
          const T* const at = coefficients + column;
          return Held{load(at), load(at + shape.width), load(at + 2 * shape.width),
                      load(at + 3 * shape.width)};
        },
        [&](int64_t i, int64_t rows) { g.prepare(i, rows); },
        [&](int64_t i, const Held& k) {
          fetch_ahead(x + i);
          g.fetch_ahead(i);
          fetch_ahead_for_writing(dx + i);
          const Vec<T> of_x = (load(x + i) - k.mean) * k.b + k.c;
          store(dx + i, load(g.at(i)) * k.a + (k.b == 0 ? k.c : of_x));
        },
        [&](int64_t i, int64_t channel) {
          const T* const at = coefficients + channel;
          const T b = at[2 * shape.width], c = at[3 * shape.width];
          dx[i] = put<E>(g.one(i, channel) * at[shape.width] +
                         (b == 0 ? c : (get(x[i]) - at[0]) * b + c));
        });
  }

  // Computes the moments of each pool. Then calls finish(shape, pool, first channel, coefficients)
  // for each pool, and map() for each block.
  template <class Finish, class Map>
  static INLINE int32_t visit_moments(const ThreadPool& threads, const Grid& grid, const void* x,
                                      double* mean, double* var, bool with_tile, Finish finish,
                                      Map map) {
    if (no_elements(grid, mean, var, __builtin_nan(""))) return MOMENTNORM_OK;
    const Rows shape(grid.channels, grid.size);
    return visit_samples<E>(
        threads, grid.samples, shape, with_tile,
        [&](int64_t sample, int64_t block, double* partial, const Scratch<T>& scratch) {
          moments_of_block(in(x) + element(shape, sample, block), shape, block, partial,
                           partial + shape.channels, scratch);
        },
        [&](double* into, const double* next, int64_t block) {
          const double before = double(shape.first(block) * shape.pixels);
          const double count = double(shape.pixels_in(block));
          for (int64_t channel = 0; channel < shape.channels; ++channel) {
            Partial all = {before, into[channel], into[channel + shape.channels]};
            all.merge({count, next[channel], next[channel + shape.channels]});
            into[channel] = all.mean;
            into[channel + shape.channels] = all.m2;
          }
        },
        [&](int64_t sample, double* partial, T* coefficients) {
          double* const of_plane = partial + shape.channels;
          for (int64_t channel = 0; channel < shape.channels; ++channel) {
            of_plane[channel] /= double(shape.size);
          }
          const int64_t together = grid.pool_channels;
          for (int64_t first = 0; first < shape.channels; first += together) {
            const int64_t pool = (sample * shape.channels + first) / together;
            const Moments all = together == 1 ? Moments{partial[first], of_plane[first]}
                                              : pooled(partial, of_plane, together,
                                                       [=](int64_t i) { return first + i; });
            mean[pool] = all.mean;
            var[pool] = all.var;
            finish(shape, pool, first, coefficients);
          }
        },
        [&](int64_t sample, int64_t block, const T* coefficients, const Scratch<T>& scratch) {
          map(shape, sample, block, coefficients, scratch);
        });
  }

  // Makes the gradient of a block where pre_activation_gradient is the gradient of y.
  struct FromMemory {
    static constexpr bool kPlain = true;
    const E* g;
    INLINE DirectGradientRows<E> operator()(const Rows& shape, int64_t sample, int64_t block, void*,
                                            const Scratch<T>&) const {
      return {g + element(shape, sample, block)};
    }
  };
  // Makes the gradient of a block where pre_activation_gradient is computed through a tail.
  struct FromTail {
    static constexpr bool kPlain = false;
    const Tail& tail;
    const E *g, *x;
    const double *mean, *scale, *shift;
    INLINE ActivationGradientRows<E> operator()(const Rows& shape, int64_t sample, int64_t block,
                                                void* residual_gradient,
                                                const Scratch<T>& scratch) const {
      for (int64_t column = 0; column < shape.width; ++column) {
        const int64_t plane = sample * shape.channels + column % shape.channels;
        const Split<T> centre(mean[plane]);
        scratch.mean[column] = centre.high;
        scratch.scale[column] = T(scale[plane]);
        scratch.shift[column] = centre.shift_about_high(scale[plane], shift[plane]);
      }
      const int64_t at = element(shape, sample, block);
      return {tail,
              g + at,
              x + at,
              moved(in(tail.residual), at),
              moved(out(residual_gradient), at),
              shape.width,
              scratch,
              0};
    }
  };
  // Calls body(FromTail) or body(FromMemory).
  template <class Body>
  static INLINE int32_t with_gradient(const Tail& tail, const void* g, const void* x,
                                      const double* mean, const double* scale, const double* shift,
                                      const void* residual_gradient, Body body) {
    if (goes_through_tail(tail, residual_gradient)) {
      return body(FromTail{tail, in(g), in(x), mean, scale, shift});
    }
    return body(FromMemory{in(g)});
  }

  // Computes the sums of the gradient over each plane. Then calls finish(shape, sample,
  // coefficients) for each sample, and map() for each block.
  template <class Gradient, class Finish, class Map>
  static INLINE int32_t visit_gradient(const ThreadPool& threads, const Grid& grid,
                                       Gradient gradient, const void* x, const double* mean,
                                       double* sums, double* weighted_sums, Finish finish,
                                       Map map) {
    if (grid.size == 0) {
      memset(sums, 0, size_t(planes(grid)) * sizeof(double));
      memset(weighted_sums, 0, size_t(planes(grid)) * sizeof(double));
      return MOMENTNORM_OK;
    }
    const Rows shape(grid.channels, grid.size);
    return visit_samples<E>(
        threads, grid.samples, shape, !Gradient::kPlain,
        [&](int64_t sample, int64_t block, double* partial, const Scratch<T>& scratch) {
          auto g = gradient(shape, sample, block, nullptr, scratch);
          gradient_sums_of_block(g, in(x) + element(shape, sample, block), shape, block,
                                 mean + sample * shape.channels, partial, partial + shape.channels,
                                 scratch);
        },
        [&](double* into, const double* next, int64_t) {
          for (int64_t i = 0; i < 2 * shape.channels; ++i) into[i] += next[i];
        },
        [&](int64_t sample, const double* partial, T* coefficients) {
          for (int64_t channel = 0; channel < shape.channels; ++channel) {
            const int64_t plane = sample * shape.channels + channel;
            sums[plane] = partial[channel];
            weighted_sums[plane] = partial[channel + shape.channels];
          }
          finish(shape, sample, coefficients);
        },
        [&](int64_t sample, int64_t block, const T* coefficients, const Scratch<T>& scratch) {
          map(shape, sample, block, coefficients, scratch);
        });
  }

  // The map() of a forward or a backward, for the visits.
  static INLINE auto map_forward_from(const Tail& tail, const void* x, void* y) {
    return [=, &tail](const Rows& shape, int64_t sample, int64_t block, const T* coefficients,
                      const Scratch<T>& scratch) {
      const int64_t at = element(shape, sample, block);
      map_forward(shape, tail, in(x) + at, moved(in(tail.residual), at), out(y) + at, block,
                  coefficients, scratch);
    };
  }
  template <class Gradient>
  static INLINE auto map_backward_from(Gradient gradient, const void* x, void* dx,
                                       void* residual_gradient) {
    return [=](const Rows& shape, int64_t sample, int64_t block, const T* coefficients,
               const Scratch<T>& scratch) {
      const int64_t at = element(shape, sample, block);
      map_backward(shape, gradient(shape, sample, block, residual_gradient, scratch), in(x) + at,
                   out(dx) + at, block, coefficients);
    };
  }
  static INLINE void no_finish(const Rows&, int64_t, int64_t, T*) {}
  static INLINE void no_sample(const Rows&, int64_t, T*) {}
  static INLINE void no_map(const Rows&, int64_t, int64_t, const T*, const Scratch<T>&) {}

  // Maps only. finish(shape, plane, channel, coefficients) stores the coefficients of a plane.
  template <class Finish, class Map>
  static INLINE int32_t visit_map(const ThreadPool& threads, const Grid& grid, bool with_tile,
                                  Finish finish, Map map) {
    if (grid.size == 0) return MOMENTNORM_OK;
    const Rows shape(grid.channels, grid.size);
    return visit_samples<E>(
        threads, grid.samples, shape, with_tile,
        [](int64_t, int64_t, double*, const Scratch<T>&) {}, [](double*, const double*, int64_t) {},
        [&](int64_t sample, const double*, T* coefficients) {
          for (int64_t channel = 0; channel < shape.channels; ++channel) {
            finish(shape, sample * shape.channels + channel, channel, coefficients);
          }
        },
        [&](int64_t sample, int64_t block, const T* coefficients, const Scratch<T>& scratch) {
          map(shape, sample, block, coefficients, scratch);
        });
  }

  static int32_t moments(const ThreadPool& threads, const Grid& grid, const void* x, double* mean,
                         double* var) {
    return visit_moments(threads, grid, x, mean, var, false, no_finish, no_map);
  }

  static int32_t apply(const ThreadPool& threads, const Grid& grid, const Tail& tail, const void* x,
                       const double* mean, const double* scale, const double* shift, void* y) {
    return visit_map(
        threads, grid, !plain(tail),
        [=](const Rows& shape, int64_t plane, int64_t channel, T* coefficients) {
          spread_forward(shape, coefficients, channel, mean[plane], scale[plane], shift[plane]);
        },
        map_forward_from(tail, x, y));
  }

  static int32_t normalize(const ThreadPool& threads, const Grid& given, const Tail& tail,
                           const void* x, const void* weight, const void* bias, double eps, void* y,
                           double* mean, double* var) {
    const Grid grid = folded(given);
    return visit_moments(
        threads, grid, x, mean, var, !plain(tail),
        [=, &grid](const Rows& shape, int64_t pool, int64_t first, T* coefficients) {
          const double rstd = inverse_std(var[pool], eps);
          for (int64_t channel = first; channel < first + grid.pool_channels; ++channel) {
            spread_forward(shape, coefficients, channel, mean[pool],
                           parameter(grid, weight, channel, 1) * rstd,
                           parameter(grid, bias, channel, 0));
          }
        },
        map_forward_from(tail, x, y));
  }

  static int32_t normalize_with(const ThreadPool& threads, const Grid& given, const Tail& tail,
                                const void* x, const void* mean, const void* var,
                                const void* weight, const void* bias, double eps, void* y) {
    Grid grid = given;
    grid.pool_samples = grid.samples;
    return visit_map(
        threads, folded(grid), !plain(tail),
        [=, &given](const Rows& shape, int64_t, int64_t channel, T* coefficients) {
          const Forward k =
              forward(given, weight, bias, channel, parameter(given, var, channel, 1), eps);
          spread_forward(shape, coefficients, channel, parameter(given, mean, channel, 0), k.scale,
                         k.shift);
        },
        map_forward_from(tail, x, y));
  }

  static int32_t gradient_sums(const ThreadPool& threads, const Grid& grid, const Tail& tail,
                               const void* g, const void* x, const double* mean,
                               const double* scale, const double* shift, double* sums,
                               double* weighted_sums) {
    return with_gradient(tail, g, x, mean, scale, shift, nullptr, [&](auto gradient) {
      return visit_gradient(threads, grid, gradient, x, mean, sums, weighted_sums, no_sample,
                            no_map);
    });
  }

  static int32_t apply_gradient(const ThreadPool& threads, const Grid& grid, const Tail& tail,
                                const void* g, const void* x, const double* mean,
                                const double* scale, const double* shift, const double* a,
                                const double* b, const double* c, void* dx,
                                void* residual_gradient) {
    return with_gradient(tail, g, x, mean, scale, shift, residual_gradient, [&](auto gradient) {
      return visit_map(
          threads, grid, !decltype(gradient)::kPlain,
          [=](const Rows& shape, int64_t plane, int64_t channel, T* coefficients) {
            spread_backward(shape, coefficients, channel, mean[plane], a[plane], b[plane],
                            c[plane]);
          },
          map_backward_from(gradient, x, dx, residual_gradient));
    });
  }

  static int32_t normalize_backward(const ThreadPool& threads, const Grid& given, const Tail& tail,
                                    const void* g, const void* x, const double* mean,
                                    const double* var, const void* weight, const void* bias,
                                    double eps, void* dx, void* residual_gradient, void* dweight,
                                    void* dbias, double* sums, double* weighted_sums) {
    const Grid grid = folded(given);
    const PlaneMaps maps(grid, goes_through_tail(tail, residual_gradient), weight, bias, mean, var,
                         eps);
    const PoolSums all(grid, sums, weighted_sums);
    if (!maps.good() || !all.good()) return MOMENTNORM_NO_MEMORY;
    const int32_t status = with_gradient(
        tail, g, x, maps.mean, maps.scale.data, maps.shift.data, residual_gradient,
        [&](auto gradient) {
          return visit_gradient(
              threads, grid, gradient, x, maps.mean, all.plain, all.weighted,
              [&](const Rows& shape, int64_t sample, T* coefficients) {
                for (int64_t channel = 0; channel < shape.channels; ++channel) {
                  const int64_t plane = sample * shape.channels + channel;
                  const int64_t in_pool = plane / grid.pool_channels;
                  if (channel % grid.pool_channels == 0) all.close(grid, weight, maps, in_pool);
                  spread_backward(shape, coefficients, channel, maps.mean[plane],
                                  parameter(grid, weight, channel, 1) * maps.inverse.data[plane],
                                  all.b.data[in_pool], all.c.data[in_pool]);
                }
              },
              map_backward_from(gradient, x, dx, residual_gradient));
        });
    if (status == MOMENTNORM_OK) {
      parameter_gradients(grid, maps.inverse.data, all.plain, all.weighted, dweight, dbias);
    }
    return status;
  }

  static constexpr Kernels table() {
    return {moments,       apply,          normalize,         normalize_with,
            gradient_sums, apply_gradient, normalize_backward};
  }
};

}  // namespace

extern const Kernels kChannelsLast[kDtypes];
const Kernels kChannelsLast[kDtypes] = {ChannelsLast<float>::table(), ChannelsLast<double>::table(),
                                        ChannelsLast<BFloat16>::table(),
                                        ChannelsLast<Float16>::table()};

}  // namespace MOMENTNORM_NAMESPACE
