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
      visit(FetchBoth<E>{out(result), grid.size * together(grid.size)});
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
    visit<Compute<E>, Partial>(
        pool, planes(grid), grid.size,
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
        map);
  }

  // How to come to the gradient of the elements from i on, of one plane: from memory, ...
  struct FromMemory {
    static constexpr bool kPlain = true;
    const E* g;
    INLINE Given<E> operator()(int64_t, int64_t i, void*) const { return {g + i}; }
  };
  // ... or from there through a tail.
  struct FromTail {
    static constexpr bool kPlain = false;
    const Tail& tail;
    const E *g, *x;
    const double *mean, *scale, *shift;
    INLINE Through<E> operator()(int64_t plane, int64_t i, void* copy) const {
      return {
          tail,        g + i,        x + i,       moved(in(tail.residual), i), moved(out(copy), i),
          mean[plane], scale[plane], shift[plane]};
    }
  };
  template <class Body>
  static INLINE void with_gradient(const Tail& tail, const void* g, const void* x,
                                   const double* mean, const double* scale, const double* shift,
                                   const void* z_gradient, Body body) {
    if (through(tail, z_gradient)) {
      body(FromTail{tail, in(g), in(x), mean, scale, shift});
    } else {
      body(FromMemory{in(g)});
    }
  }

  // The gradient's sums over each plane, and then map(plane, begin, count) over its blocks.
  template <class Gradient, class Fetch, class Map>
  static INLINE void visit_gradient(const ThreadPool& pool, const Grid& grid, Gradient gradient,
                                    const void* x, const double* mean, double* sums,
                                    double* weighted_sums, Fetch fetch, Map map) {
    if (no_elements(grid, sums, weighted_sums, 0)) return;
    visit<int, GradientSums>(
        pool, planes(grid), grid.size, [](int64_t, int64_t, int64_t) { return 0; },
        [=, &grid](int64_t plane, int64_t begin, int64_t count, int) {
          const int64_t at = plane * grid.size + begin;
          auto g = gradient(plane, at, nullptr);
          return gradient_sums_of(g, in(x) + at, count, mean[plane], fetch.from(at));
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

  // y from one block of a plane.
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

  static int32_t apply(const ThreadPool& pool, const Grid& grid, const Tail& tail, const void* x,
                       const double* mean, const double* scale, const double* shift, void* y) {
    visit_map(pool, planes(grid), grid.size,
              [=, &grid, &tail](int64_t plane, int64_t begin, int64_t count) {
                map_forward(tail, x, y, plane * grid.size + begin, count, mean[plane], scale[plane],
                            shift[plane], NoFetch{});
              });
    return MOMENTNORM_OK;
  }

  static int32_t normalize(const ThreadPool& pool, const Grid& grid, const Tail& tail,
                           const void* x, const void* weight, const void* bias, double eps, void* y,
                           double* mean, double* var) {
    with_fetch(grid, y, [=, &pool, &grid, &tail](auto fetch) {
      visit_moments(pool, grid, x, mean, var, fetch,
                    [=, &grid, &tail](int64_t plane, int64_t begin, int64_t count) {
                      const Forward k = forward(grid, weight, bias, plane, var[plane], eps);
                      map_forward(tail, x, y, plane * grid.size + begin, count, mean[plane],
                                  k.scale, k.shift, fetch);
                    });
    });
    return MOMENTNORM_OK;
  }

  static int32_t gradient_sums(const ThreadPool& pool, const Grid& grid, const Tail& tail,
                               const void* g, const void* x, const double* mean,
                               const double* scale, const double* shift, double* sums,
                               double* weighted_sums) {
    with_gradient(tail, g, x, mean, scale, shift, nullptr, [=, &pool, &grid](auto gradient) {
      visit_gradient(pool, grid, gradient, x, mean, sums, weighted_sums, NoFetch{}, no_map);
    });
    return MOMENTNORM_OK;
  }

  static int32_t apply_gradient(const ThreadPool& pool, const Grid& grid, const Tail& tail,
                                const void* g, const void* x, const double* mean,
                                const double* scale, const double* shift, const double* a,
                                const double* b, const double* c, void* dx, void* z_gradient) {
    with_gradient(tail, g, x, mean, scale, shift, z_gradient, [=, &pool, &grid](auto gradient) {
      visit_map(pool, planes(grid), grid.size,
                [=, &grid](int64_t plane, int64_t begin, int64_t count) {
                  const int64_t at = plane * grid.size + begin;
                  auto of_block = gradient(plane, at, z_gradient);
                  apply_gradient_to(of_block, in(x) + at, out(dx) + at, count, mean[plane],
                                    a[plane], b[plane], c[plane], NoFetch{});
                });
    });
    return MOMENTNORM_OK;
  }

  static int32_t normalize_backward(const ThreadPool& pool, const Grid& grid, const Tail& tail,
                                    const void* g, const void* x, const double* mean,
                                    const double* var, const void* weight, const void* bias,
                                    double eps, void* dx, void* z_gradient, double* sums,
                                    double* weighted_sums) {
    const PlaneMaps maps(grid, through(tail, z_gradient), weight, bias, var, eps);
    if (!maps.good()) return MOMENTNORM_NO_MEMORY;
    with_gradient(tail, g, x, mean, maps.scale.data, maps.shift.data, z_gradient,
                  [=, &pool, &grid](auto gradient) {
                    auto visit_with = [=, &pool, &grid](auto fetch) {
                      visit_gradient(pool, grid, gradient, x, mean, sums, weighted_sums, fetch,
                                     [=, &grid](int64_t plane, int64_t begin, int64_t count) {
                                       const int64_t at = plane * grid.size + begin;
                                       const Backward k =
                                           backward(grid, weight, plane, var[plane], eps,
                                                    sums[plane], weighted_sums[plane]);
                                       auto of_block = gradient(plane, at, z_gradient);
                                       apply_gradient_to(of_block, in(x) + at, out(dx) + at, count,
                                                         mean[plane], k.a, k.b, k.c, fetch);
                                     });
                    };
                    if constexpr (decltype(gradient)::kPlain) {
                      with_fetch(grid, dx, visit_with);
                    } else {
                      visit_with(NoFetch{});
                    }
                  });
    return MOMENTNORM_OK;
  }

  static constexpr Kernels table() {
    return {moments,
            apply,
            normalize,
            gradient_sums,
            apply_gradient,
            normalize_backward,
            parameter_gradients};
  }
};

}  // namespace

extern const Kernels kChannelsFirst[kDtypes];
const Kernels kChannelsFirst[kDtypes] = {Of<float>::table(), Of<double>::table(),
                                         Of<BFloat16>::table(), Of<Float16>::table()};

}  // namespace MOMENTNORM_NAMESPACE
