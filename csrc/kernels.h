// What dispatch.cpp knows of the kernels: one table of functions for each instruction set.
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

// The grid of planes of a call.
struct Grid {
  int64_t channels, planes, size;
};

// For one element type. Signatures follow momentnorm.h.
struct Kernels {
  void (*moments)(const ThreadPool&, Grid, const void* x, double* mean, double* var);
  void (*apply)(const ThreadPool&, Grid, const void* x, const double* mean, const double* scale,
                const double* shift, void* y);
  void (*normalize)(const ThreadPool&, Grid, const void* x, const void* weight, const void* bias,
                    double eps, void* y, double* mean, double* var);
  void (*gradient_sums)(const ThreadPool&, Grid, const void* gradient, const void* x,
                        const double* mean, double* sums, double* weighted_sums);
  void (*apply_gradient)(const ThreadPool&, Grid, const void* gradient, const void* x,
                         const double* mean, const double* a, const double* b, const double* c,
                         void* dx);
  void (*normalize_backward)(const ThreadPool&, Grid, const void* gradient, const void* x,
                             const double* mean, const double* var, const void* weight, double eps,
                             void* dx, double* sums, double* weighted_sums);
};

constexpr int kDtypes = 2;  // indexed by momentnorm_dtype

struct InstructionSet {
  const char* name;
  Kernels kernels[kDtypes];
};
