// The kernels for channels_last feature maps, which stay channels_last. Compiled once for each
// instruction set, into a namespace of its own.
//
// A sample is read twice, in order: for its statistics, and to be written. Samples are taken a few
// at a time, so that the second reading finds them in the last-level cache. Samples that share
// their statistics follow one another in memory, and are one sample of more elements; channels that
// do meet in between, when the sums of a sample are known.
#include <stdlib.h>

#include "coefficients.h"
#include "pixel_rows.h"
#include "visit.h"

namespace MOMENTNORM_NAMESPACE {
namespace {

// How much is read for the first time before it is read again: of large samples, by all threads
// together; of small ones a thread reads each twice by itself.
constexpr int64_t kGroupBytes = int64_t(8) << 20;
constexpr int64_t kSmallSample = int64_t(512) << 10;

// What one thread works in.
template <class T>
struct Workspace {
  Scratch<T> scratch;
  double* partial;  // of the blocks of a sample, where the thread visits whole samples
  T* coefficients;  // as well
};

// The workspaces of a call, one for each thread that may run at the same time. They are there
// before the first result is written, so a call without memory writes nothing.
template <class T>
struct Workspaces {
  int64_t count, width, tile, partial_size, coefficient_size;
  Array<double> doubles;
  Array<T> values;
  Array<char> taken;

  INLINE Workspaces(int64_t count_, const Rows& shape, bool with_tile, int64_t partial_size_,
                    int64_t coefficient_size_)
      : count(count_),
        width(shape.width),
        tile(with_tile ? (3 + Rows::kTile) * shape.width : 0),
        partial_size(partial_size_),
        coefficient_size(coefficient_size_),
        doubles(count * (2 * width + partial_size)),
        values(count * (width + tile + coefficient_size)),
        taken(count) {
    if (good()) memset(taken.data, 0, size_t(count));
  }
  INLINE bool good() const {
    return doubles.data != nullptr && values.data != nullptr && taken.data != nullptr;
  }
  INLINE Workspace<T> at(int64_t i) const {
    double* const sums = doubles.data + i * (2 * width + partial_size);
    T* const columns = values.data + i * (width + tile + coefficient_size);
    T* const map = columns + width;
    return {{sums, sums + width, columns, map, map + width, map + 2 * width, map + 3 * width},
            sums + 2 * width,
            map + tile};
  }
};

// A workspace that no other thread has, for the time of the scope.
template <class T>
struct Lease {
  const Workspaces<T>& all;
  int64_t place = 0;
  Workspace<T> own;
  // A pool that runs more threads than it said makes some of them wait.
  explicit INLINE Lease(const Workspaces<T>& workspaces) : all(workspaces) {
    while (__atomic_exchange_n(&all.taken.data[place], char(1), __ATOMIC_ACQUIRE) != 0) {
      place = (place + 1) % all.count;
    }
    own = all.at(place);
  }
  INLINE ~Lease() { __atomic_store_n(&all.taken.data[place], char(0), __ATOMIC_RELEASE); }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
};

template <class E>
struct Of {
  using T = Compute<E>;
  static constexpr int kCoefficients = 4;

  static INLINE const E* in(const void* data) { return static_cast<const E*>(data); }
  static INLINE E* out(void* data) { return static_cast<E*>(data); }

