// The kernels, compiled once for each instruction set into a namespace of its own.
//
// No standard library here: an inline function of it, compiled with AVX-512 and shared by the
// linker, would crash an older processor.
#include "kernels.h"

#include "loops.h"
#include "visit.h"

namespace MOMENTNORM_NAMESPACE {
namespace {

// 1 / sqrt(var + eps), and 0 rather than infinity for var = eps = 0, as torch has it.
INLINE double inverse_std(double var, double eps) {
  const double total = var + eps;
  return total == 0 ? 0 : 1 / __builtin_sqrt(total);
}

// mean and var of planes without elements: the mean of nothing is not a number.
INLINE bool no_elements(Grid grid, double* first, double* second, double value) {
  if (grid.size > 0) return false;
  for (int64_t plane = 0; plane < grid.planes; ++plane) first[plane] = second[plane] = value;
  return true;
}

INLINE void no_map(int64_t, int64_t, int64_t) {}

template <class T>
struct Of {
  static INLINE const T* in(const void* data) { return static_cast<const T*>(data); }
  static INLINE T* out(void* data) { return static_cast<T*>(data); }
  static INLINE double channel(const void* values, Grid grid, int64_t plane, double otherwise) {
    return values != nullptr ? double(in(values)[plane % grid.channels]) : otherwise;
  }

  // visit(fetch) for a visit that writes `result`: with fetching ahead if a plane's operands and
  // result stay in the L2 cache together.
  template <class Visit>
  static INLINE void with_fetch(Grid grid, void* result, Visit visit) {
    constexpr int64_t kCacheable = int64_t(256) << 10;
    if (grid.size * int64_t(sizeof(T)) <= kCacheable) {
      visit(FetchAhead<T>{out(result), grid.size});
    } else {
      visit(NoFetch{});
    }
  }

  // The moments of each plane, and then map(plane, begin, count) over its blocks.
  template <class Fetch, class Map>
  static INLINE void visit_moments(const ThreadPool& pool, Grid grid, const void* x, double* mean,
                                   double* var, Fetch fetch, Map map) {
    if (no_elements(grid, mean, var, __builtin_nan(""))) return;
    visit<Partial>(
        pool, grid.planes, grid.size,
        [=](int64_t plane, int64_t begin, int64_t count) {
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
  static INLINE void visit_gradient(const ThreadPool& pool, Grid grid, const void* gradient,
                                    const void* x, const double* mean, double* sums,
                                    double* weighted_sums, Fetch fetch, Map map) {
    if (no_elements(grid, sums, weighted_sums, 0)) return;
    visit<GradientSums>(
        pool, grid.planes, grid.size,
        [=](int64_t plane, int64_t begin, int64_t count) {
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

  static void moments(const ThreadPool& pool, Grid grid, const void* x, double* mean,
                      double* var) {
    visit_moments(pool, grid, x, mean, var, NoFetch{}, no_map);
  }

  static void apply(const ThreadPool& pool, Grid grid, const void* x, const double* mean,
                    const double* scale, const double* shift, void* y) {
    visit_map(pool, grid.planes, grid.size, [=](int64_t plane, int64_t begin, int64_t count) {
      const int64_t at = plane * grid.size + begin;
      apply_to(in(x) + at, out(y) + at, count, mean[plane], scale[plane], shift[plane],
               NoFetch{});
    });
  }

  static void normalize(const ThreadPool& pool, Grid grid, const void* x, const void* weight,
                        const void* bias, double eps, void* y, double* mean, double* var) {
    with_fetch(grid, y, [=, &pool](auto fetch) {
      visit_moments(
          pool, grid, x, mean, var, fetch, [=](int64_t plane, int64_t begin, int64_t count) {
            const int64_t at = plane * grid.size + begin;
            const double scale = channel(weight, grid, plane, 1) * inverse_std(var[plane], eps);
            const double shift = channel(bias, grid, plane, 0);
            apply_to(in(x) + at, out(y) + at, count, mean[plane], scale, shift, fetch);
          });
    });
  }

  static void gradient_sums(const ThreadPool& pool, Grid grid, const void* gradient, const void* x,
                            const double* mean, double* sums, double* weighted_sums) {
    visit_gradient(pool, grid, gradient, x, mean, sums, weighted_sums, NoFetch{}, no_map);
  }

  static void apply_gradient(const ThreadPool& pool, Grid grid, const void* gradient,
                             const void* x, const double* mean, const double* a, const double* b,
                             const double* c, void* dx) {
    visit_map(pool, grid.planes, grid.size, [=](int64_t plane, int64_t begin, int64_t count) {
      const int64_t at = plane * grid.size + begin;
      apply_gradient_to(in(gradient) + at, in(x) + at, out(dx) + at, count, mean[plane], a[plane],
                        b[plane], c[plane], NoFetch{});
    });
  }

  static void normalize_backward(const ThreadPool& pool, Grid grid, const void* gradient,
                                 const void* x, const double* mean, const double* var,
                                 const void* weight, double eps, void* dx, double* sums,
                                 double* weighted_sums) {
    with_fetch(grid, dx, [=, &pool](auto fetch) {
      visit_gradient(
          pool, grid, gradient, x, mean, sums, weighted_sums, fetch,
          [=](int64_t plane, int64_t begin, int64_t count) {
            const int64_t at = plane * grid.size + begin;
            const double rstd = inverse_std(var[plane], eps);
            const double scale = channel(weight, grid, plane, 1) * rstd;
            // What flows through the variance, and through the mean.
            const double b = -scale * rstd * rstd * (weighted_sums[plane] / double(grid.size));
            const double c = -scale * (sums[plane] / double(grid.size));
            apply_gradient_to(in(gradient) + at, in(x) + at, out(dx) + at, count, mean[plane],
                              scale, b, c, fetch);
          });
    });
  }

  static constexpr Kernels table() {
    return {moments, apply, normalize, gradient_sums, apply_gradient, normalize_backward};
  }
};

}  // namespace

// In the order of momentnorm_dtype.
extern const InstructionSet kInstructionSet;
const InstructionSet kInstructionSet = {MOMENTNORM_NAME, {Of<float>::table(), Of<double>::table()}};

}  // namespace MOMENTNORM_NAMESPACE
