/* The C ABI of momentnorm's CPU kernels: raw pointers, no Python, no torch.
 *
 * A feature map x is `samples` x `channels` planes of `size` elements each, of the type `dtype`,
 * and contiguous in the order that `layout` names. What belongs to a plane (mean, var, scale, sums,
 * ...) is a contiguous double array of samples * channels values. weight and bias have one value
 * per channel, of the type `parameters`, and may be null (ones and zeros). An output may be the
 * same memory as x (or as gradient), element for element; otherwise outputs do not overlap inputs.
 *
 * The results are the same bits for any number of threads, any batch around a sample, and any
 * instruction set.
 *
 * Every function returns MOMENTNORM_OK or one of the other codes, and writes nothing in that case;
 * but where memory runs out (MOMENTNORM_NO_MEMORY), part of the output may be written.
 */
#ifndef MOMENTNORM_H
#define MOMENTNORM_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MOMENTNORM_ABI_VERSION 2
#define MOMENTNORM_EXPORT __attribute__((visibility("default")))

enum momentnorm_status {
  MOMENTNORM_OK = 0,
  MOMENTNORM_UNKNOWN_GRID = 1, /* a dtype or a layout without kernels */
  MOMENTNORM_NO_INSTRUCTION_SET = 2,
  MOMENTNORM_NO_MEMORY = 3,
};

enum momentnorm_dtype {
  MOMENTNORM_FLOAT32 = 0,
  MOMENTNORM_FLOAT64 = 1,
  MOMENTNORM_BFLOAT16 = 2,
  MOMENTNORM_FLOAT16 = 3,
};

enum momentnorm_layout {
  MOMENTNORM_CHANNELS_FIRST = 0, /* samples, channels, size */
  MOMENTNORM_CHANNELS_LAST = 1,  /* samples, size, channels */
};

/* What a call is about. */
typedef struct momentnorm_grid {
  int64_t samples, channels, size;
  int32_t dtype;      /* of the feature maps; half types are computed in float */
  int32_t parameters; /* of weight and bias: like dtype, or float32 beside a half type */
  int32_t layout;
} momentnorm_grid;

/* Of the header that this library was compiled with. */
MOMENTNORM_EXPORT int32_t momentnorm_abi_version(void);

/* The names of the instruction sets that this library holds and this processor runs, best first,
 * separated by spaces: "v4 v3 v2" on x86-64, "neon" on aarch64. */
MOMENTNORM_EXPORT const char* momentnorm_instruction_sets(void);

/* The one in use: the best, unless another was chosen. Null if the processor runs none. */
MOMENTNORM_EXPORT const char* momentnorm_instruction_set(void);

/* Choose one of momentnorm_instruction_sets() by name, for the whole process. */
MOMENTNORM_EXPORT int32_t momentnorm_choose_instruction_set(const char* name);

/* The caller's thread pool. `parallel_for` splits [begin, end) into ranges of at least `grain` and
 * calls body(range begin, range end, context) for each, possibly at the same time; it returns
 * when all are done. `thread_count` says how many may run at the same time. Null pointers, and the
 * state before the first call, mean one thread. */
typedef void (*momentnorm_body)(int64_t begin, int64_t end, void* context);
typedef int32_t (*momentnorm_parallel_for)(int64_t begin, int64_t end, int64_t grain,
                                           momentnorm_body body, void* context);
typedef int32_t (*momentnorm_thread_count)(uint32_t* count);
MOMENTNORM_EXPORT void momentnorm_set_thread_pool(momentnorm_parallel_for parallel_for,
                                                  momentnorm_thread_count thread_count);

/* Ask for huge pages under fresh memory of `bytes` bytes, where the system grants them: the page
 * faults of a large fresh output cost more than the arithmetic. Changes no contents, needs no
 * undoing, and does nothing for memory without a whole huge page in it. */
MOMENTNORM_EXPORT void momentnorm_advise_fresh(void* memory, int64_t bytes);

/* mean, var = moments of each plane; var is divided by size. Planes of no elements give NaN. */
MOMENTNORM_EXPORT int32_t momentnorm_moments(const momentnorm_grid* grid, const void* x,
                                             double* mean, double* var);

/* y = (x - mean) * scale + shift */
MOMENTNORM_EXPORT int32_t momentnorm_apply(const momentnorm_grid* grid, const void* x,
                                           const double* mean, const double* scale,
                                           const double* shift, void* y);

/* Both in one visit of each plane: y = (x - mean) * weight / sqrt(var + eps) + bias */
MOMENTNORM_EXPORT int32_t momentnorm_normalize(const momentnorm_grid* grid, const void* x,
                                               const void* weight, const void* bias, double eps,
                                               void* y, double* mean, double* var);

/* sums = sum(gradient), weighted_sums = sum(gradient * (x - mean)), over each plane */
MOMENTNORM_EXPORT int32_t momentnorm_gradient_sums(const momentnorm_grid* grid,
                                                   const void* gradient, const void* x,
                                                   const double* mean, double* sums,
                                                   double* weighted_sums);

/* dx = a * gradient + b * (x - mean) + c */
MOMENTNORM_EXPORT int32_t momentnorm_apply_gradient(const momentnorm_grid* grid,
                                                    const void* gradient, const void* x,
                                                    const double* mean, const double* a,
                                                    const double* b, const double* c, void* dx);

/* The backward of momentnorm_normalize in one visit of each plane: dx and both sums. */
MOMENTNORM_EXPORT int32_t momentnorm_normalize_backward(const momentnorm_grid* grid,
                                                        const void* gradient, const void* x,
                                                        const double* mean, const double* var,
                                                        const void* weight, double eps, void* dx,
                                                        double* sums, double* weighted_sums);

#ifdef __cplusplus
}
#endif

#endif
