// The kernels for feature maps whose planes are contiguous. Compiled once for each instruction set,
// into a namespace of its own.
#include "coefficients.h"
#include "visit.h"

namespace MOMENTNORM_NAMESPACE {
namespace {

INLINE void no_map(int64_t, int64_t, int64_t) {}

template <class E>
struct Of {
  static INLINE const E* in(const void* data) { return static_cast<const E*>(data); }
  static INLINE E* out(void* data) { return static_cast<E*>(data); }

  // visit(fetch) for a visit that writes `result`: fetching what a first and a second level cache
  // hold beside the plane.
  template <class Visit>
  static INLINE void with_fetch(const Grid& grid, void* result, Visit visit) {
    const int64_t kilobytes = grid.size * int64_t(sizeof(E)) >> 10;
    if (kilobytes <= 32) {
      visit(FetchBoth<E>{out(result), grid.size});
    } else if (kilobytes <= 128) {
      visit(FetchResult<E>{out(result)});
    } else {
      visit(NoFetch{});
    }
  }

  // The moments of each plane, and then map(plane, begin, count) over its blocks.
  template <class Fetch, class Map>
  static INLINE void visit_moments(const ThreadPool& pool, const Grid& grid, const void* x,
                                   double* mean, double* var, Fetch fetch, Map map) {
    if (no_elements(grid, mean, var, __builtin_nan(""))) return;
    visit<Partial>(
        pool, planes(grid), grid.size,
        [=, &grid](int64_t plane, int64_t begin, int64_t count) {
          const int64_t at = plane * grid.size + begin;
          return moments_of(in(x) + at, count, fetch.from(at));
        },
        [](Partial& into, const Partial& next) { into.merge(next); },
        [=](int64_t plane, const Partial& all) {
          mean[plane] = all.mean;
          var[plane] = all.m2 / all.count;
        },
        map);
  }

  // The gradient's sums over each plane, and then map(plane, begin, count) over its blocks.
  template <class Fetch, class Map>
  static INLINE void visit_gradient(const ThreadPool& pool, const Grid& grid, const void* gradient,
                                    const void* x, const double* mean, double* sums,
                                    double* weighted_sums, Fetch fetch, Map map) {
    if (no_elements(grid, sums, weighted_sums, 0)) return;
    visit<GradientSums>(
        pool, planes(grid), grid.size,
        [=, &grid](int64_t plane, int64_t begin, int64_t count) {
          const int64_t at = plane * grid.size + begin;
          return gradient_sums_of(in(gradient) + at, in(x) + at, count, mean[plane],
                                  fetch.from(at));
        },
        [](GradientSums& into, const GradientSums& next) {
          into.plain += next.plain;
          into.weighted += next.weighted;
        },
        [=](int64_t plane, const GradientSums& all) {
          sums[plane] = all.plain;
          weighted_sums[plane] = all.weighted;
        },
        map);
  }

  static int32_t moments(const ThreadPool& pool, const Grid& grid, const void* x, double* mean,
                         double* var) {
    visit_moments(pool, grid, x, mean, var, NoFetch{}, no_map);
    return MOMENTNORM_OK;
  }

  static int32_t apply(const ThreadPool& pool, const Grid& grid, const void* x, const double* mean,
                       const double* scale, const double* shift, void* y) {
    visit_map(pool, planes(grid), grid.size,
              [=, &grid](int64_t plane, int64_t begin, int64_t count) {
                const int64_t at = plane * grid.size + begin;
                apply_to(in(x) + at, out(y) + at, count, mean[plane], scale[plane], shift[plane],
                         NoFetch{});
              });
    return MOMENTNORM_OK;
  }

  static int32_t normalize(const ThreadPool& pool, const Grid& grid, const void* x,
                           const void* weight, const void* bias, double eps, void* y, double* mean,
                           double* var) {
    with_fetch(grid, y, [=, &pool, &grid](auto fetch) {
      visit_moments(
          pool, grid, x, mean, var, fetch, [=, &grid](int64_t plane, int64_t begin, int64_t count) {
            const int64_t at = plane * grid.size + begin;
            const Forward k = forward(grid, weight, bias, plane, var[plane], eps);
            apply_to(in(x) + at, out(y) + at, count, mean[plane], k.scale, k.shift, fetch);
          });
    });
    return MOMENTNORM_OK;
  }

  static int32_t gradient_sums(const ThreadPool& pool, const Grid& grid, const void* gradient,
                               const void* x, const double* mean, double* sums,
                               double* weighted_sums) {
    visit_gradient(pool, grid, gradient, x, mean, sums, weighted_sums, NoFetch{}, no_map);
    return MOMENTNORM_OK;
  }

  static int32_t apply_gradient(const ThreadPool& pool, const Grid& grid, const void* gradient,
                                const void* x, const double* mean, const double* a, const double* b,
                                const double* c, void* dx) {
    visit_map(pool, planes(grid), grid.size,
              [=, &grid](int64_t plane, int64_t begin, int64_t count) {
                const int64_t at = plane * grid.size + begin;
                apply_gradient_to(in(gradient) + at, in(x) + at, out(dx) + at, count, mean[plane],
                                  a[plane], b[plane], c[plane], NoFetch{});
              });
    return MOMENTNORM_OK;
  }

  static int32_t normalize_backward(const ThreadPool& pool, const Grid& grid, const void* gradient,
                                    const void* x, const double* mean, const double* var,
                                    const void* weight, double eps, void* dx, double* sums,
                                    double* weighted_sums) {
    with_fetch(grid, dx, [=, &pool, &grid](auto fetch) {
      visit_gradient(pool, grid, gradient, x, mean, sums, weighted_sums, fetch,
                     [=, &grid](int64_t plane, int64_t begin, int64_t count) {
                       const int64_t at = plane * grid.size + begin;
                       const Backward k = backward(grid, weight, plane, var[plane], eps,
                                                   sums[plane], weighted_sums[plane]);
                       apply_gradient_to(in(gradient) + at, in(x) + at, out(dx) + at, count,
                                         mean[plane], k.a, k.b, k.c, fetch);
                     });
    });
    return MOMENTNORM_OK;
  }

  static constexpr Kernels table() {
    return {moments, apply, normalize, gradient_sums, apply_gradient, normalize_backward};
  }
};

}  // namespace

extern const Kernels kChannelsFirst[kDtypes];
const Kernels kChannelsFirst[kDtypes] = {Of<float>::table(), Of<double>::table(),
                                         Of<BFloat16>::table(), Of<Float16>::table()};

}  // namespace MOMENTNORM_NAMESPACE
