// Kernel tables: the functions of each instruction set, layout and element type, for dispatch.cpp.
#pragma once

#include "momentnorm.h"

// The thread pool of the caller.
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

// The kernels of one layout and one element type. momentnorm.h describes the functions and
// operands. Two things differ: the tail is never null, and functions that ignore pools get pools of
// one plane.
struct Kernels {
  int32_t (*moments)(const ThreadPool& threads, const Grid& grid,
                     const void* x,               // feature map
                     double* mean, double* var);  // of each plane
  int32_t (*apply)(const ThreadPool& threads, const Grid& grid, const Tail& tail,
                   const void* x,                                                 // feature map
                   const double* mean, const double* scale, const double* shift,  // of each plane
                   void* y);                                                      // feature map
  int32_t (*normalize)(const ThreadPool& threads, const Grid& grid, const Tail& tail,
                       const void* x,                         // feature map
                       const void* weight, const void* bias,  // of each channel, or null
                       double eps,
                       void* y,                     // feature map
                       double* mean, double* var);  // of each pool
  int32_t (*normalize_with)(const ThreadPool& threads, const Grid& grid, const Tail& tail,
                            const void* x,                         // feature map
                            const void* mean, const void* var,     // of each channel
                            const void* weight, const void* bias,  // of each channel, or null
                            double eps,
                            void* y);  // feature map
  int32_t (*gradient_sums)(const ThreadPool& threads, const Grid& grid, const Tail& tail,
                           const void* gradient, const void* x,       // feature maps
                           const double* mean,                        // of each plane
                           const double* scale, const double* shift,  // of each plane, with a tail
                           double* sums, double* weighted_sums);      // of each plane
  int32_t (*apply_gradient)(const ThreadPool& threads, const Grid& grid, const Tail& tail,
                            const void* gradient, const void* x,       // feature maps
                            const double* mean,                        // of each plane
                            const double* scale, const double* shift,  // of each plane, with a tail
                            const double* a, const double* b, const double* c,  // of each plane
                            void* dx,                                           // feature map
                            void* residual_gradient);  // feature map, or null
  int32_t (*normalize_backward)(const ThreadPool& threads, const Grid& grid, const Tail& tail,
                                const void* gradient, const void* x,    // feature maps
                                const double* mean, const double* var,  // of each pool
                                const void* weight, const void* bias,   // of each channel, or null
                                double eps,
                                void* dx,                              // feature map
                                void* residual_gradient,               // feature map, or null
                                void* dweight, void* dbias,            // of each channel
                                double* sums, double* weighted_sums);  // of each plane, or null
};

constexpr int kDtypes = 4;   // indexed by momentnorm_dtype
constexpr int kLayouts = 2;  // indexed by momentnorm_layout
constexpr int kActivations = 7;

struct InstructionSet {
  const char* name;
  const Kernels* kernels[kLayouts];  // tables of kDtypes entries
};