  // For each sample, or each group of large ones: reduce(sample, block, partial, scratch), where
  // partial is two doubles for each channel; fold(into, next, blocks so far) over a sample's blocks
  // in order; finish(sample, partial, coefficients); then map(sample, block, coefficients,
  // scratch).
  template <class Reduce, class Fold, class Finish, class Map>
  static INLINE int32_t visit_rows(const ThreadPool& pool, const Grid& grid, const Rows& shape,
                                   bool with_tile, Reduce reduce, Fold fold, Finish finish,
                                   Map map) {
    const int64_t sample_bytes = shape.size * shape.channels * int64_t(sizeof(E));
    const int64_t partial_size = 2 * shape.channels;
    const int64_t coefficient_size = kCoefficients * shape.width;
    const int64_t threads = pool.threads();
    const bool idle = ceil_div(grid.samples, threads) * threads * 8 > grid.samples * 9;
    if (sample_bytes <= kSmallSample &&
        (grid.samples * shape.size * shape.channels <= kGrain || !idle)) {
      const int64_t grain = ceil_div(kGrain, shape.size * shape.channels);
      const Workspaces<T> workspaces(most_ranges(pool, grid.samples, grain), shape, with_tile,
                                     shape.blocks * partial_size, coefficient_size);
      if (!workspaces.good()) return MOMENTNORM_NO_MEMORY;
      parallel(pool, grid.samples, grain, [&](int64_t begin, int64_t end) {
        const Lease<T> lease(workspaces);
        const Workspace<T>& own = lease.own;
        for (int64_t sample = begin; sample < end; ++sample) {
          for (int64_t block = 0; block < shape.blocks; ++block) {
            reduce(sample, block, own.partial + block * partial_size, own.scratch);
          }
          for (int64_t block = 1; block < shape.blocks; ++block) {
            fold(own.partial, own.partial + block * partial_size, block);
          }
          finish(sample, own.partial, own.coefficients);
          for (int64_t block = 0; block < shape.blocks; ++block) {
            map(sample, block, own.coefficients, own.scratch);
          }
        }
      });
      return MOMENTNORM_OK;
    }
    int64_t group = sample_bytes > 0 ? kGroupBytes / sample_bytes : grid.samples;
    group = group < 1 ? 1 : group > grid.samples ? grid.samples : group;
    const int64_t block_elements = shape.size * shape.channels / shape.blocks;
    const int64_t grain = ceil_div(kGrain, block_elements > 0 ? block_elements : 1);
    const Array<double> partial(group * shape.blocks * partial_size);
    const Array<T> coefficients(group * coefficient_size);
    const Workspaces<T> workspaces(most_ranges(pool, group * shape.blocks, grain), shape, with_tile,
                                   0, 0);
    if (partial.data == nullptr || coefficients.data == nullptr || !workspaces.good()) {
      return MOMENTNORM_NO_MEMORY;
    }
    // body(sample - from, block, scratch) for all blocks of some samples.
    auto each_block = [&](int64_t samples, auto body) {
      parallel(pool, samples * shape.blocks, grain, [&](int64_t begin, int64_t end) {
        const Lease<T> lease(workspaces);
        for (int64_t i = begin; i < end; ++i) {
          body(i / shape.blocks, i % shape.blocks, lease.own.scratch);
        }
      });
    };

    for (int64_t from = 0; from < grid.samples; from += group) {
      const int64_t samples = grid.samples - from < group ? grid.samples - from : group;
      each_block(samples, [&](int64_t i, int64_t block, const Scratch<T>& scratch) {
        reduce(from + i, block, partial.data + (i * shape.blocks + block) * partial_size, scratch);
      });
      parallel(pool, samples, ceil_div(kGrain, shape.blocks * shape.channels),
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   double* const first = partial.data + i * shape.blocks * partial_size;
                   for (int64_t block = 1; block < shape.blocks; ++block) {
                     fold(first, first + block * partial_size, block);
                   }
                   finish(from + i, first, coefficients.data + i * coefficient_size);
                 }
               });
      each_block(samples, [&](int64_t i, int64_t block, const Scratch<T>& scratch) {
        map(from + i, block, coefficients.data + i * coefficient_size, scratch);
      });
    }
    return MOMENTNORM_OK;
  }

  // The same grid with the samples of a pool as one.
  static INLINE Grid folded(const Grid& grid) {
    Grid fewer = grid;
    fewer.samples /= grid.pool_samples;
    fewer.size *= grid.pool_samples;
    fewer.pool_samples = 1;
    return fewer;
  }

  static INLINE int64_t element(const Rows& shape, int64_t sample, int64_t block) {
    return sample * shape.size * shape.channels + shape.offset(block);
  }

  // The coefficients of a column are those of its channel: the mean as T, and up to three more.
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

