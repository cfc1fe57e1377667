// Dispatch: the C ABI. It picks the instruction set once, and forwards each call to its kernels.
#include <string.h>

#include "kernel_table.h"

#if defined(__x86_64__) && defined(MOMENTNORM_NARROWEST)
#define INSTRUCTION_SETS(X) X(v2)
#elif defined(__x86_64__)
#define INSTRUCTION_SETS(X) X(v4) X(v3) X(v2)
#elif defined(__aarch64__)
#define INSTRUCTION_SETS(X) X(neon)
#endif

#define DECLARE(name)                      \
  namespace momentnorm_##name {            \
    extern const Kernels kChannelsFirst[]; \
    extern const Kernels kChannelsLast[];  \
  }
INSTRUCTION_SETS(DECLARE)
#undef DECLARE

namespace {

// Best first.
constexpr InstructionSet kBuilt[] = {
#define ENTRY(name) {#name, {momentnorm_##name::kChannelsFirst, momentnorm_##name::kChannelsLast}},
    INSTRUCTION_SETS(ENTRY)
#undef ENTRY
};

// Whether this processor runs an instruction set.
bool runs(const char* name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  // The features of the psABI's x86-64 levels that compilers use for these kernels.
  const bool v2 = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt");
  const bool v3 = v2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  return strcmp(name, "v4") == 0 ? v4 : strcmp(name, "v3") == 0 ? v3 : v2;
#else
  return name != nullptr;  // Advanced SIMD is part of aarch64.
#endif
}

// The instruction sets that this processor runs, and the one in use.
struct Choice {
  const InstructionSet* chosen = nullptr;
  char names[32] = "";

  Choice() {
    for (const InstructionSet& candidate : kBuilt) {
      if (!runs(candidate.name)) continue;
      if (chosen == nullptr) {
        chosen = &candidate;
      } else {
        strcat(names, " ");
      }
      strcat(names, candidate.name);
    }
  }
};

Choice choice;

// The instruction set in use. It is read atomically, since a thread may choose one while others
// call.
const InstructionSet* chosen_set() { return __atomic_load_n(&choice.chosen, __ATOMIC_RELAXED); }

ThreadPool threads = {nullptr, nullptr};

bool known(int32_t value, int32_t count) { return value >= 0 && value < count; }

constexpr Tail kPlain = {MOMENTNORM_IDENTITY, 0, nullptr};

// Finds the kernels of a call. Returns MOMENTNORM_OK, or the reason why there are none.
int32_t find_kernels(const Grid& grid, const Tail* tail, const Kernels** kernels) {
  const InstructionSet* const chosen = chosen_set();
  if (chosen == nullptr) return MOMENTNORM_NO_INSTRUCTION_SET;
  if (!known(grid.dtype, kDtypes) || !known(grid.parameters, kDtypes) ||
      !known(grid.layout, kLayouts) ||
      (tail != nullptr && !known(tail->activation, kActivations))) {
    return MOMENTNORM_UNKNOWN_GRID;
  }
  if (grid.pool_samples < 1 || grid.pool_channels < 1 || grid.samples % grid.pool_samples != 0 ||
      grid.channels % grid.pool_channels != 0) {
    return MOMENTNORM_UNEVEN_POOL;
  }
  // Planes of one element have both layouts. channels_first is faster for pools along a sample.
  const bool along_sample = grid.pool_samples == 1 && grid.pool_channels > 1;
  const int32_t layout = grid.size != 1 ? grid.layout
                         : along_sample ? MOMENTNORM_CHANNELS_FIRST
                                        : MOMENTNORM_CHANNELS_LAST;
  *kernels = &chosen->kernels[layout][grid.dtype];
  return MOMENTNORM_OK;
}

// The grid for functions that ignore pools.
Grid of_planes(const Grid& grid) {
  Grid planes = grid;
  planes.pool_samples = planes.pool_channels = 1;
  return planes;
}

}  // namespace

int32_t momentnorm_abi_version(void) { return MOMENTNORM_ABI_VERSION; }

const char* momentnorm_instruction_sets(void) { return choice.names; }

const char* momentnorm_instruction_set(void) {
  const InstructionSet* const chosen = chosen_set();
  return chosen != nullptr ? chosen->name : nullptr;
}

