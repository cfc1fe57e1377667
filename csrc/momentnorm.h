/* The C ABI of momentnorm's CPU kernels: raw pointers, no Python, no torch.
 *
 * A feature map x is `samples` x `channels` planes of `size` elements each, of the type `dtype`,
 * and contiguous in the order that `layout` names. What belongs to a plane (mean, var, scale, sums,
 * ...) is a contiguous double array of samples * channels values. A pool is a rectangle of
 * `pool_samples` x `pool_channels` planes that share their statistics; what belongs to pools is an
 * array of (samples / pool_samples) * (channels / pool_channels) values. weight and bias have one
 * value per channel, of the type `parameters`, and may be null (ones and zeros). An output may be
 * the same memory as x (or as gradient, or residual), element for element; otherwise outputs do not
 * overlap inputs.
 *
 * The results are the same bits for any number of threads, any batch around a pool (but for sums
 * over the batch), and any instruction set.
 *
 * Every function returns MOMENTNORM_OK or one of the other codes, and writes no output in that
 * case: what it computes in place of an input is then still that input.
 */
#ifndef MOMENTNORM_H
#define MOMENTNORM_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MOMENTNORM_ABI_VERSION 6
#define MOMENTNORM_EXPORT __attribute__((visibility("default")))

enum momentnorm_status {
  MOMENTNORM_OK = 0,
  MOMENTNORM_UNKNOWN_GRID = 1, /* a dtype, a layout or an activation without kernels */
  MOMENTNORM_NO_INSTRUCTION_SET = 2,
  MOMENTNORM_NO_MEMORY = 3,
  MOMENTNORM_UNEVEN_POOL = 4, /* pools that do not divide the grid */
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
  int64_t pool_samples, pool_channels; /* 1 and 1 for pools of one plane */
  int32_t dtype;                       /* of the feature maps; half types are computed in float */
  int32_t parameters; /* of weight and bias: like dtype, or float32 beside a half type */
  int32_t layout;
} momentnorm_grid;

enum momentnorm_activation {
  MOMENTNORM_IDENTITY = 0,
  MOMENTNORM_RELU = 1,
  MOMENTNORM_LEAKY_RELU = 2,
  MOMENTNORM_SILU = 3,
  MOMENTNORM_GELU = 4, /* by the error function */
  MOMENTNORM_TANH = 5,
  MOMENTNORM_SIGMOID = 6,
};

/* What follows the affine map z of a call: y = activation(z + residual). Its gradients are
 * computed again from x, not saved. A null pointer to this means y = z. */
typedef struct momentnorm_tail {
  int32_t activation;
  double slope;         /* of the leaky ReLU, where z + residual <= 0 */
  const void* residual; /* a feature map like x, or null */
} momentnorm_tail;

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

/* A new feature map of `dtype` as a DLPack tensor (a DLManagedTensor of device type CPU), contents
 * unspecified; null if there is no memory, or none is to be kept. Its pages are kept when its owner
 * deletes it, and serve the next output of about this size: the first touch of a page costs more
 * than the normalization of its contents. Fresh memory is asked to lie on huge pages. */
MOMENTNORM_EXPORT void* momentnorm_new_output(int32_t dimensions, const int64_t* shape,
                                              const int64_t* strides, int32_t dtype, int64_t bytes);

/* Kept bytes at the moment, and the most that are kept. The oldest blocks beyond the limit go back
 * to the system. The first limit is a sixteenth of the machine's memory; a caller that may use
 * less, as in a container, sets a smaller one. */
MOMENTNORM_EXPORT int64_t momentnorm_kept_memory(void);
MOMENTNORM_EXPORT int64_t momentnorm_kept_memory_limit(void);
MOMENTNORM_EXPORT void momentnorm_limit_kept_memory(int64_t bytes);

/* Gives all kept blocks back to the system, for an allocation that failed; returns their bytes. The
 * kernels and momentnorm_new_output do so themselves before they report MOMENTNORM_NO_MEMORY. */
MOMENTNORM_EXPORT int64_t momentnorm_give_back_kept_memory(void);

/* mean, var = moments of each plane; var is divided by size. Planes of no elements give NaN. */
MOMENTNORM_EXPORT int32_t momentnorm_moments(const momentnorm_grid* grid, const void* x,
                                             double* mean, double* var);

/* y = activation((x - mean) * scale + shift + residual) */
MOMENTNORM_EXPORT int32_t momentnorm_apply(const momentnorm_grid* grid, const momentnorm_tail* tail,
                                           const void* x, const double* mean, const double* scale,
                                           const double* shift, void* y);

/* Both in one visit of each pool, with the pool's mean and var, which are per pool here, and
 * scale = weight / sqrt(var + eps), shift = bias. Of the other functions none looks at pools. */
MOMENTNORM_EXPORT int32_t momentnorm_normalize(const momentnorm_grid* grid,
                                               const momentnorm_tail* tail, const void* x,
                                               const void* weight, const void* bias, double eps,
                                               void* y, double* mean, double* var);

/* The same with given moments: mean and var have one value for each channel, of the type
 * `parameters`. */
MOMENTNORM_EXPORT int32_t momentnorm_normalize_with(const momentnorm_grid* grid,
                                                    const momentnorm_tail* tail, const void* x,
                                                    const void* mean, const void* var,
                                                    const void* weight, const void* bias,
                                                    double eps, void* y);

/* sums = sum(g), weighted_sums = sum(g * (x - mean)) over each plane, where g is the gradient of z:
 * of the given gradient of y through the activation. Without a tail g is the given one, and scale
 * and shift may be null. */
MOMENTNORM_EXPORT int32_t momentnorm_gradient_sums(const momentnorm_grid* grid,
                                                   const momentnorm_tail* tail,
                                                   const void* gradient, const void* x,
                                                   const double* mean, const double* scale,
                                                   const double* shift, double* sums,
                                                   double* weighted_sums);

/* dx = a * g + b * (x - mean) + c. With a tail, z_gradient = g, unless it is null. */
MOMENTNORM_EXPORT int32_t momentnorm_apply_gradient(
    const momentnorm_grid* grid, const momentnorm_tail* tail, const void* gradient, const void* x,
    const double* mean, const double* scale, const double* shift, const double* a, const double* b,
    const double* c, void* dx, void* z_gradient);

/* The backward of momentnorm_normalize in one visit of each pool: all of the above, and
 * dweight = sum(weighted_sums / sqrt(var + eps)), dbias = sum(sums) over the samples, one value for
 * each channel, of the type `parameters`. The sums of each plane are written for pools of one plane
 * only; for others they may be null. */
MOMENTNORM_EXPORT int32_t momentnorm_normalize_backward(
    const momentnorm_grid* grid, const momentnorm_tail* tail, const void* gradient, const void* x,
    const double* mean, const double* var, const void* weight, const void* bias, double eps,
    void* dx, void* z_gradient, void* dweight, void* dbias, double* sums, double* weighted_sums);

#ifdef __cplusplus
}
#endif

#endif