  // y = activation((x - mean) * scale + shift + residual)
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
          T z = one(i, channel);
          if (residual != nullptr) z += get(residual[i]);
          activate(tail, &z, y + i, 1);
        });
  }

  // dx = a * g + b * (x - mean) + c. With b = 0 the result does not depend on x, even where x or
  // the mean is not finite.
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

  template <class Finish, class Map>
  static INLINE int32_t visit_moments(const ThreadPool& pool, const Grid& grid, const void* x,
                                      double* mean, double* var, bool with_tile, Finish finish,
                                      Map map) {
    if (no_elements(grid, mean, var, __builtin_nan(""))) return MOMENTNORM_OK;
    const Rows shape(grid.channels, grid.size);
    return visit_rows(
        pool, grid, shape, with_tile,
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

  // How to come to the gradient of a block: from memory, ...
  struct FromMemory {
    static constexpr bool kPlain = true;
    const E* g;
    INLINE GivenRows<E> operator()(const Rows& shape, int64_t sample, int64_t block, void*,
                                   const Scratch<T>&) const {
      return {g + element(shape, sample, block)};
    }
  };
  // ... or from there through a tail.
  struct FromTail {
    static constexpr bool kPlain = false;
    const Tail& tail;
    const E *g, *x;
    const double *mean, *scale, *shift;
    INLINE ThroughRows<E> operator()(const Rows& shape, int64_t sample, int64_t block, void* copy,
                                     const Scratch<T>& scratch) const {
      for (int64_t column = 0; column < shape.width; ++column) {
        const int64_t plane = sample * shape.channels + column % shape.channels;
        const Split<T> centre(mean[plane]);
        scratch.mean[column] = centre.high;
        scratch.scale[column] = T(scale[plane]);
        scratch.shift[column] = centre.shift_about_high(scale[plane], shift[plane]);
      }
      const int64_t at = element(shape, sample, block);
      return {tail,        g + at,  x + at, moved(in(tail.residual), at), moved(out(copy), at),
              shape.width, scratch, 0};
    }
  };
  template <class Body>
  static INLINE int32_t with_gradient(const Tail& tail, const void* g, const void* x,
                                      const double* mean, const double* scale, const double* shift,
                                      const void* z_gradient, Body body) {
    if (through(tail, z_gradient)) {
      return body(FromTail{tail, in(g), in(x), mean, scale, shift});
    }
    return body(FromMemory{in(g)});
  }

  template <class Gradient, class Finish, class Map>
  static INLINE int32_t visit_gradient(const ThreadPool& pool, const Grid& grid, Gradient gradient,
                                       const void* x, const double* mean, double* sums,
                                       double* weighted_sums, Finish finish, Map map) {
    if (no_elements(grid, sums, weighted_sums, 0)) return MOMENTNORM_OK;
    const Rows shape(grid.channels, grid.size);
    return visit_rows(
        pool, grid, shape, !Gradient::kPlain,
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

  // The maps of blocks, as the visits call them.
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
                                       void* z_gradient) {
    return [=](const Rows& shape, int64_t sample, int64_t block, const T* coefficients,
               const Scratch<T>& scratch) {
      const int64_t at = element(shape, sample, block);
      map_backward(shape, gradient(shape, sample, block, z_gradient, scratch), in(x) + at,
                   out(dx) + at, block, coefficients);
    };
  }
  static INLINE void no_finish(const Rows&, int64_t, int64_t, T*) {}
  static INLINE void no_sample(const Rows&, int64_t, T*) {}
  static INLINE void no_map(const Rows&, int64_t, int64_t, const T*, const Scratch<T>&) {}

  // Only the map, with coefficients from finish(shape, plane, channel, coefficients).
  template <class Finish, class Map>
  static INLINE int32_t visit_map(const ThreadPool& pool, const Grid& grid, bool with_tile,
                                  Finish finish, Map map) {
    if (grid.size == 0) return MOMENTNORM_OK;
    const Rows shape(grid.channels, grid.size);
    return visit_rows(
        pool, grid, shape, with_tile, [](int64_t, int64_t, double*, const Scratch<T>&) {},
        [](double*, const double*, int64_t) {},
        [&](int64_t sample, const double*, T* coefficients) {
          for (int64_t channel = 0; channel < shape.channels; ++channel) {
            finish(shape, sample * shape.channels + channel, channel, coefficients);
          }
        },
        [&](int64_t sample, int64_t block, const T* coefficients, const Scratch<T>& scratch) {
          map(shape, sample, block, coefficients, scratch);
        });
  }

  static int32_t moments(const ThreadPool& pool, const Grid& grid, const void* x, double* mean,
                         double* var) {
    return visit_moments(pool, grid, x, mean, var, false, no_finish, no_map);
  }

  static int32_t apply(const ThreadPool& pool, const Grid& grid, const Tail& tail, const void* x,
                       const double* mean, const double* scale, const double* shift, void* y) {
    return visit_map(
        pool, grid, !plain(tail),
        [=](const Rows& shape, int64_t plane, int64_t channel, T* coefficients) {
          spread_forward(shape, coefficients, channel, mean[plane], scale[plane], shift[plane]);
        },
        map_forward_from(tail, x, y));
  }

  static int32_t normalize(const ThreadPool& pool, const Grid& given, const Tail& tail,
                           const void* x, const void* weight, const void* bias, double eps, void* y,
                           double* mean, double* var) {
    const Grid grid = folded(given);
    return visit_moments(
        pool, grid, x, mean, var, !plain(tail),
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

  static int32_t normalize_with(const ThreadPool& pool, const Grid& given, const Tail& tail,
                                const void* x, const void* mean, const void* var,
                                const void* weight, const void* bias, double eps, void* y) {
    Grid grid = given;
    grid.pool_samples = grid.samples;
    return visit_map(
        pool, folded(grid), !plain(tail),
        [=, &given](const Rows& shape, int64_t, int64_t channel, T* coefficients) {
          const Forward k =
              forward(given, weight, bias, channel, parameter(given, var, channel, 1), eps);
          spread_forward(shape, coefficients, channel, parameter(given, mean, channel, 0), k.scale,
                         k.shift);
        },
        map_forward_from(tail, x, y));
  }

  static int32_t gradient_sums(const ThreadPool& pool, const Grid& grid, const Tail& tail,
                               const void* g, const void* x, const double* mean,
                               const double* scale, const double* shift, double* sums,
                               double* weighted_sums) {
    return with_gradient(tail, g, x, mean, scale, shift, nullptr, [&](auto gradient) {
      return visit_gradient(pool, grid, gradient, x, mean, sums, weighted_sums, no_sample, no_map);
    });
  }

  static int32_t apply_gradient(const ThreadPool& pool, const Grid& grid, const Tail& tail,
                                const void* g, const void* x, const double* mean,
                                const double* scale, const double* shift, const double* a,
                                const double* b, const double* c, void* dx, void* z_gradient) {
    return with_gradient(tail, g, x, mean, scale, shift, z_gradient, [&](auto gradient) {
      return visit_map(
          pool, grid, !decltype(gradient)::kPlain,
          [=](const Rows& shape, int64_t plane, int64_t channel, T* coefficients) {
            spread_backward(shape, coefficients, channel, mean[plane], a[plane], b[plane],
                            c[plane]);
          },
          map_backward_from(gradient, x, dx, z_gradient));
    });
  }

  static int32_t normalize_backward(const ThreadPool& pool, const Grid& given, const Tail& tail,
                                    const void* g, const void* x, const double* mean,
                                    const double* var, const void* weight, const void* bias,
                                    double eps, void* dx, void* z_gradient, void* dweight,
                                    void* dbias, double* sums, double* weighted_sums) {
    const Grid grid = folded(given);
    const PlaneMaps maps(grid, through(tail, z_gradient), weight, bias, mean, var, eps);
    const PoolSums all(grid, sums, weighted_sums);
    if (!maps.good() || !all.good()) return MOMENTNORM_NO_MEMORY;
    const int32_t status = with_gradient(
        tail, g, x, maps.mean, maps.scale.data, maps.shift.data, z_gradient, [&](auto gradient) {
          return visit_gradient(
              pool, grid, gradient, x, maps.mean, all.plain, all.weighted,
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
              map_backward_from(gradient, x, dx, z_gradient));
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
const Kernels kChannelsLast[kDtypes] = {Of<float>::table(), Of<double>::table(),
                                        Of<BFloat16>::table(), Of<Float16>::table()};

}  // namespace MOMENTNORM_NAMESPACE
