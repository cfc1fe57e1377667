// The kernels for channels_last feature maps, which stay channels_last. Compiled once for each
// instruction set, into a namespace of its own.
//
// A sample is read twice, in order: for its statistics, and to be written. Samples are taken a few
// at a time, so that the second reading finds them in the last-level cache.
#include <stdlib.h>

#include "coefficients.h"
#include "rows.h"
#include "visit.h"

namespace MOMENTNORM_NAMESPACE {
namespace {

// How much is read for the first time before it is read again.
constexpr int64_t kGroupBytes = int64_t(8) << 20;

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

template <class E>
struct Of {
  using T = Compute<E>;
  static constexpr int kCoefficients = 4;

  static INLINE const E* in(const void* data) { return static_cast<const E*>(data); }
  static INLINE E* out(void* data) { return static_cast<E*>(data); }

  // For each group of samples: reduce(sample, block, partial, scratch), where partial is two
  // doubles for each channel; fold(into, next, blocks so far) over a sample's blocks in order;
  // finish(sample, partial, coefficients); then map(sample, block, coefficients).
  template <class Reduce, class Fold, class Finish, class Map>
  static INLINE int32_t visit_rows(const ThreadPool& pool, const Grid& grid, const Rows& shape,
                                   Reduce reduce, Fold fold, Finish finish, Map map) {
    const int64_t sample_bytes = shape.size * shape.channels * int64_t(sizeof(E));
    int64_t group = sample_bytes > 0 ? kGroupBytes / sample_bytes : grid.samples;
    group = group < 1 ? 1 : group > grid.samples ? grid.samples : group;
    const int64_t partial_size = 2 * shape.channels;
    const int64_t coefficient_size = kCoefficients * shape.width;
    Array<double> partial(group * shape.blocks * partial_size);
    Array<T> coefficients(group * coefficient_size);
    bool failed = partial.data == nullptr || coefficients.data == nullptr;
    const int64_t block_elements = shape.size * shape.channels / shape.blocks;
    const int64_t grain = ceil_div(kGrain, block_elements > 0 ? block_elements : 1);

    for (int64_t from = 0; from < grid.samples && !failed; from += group) {
      const int64_t samples = grid.samples - from < group ? grid.samples - from : group;
      parallel(pool, samples * shape.blocks, grain, [&](int64_t begin, int64_t end) {
        Array<double> sums(2 * shape.width);
        Array<T> origin(shape.width);
        if (sums.data == nullptr || origin.data == nullptr) {
          __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
          return;
        }
        const Scratch<T> scratch = {sums.data, sums.data + shape.width, origin.data};
        for (int64_t i = begin; i < end; ++i) {
          reduce(from + i / shape.blocks, i % shape.blocks, partial.data + i * partial_size,
                 scratch);
        }
      });
      if (failed) break;
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
      parallel(pool, samples * shape.blocks, grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          map(from + i / shape.blocks, i % shape.blocks,
              coefficients.data + i / shape.blocks * coefficient_size);
        }
      });
    }
    return failed ? MOMENTNORM_NO_MEMORY : MOMENTNORM_OK;
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
    spread(shape, coefficients, channel, mean, scale, shift - Split<T>(mean).rest * scale, 0);
  }

  static INLINE void spread_backward(const Rows& shape, T* coefficients, int64_t channel,
                                     double mean, double a, double b, double c) {
    spread(shape, coefficients, channel, mean, a, b, c - Split<T>(mean).rest * b);
  }

  // y = (x - mean) * scale + shift
  static INLINE void map_forward(const Rows& shape, const E* x, E* y, int64_t block,
                                 const T* coefficients) {
    struct Held {
      Vec<T> mean, scale, shift;
    };
    map_rows<T>(
        shape, block,
        [=](int64_t column) {
          const T* const at = coefficients + column;
          return Held{load(at), load(at + shape.width), load(at + 2 * shape.width)};
        },
        [=](int64_t i, const Held& k) { store(y + i, (load(x + i) - k.mean) * k.scale + k.shift); },
        [=](int64_t i, int64_t channel) {
          const T* const at = coefficients + channel;
          y[i] = put<E>((get(x[i]) - at[0]) * at[shape.width] + at[2 * shape.width]);
        });
  }