int32_t momentnorm_choose_instruction_set(const char* name) {
  for (const InstructionSet& candidate : kBuilt) {
    if (strcmp(candidate.name, name) == 0 && runs(name)) {
      __atomic_store_n(&choice.chosen, &candidate, __ATOMIC_RELAXED);
      return MOMENTNORM_OK;
    }
  }
  return MOMENTNORM_NO_INSTRUCTION_SET;
}

void momentnorm_set_thread_pool(momentnorm_parallel_for parallel_for,
                                momentnorm_thread_count thread_count) {
  threads = {parallel_for, thread_count};
}

// Start of each function: finds the kernels, or returns. Without planes there is no work.
#define FIND_KERNELS(grid)                                     \
  const Kernels* kernels = nullptr;                            \
  const int32_t status = find_kernels(grid, tail, &kernels);   \
  if (status != MOMENTNORM_OK) return status;                  \
  if (grid.samples * grid.channels == 0) return MOMENTNORM_OK; \
  if (tail == nullptr) tail = &kPlain

// Start of functions whose outputs are all feature maps: empty planes are no work either.
#define FIND_MAP_KERNELS(grid) \
  FIND_KERNELS(grid);          \
  if (grid.size == 0) return MOMENTNORM_OK

int32_t momentnorm_moments(const Grid* grid, const void* x, double* mean, double* var) {
  const Grid planes = of_planes(*grid);
  const Tail* tail = nullptr;
  FIND_KERNELS(planes);
  return kernels->moments(threads, planes, x, mean, var);
}

int32_t momentnorm_apply(const Grid* grid, const Tail* tail, const void* x, const double* mean,
                         const double* scale, const double* shift, void* y) {
  const Grid planes = of_planes(*grid);
  FIND_MAP_KERNELS(planes);
  return kernels->apply(threads, planes, *tail, x, mean, scale, shift, y);
}

int32_t momentnorm_normalize(const Grid* grid, const Tail* tail, const void* x, const void* weight,
                             const void* bias, double eps, void* y, double* mean, double* var) {
  FIND_KERNELS((*grid));
  return kernels->normalize(threads, *grid, *tail, x, weight, bias, eps, y, mean, var);
}

int32_t momentnorm_normalize_with(const Grid* grid, const Tail* tail, const void* x,
                                  const void* mean, const void* var, const void* weight,
                                  const void* bias, double eps, void* y) {
  const Grid planes = of_planes(*grid);
  FIND_MAP_KERNELS(planes);
  return kernels->normalize_with(threads, planes, *tail, x, mean, var, weight, bias, eps, y);
}

int32_t momentnorm_gradient_sums(const Grid* grid, const Tail* tail, const void* gradient,
                                 const void* x, const double* mean, const double* scale,
                                 const double* shift, double* sums, double* weighted_sums) {
  const Grid planes = of_planes(*grid);
  FIND_KERNELS(planes);
  return kernels->gradient_sums(threads, planes, *tail, gradient, x, mean, scale, shift, sums,
                                weighted_sums);
}

int32_t momentnorm_apply_gradient(const Grid* grid, const Tail* tail, const void* gradient,
                                  const void* x, const double* mean, const double* scale,
                                  const double* shift, const double* a, const double* b,
                                  const double* c, void* dx, void* residual_gradient) {
  const Grid planes = of_planes(*grid);
  FIND_MAP_KERNELS(planes);
  return kernels->apply_gradient(threads, planes, *tail, gradient, x, mean, scale, shift, a, b, c,
                                 dx, residual_gradient);
}

int32_t momentnorm_normalize_backward(const Grid* grid, const Tail* tail, const void* gradient,
                                      const void* x, const double* mean, const double* var,
                                      const void* weight, const void* bias, double eps, void* dx,
                                      void* residual_gradient, void* dweight, void* dbias,
                                      double* sums, double* weighted_sums) {
  FIND_KERNELS((*grid));
  const bool single = grid->pool_samples == 1 && grid->pool_channels == 1;
  return kernels->normalize_backward(threads, *grid, *tail, gradient, x, mean, var, weight, bias,
                                     eps, dx, residual_gradient, dweight, dbias,
                                     single ? sums : nullptr, single ? weighted_sums : nullptr);
}
