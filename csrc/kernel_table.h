// What dispatch.cpp knows of the kernels: tables of functions for each instruction set.
#pragma once

#include "momentnorm.h"

struct ThreadPool {
  momentnorm_parallel_for parallel_for;
  momentnorm_thread_count thread_count;

  int64_t threads() const {
    uint32_t count = 1;
    if (thread_count != nullptr) thread_count(&count);
    return count > 0 ? count : 1;
  }
};

using Grid = momentnorm_grid;
using Tail = momentnorm_tail;

// For one layout and one element type. Arguments and status follow momentnorm.h; but a tail that is
// null there is a plain one here, and a grid has pools of one plane wherever no pool is looked at.
struct Kernels {
  int32_t (*moments)(const ThreadPool&, const Grid&, const void* x, double* mean, double* var);
  int32_t (*apply)(const ThreadPool&, const Grid&, const Tail&, const void* x, const double* mean,
                   const double* scale, const double* shift, void* y);
  int32_t (*normalize)(const ThreadPool&, const Grid&, const Tail&, const void* x,
                       const void* weight, const void* bias, double eps, void* y, double* mean,
                       double* var);
  int32_t (*normalize_with)(const ThreadPool&, const Grid&, const Tail&, const void* x,
                            const void* mean, const void* var, const void* weight, const void* bias,
                            double eps, void* y);
  int32_t (*gradient_sums)(const ThreadPool&, const Grid&, const Tail&, const void* gradient,
                           const void* x, const double* mean, const double* scale,
                           const double* shift, double* sums, double* weighted_sums);
  int32_t (*apply_gradient)(const ThreadPool&, const Grid&, const Tail&, const void* gradient,
                            const void* x, const double* mean, const double* scale,
                            const double* shift, const double* a, const double* b, const double* c,
                            void* dx, void* z_gradient);
  int32_t (*normalize_backward)(const ThreadPool&, const Grid&, const Tail&, const void* gradient,
                                const void* x, const double* mean, const double* var,
                                const void* weight, const void* bias, double eps, void* dx,
                                void* z_gradient, void* dweight, void* dbias, double* sums,
                                double* weighted_sums);
};

constexpr int kDtypes = 4;   // indexed by momentnorm_dtype
constexpr int kLayouts = 2;  // indexed by momentnorm_layout
constexpr int kActivations = 7;

struct InstructionSet {
  const char* name;
  const Kernels* kernels[kLayouts];  // each kDtypes of them
};