  // dx = a * g + b * (x - mean) + c
  static INLINE void map_backward(const Rows& shape, const E* g, const E* x, E* dx, int64_t block,
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
        [=](int64_t i, const Held& k) {
          store(dx + i, load(g + i) * k.a + ((load(x + i) - k.mean) * k.b + k.c));
        },
        [=](int64_t i, int64_t channel) {
          const T* const at = coefficients + channel;
          dx[i] = put<E>(get(g[i]) * at[shape.width] +
                         ((get(x[i]) - at[0]) * at[2 * shape.width] + at[3 * shape.width]));
        });
  }

  template <class Finish, class Map>
  static INLINE int32_t visit_moments(const ThreadPool& pool, const Grid& grid, const void* x,
                                      double* mean, double* var, Finish finish, Map map) {
    if (no_elements(grid, mean, var, __builtin_nan(""))) return MOMENTNORM_OK;
    const Rows shape(grid.channels, grid.size);
    return visit_rows(
        pool, grid, shape,
        [&](int64_t sample, int64_t block, double* partial, Scratch<T> scratch) {
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
        [&](int64_t sample, const double* partial, T* coefficients) {
          for (int64_t channel = 0; channel < shape.channels; ++channel) {
            const int64_t plane = sample * shape.channels + channel;
            mean[plane] = partial[channel];
            var[plane] = partial[channel + shape.channels] / double(shape.size);
            finish(shape, plane, channel, coefficients);
          }
        },
        [&](int64_t sample, int64_t block, const T* coefficients) {
          map(shape, element(shape, sample, block), block, coefficients);
        });
  }

  template <class Finish, class Map>
  static INLINE int32_t visit_gradient(const ThreadPool& pool, const Grid& grid,
                                       const void* gradient, const void* x, const double* mean,
                                       double* sums, double* weighted_sums, Finish finish,
                                       Map map) {
    if (no_elements(grid, sums, weighted_sums, 0)) return MOMENTNORM_OK;
    const Rows shape(grid.channels, grid.size);
    return visit_rows(
        pool, grid, shape,
        [&](int64_t sample, int64_t block, double* partial, Scratch<T> scratch) {
          const int64_t at = element(shape, sample, block);
          gradient_sums_of_block(in(gradient) + at, in(x) + at, shape, block,
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
            finish(shape, plane, channel, coefficients);
          }
        },
        [&](int64_t sample, int64_t block, const T* coefficients) {
          map(shape, element(shape, sample, block), block, coefficients);
        });
  }

  // Only the map, with coefficients from finish(shape, plane, channel, coefficients).
  template <class Finish, class Map>
  static INLINE int32_t visit_map(const ThreadPool& pool, const Grid& grid, Finish finish,
                                  Map map) {
    if (grid.size == 0) return MOMENTNORM_OK;
    const Rows shape(grid.channels, grid.size);
    return visit_rows(
        pool, grid, shape, [](int64_t, int64_t, double*, Scratch<T>) {},
        [](double*, const double*, int64_t) {},
        [&](int64_t sample, const double*, T* coefficients) {
          for (int64_t channel = 0; channel < shape.channels; ++channel) {
            finish(shape, sample * shape.channels + channel, channel, coefficients);
          }
        },
        [&](int64_t sample, int64_t block, const T* coefficients) {
          map(shape, element(shape, sample, block), block, coefficients);
        });
  }

  static int32_t moments(const ThreadPool& pool, const Grid& grid, const void* x, double* mean,
                         double* var) {
    return visit_moments(
        pool, grid, x, mean, var, [](const Rows&, int64_t, int64_t, T*) {},
        [](const Rows&, int64_t, int64_t, const T*) {});
  }

  static int32_t apply(const ThreadPool& pool, const Grid& grid, const void* x, const double* mean,
                       const double* scale, const double* shift, void* y) {
    return visit_map(
        pool, grid,
        [=](const Rows& shape, int64_t plane, int64_t channel, T* coefficients) {
          spread_forward(shape, coefficients, channel, mean[plane], scale[plane], shift[plane]);
        },
        [=](const Rows& shape, int64_t at, int64_t block, const T* coefficients) {
          map_forward(shape, in(x) + at, out(y) + at, block, coefficients);
        });
  }

  static int32_t normalize(const ThreadPool& pool, const Grid& grid, const void* x,
                           const void* weight, const void* bias, double eps, void* y, double* mean,
                           double* var) {
    return visit_moments(
        pool, grid, x, mean, var,
        [=, &grid](const Rows& shape, int64_t plane, int64_t channel, T* coefficients) {
          const Forward k = forward(grid, weight, bias, plane, var[plane], eps);
          spread_forward(shape, coefficients, channel, mean[plane], k.scale, k.shift);
        },
        [=](const Rows& shape, int64_t at, int64_t block, const T* coefficients) {
          map_forward(shape, in(x) + at, out(y) + at, block, coefficients);
        });
  }

  static int32_t gradient_sums(const ThreadPool& pool, const Grid& grid, const void* gradient,
                               const void* x, const double* mean, double* sums,
                               double* weighted_sums) {
    return visit_gradient(
        pool, grid, gradient, x, mean, sums, weighted_sums,
        [](const Rows&, int64_t, int64_t, T*) {}, [](const Rows&, int64_t, int64_t, const T*) {});
  }

  static int32_t apply_gradient(const ThreadPool& pool, const Grid& grid, const void* gradient,
                                const void* x, const double* mean, const double* a, const double* b,
                                const double* c, void* dx) {
    return visit_map(
        pool, grid,
        [=](const Rows& shape, int64_t plane, int64_t channel, T* coefficients) {
          spread_backward(shape, coefficients, channel, mean[plane], a[plane], b[plane], c[plane]);
        },
        [=](const Rows& shape, int64_t at, int64_t block, const T* coefficients) {
          map_backward(shape, in(gradient) + at, in(x) + at, out(dx) + at, block, coefficients);
        });
  }

  static int32_t normalize_backward(const ThreadPool& pool, const Grid& grid, const void* gradient,
                                    const void* x, const double* mean, const double* var,
                                    const void* weight, double eps, void* dx, double* sums,
                                    double* weighted_sums) {
    return visit_gradient(
        pool, grid, gradient, x, mean, sums, weighted_sums,
        [=, &grid](const Rows& shape, int64_t plane, int64_t channel, T* coefficients) {
          const Backward k =
              backward(grid, weight, plane, var[plane], eps, sums[plane], weighted_sums[plane]);
          spread_backward(shape, coefficients, channel, mean[plane], k.a, k.b, k.c);
        },
        [=](const Rows& shape, int64_t at, int64_t block, const T* coefficients) {
          map_backward(shape, in(gradient) + at, in(x) + at, out(dx) + at, block, coefficients);
        });
  }

  static constexpr Kernels table() {
    return {moments, apply, normalize, gradient_sums, apply_gradient, normalize_backward};
  }
};

}  // namespace

extern const Kernels kChannelsLast[kDtypes];
const Kernels kChannelsLast[kDtypes] = {Of<float>::table(), Of<double>::table(),
                                        Of<BFloat16>::table(), Of<Float16>::table()};

}  // namespace MOMENTNORM_NAMESPACE
