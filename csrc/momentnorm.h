/* The C ABI of momentnorm's CPU kernels. It has raw pointers, and needs neither Python nor torch.
 *
 * A plane is one channel of one sample. A pool is a rectangle of `pool_samples` x `pool_channels`
 * planes that share their statistics. Operands are contiguous, and their names say what they hold:
 *
 *   x, residual        feature maps: samples x channels planes of `size` elements of the type
 *   gradient, y, dx,   `dtype`, in the order that `layout` names. `gradient` is dL/dy.
 *   residual_gradient
 *   mean, var          double, moments of each pool: (samples / pool_samples) x
 *                      (channels / pool_channels). Functions that ignore pools take one value for
 *                      each plane: samples x channels.
 *   scale, shift,      double, one value for each plane: samples x channels
 *   a, b, c, sums,
 *   weighted_sums
 *   weight, bias,      one value for each channel, of the type `parameters`. weight and bias may be
 *   dweight, dbias     null, which means ones and zeros.
 *
 * An output may be the same memory as x, gradient or residual, if both begin at the same element.
 * Otherwise outputs must not overlap inputs.
 *
 * The bits of a result do not depend on the number of threads, the instruction set, or other pools.
 * Sums over the batch depend on the whole batch.
 *
 * Every function returns MOMENTNORM_OK or another status. With another status it has written no
 * output, so a call in place leaves its input unchanged.
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
  MOMENTNORM_UNKNOWN_GRID = 1,       /* a dtype, layout or activation has no kernels */
  MOMENTNORM_NO_INSTRUCTION_SET = 2, /* the processor runs none, or not the chosen one */
  MOMENTNORM_NO_MEMORY = 3,          /* no memory for intermediate results */
  MOMENTNORM_UNEVEN_POOL = 4,        /* pools do not divide the grid */
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

/* Shapes and types of the operands of a call. */
typedef struct momentnorm_grid {
  int64_t samples, channels, size;
  int64_t pool_samples, pool_channels; /* 1 and 1 for pools of one plane */
  int32_t dtype;      /* of feature maps: a momentnorm_dtype; half types are computed in float */
  int32_t parameters; /* of weight and bias: any momentnorm_dtype */
  int32_t layout;     /* of feature maps: a momentnorm_layout */
} momentnorm_grid;

enum momentnorm_activation {
  MOMENTNORM_IDENTITY = 0,
  MOMENTNORM_RELU = 1,
  MOMENTNORM_LEAKY_RELU = 2,
  MOMENTNORM_SILU = 3,
  MOMENTNORM_GELU = 4, /* with the error function */
  MOMENTNORM_TANH = 5,
  MOMENTNORM_SIGMOID = 6,
};

/* The tail of a call: residual and activation.
 *
 *   pre_activation          = (x - mean) * scale + shift + residual
 *   y                       = activation(pre_activation)
 *   pre_activation_gradient = gradient * activation'(pre_activation)
 *
 * A backward computes pre_activation again from x. A null pointer to a tail means no residual and
 * the identity. */
typedef struct momentnorm_tail {
  int32_t activation;   /* a momentnorm_activation */
  double slope;         /* of the leaky ReLU, where pre_activation <= 0 */
  const void* residual; /* a feature map like x, or null */
} momentnorm_tail;

/* MOMENTNORM_ABI_VERSION of the header that this library was compiled with. */
MOMENTNORM_EXPORT int32_t momentnorm_abi_version(void);

/* Names of the instruction sets that this library contains and this processor runs, best first and
 * separated by spaces: "v4 v3 v2" on x86-64, "neon" on aarch64. */
MOMENTNORM_EXPORT const char* momentnorm_instruction_sets(void);

/* Name of the instruction set in use: the best one, unless another was chosen. Null if the
 * processor runs none. */
MOMENTNORM_EXPORT const char* momentnorm_instruction_set(void);

/* Chooses one of momentnorm_instruction_sets() by name, for the whole process. */
MOMENTNORM_EXPORT int32_t momentnorm_choose_instruction_set(const char* name);

/* Sets the thread pool of the caller. `parallel_for` splits [begin, end) into ranges of at least
 * `grain`, calls body(range begin, range end, context) for each, possibly at the same time, and
 * returns when all are done. `thread_count` gives the largest number that run at the same time.
 * Null pointers mean one thread, as before the first call. */
typedef void (*momentnorm_body)(int64_t begin, int64_t end, void* context);
typedef int32_t (*momentnorm_parallel_for)(int64_t begin, int64_t end, int64_t grain,
                                           momentnorm_body body, void* context);
typedef int32_t (*momentnorm_thread_count)(uint32_t* count);
MOMENTNORM_EXPORT void momentnorm_set_thread_pool(momentnorm_parallel_for parallel_for,
                                                  momentnorm_thread_count thread_count);

/* Allocates a feature map of `dtype` as a DLPack tensor, a DLManagedTensor of device type CPU. Its
 * contents are unspecified. Returns null if there is no memory, or if the limit of kept memory is
 * 0.
 *
 * When the owner deletes the tensor, its memory is kept for the next output of about this size. The
 * first access to a fresh page costs more than the normalization of its contents. Fresh memory is
 * on huge pages where the system has them. */
MOMENTNORM_EXPORT void* momentnorm_new_output(int32_t dimensions, const int64_t* shape,
                                              const int64_t* strides, int32_t dtype, int64_t bytes);

/* Number of kept bytes, and its limit. The oldest blocks beyond the limit are given back to the
 * system. The first limit is a sixteenth of the memory of the machine. A caller that may use less
 * memory, as in a container, sets a smaller one. */
MOMENTNORM_EXPORT int64_t momentnorm_kept_memory(void);
MOMENTNORM_EXPORT int64_t momentnorm_kept_memory_limit(void);
MOMENTNORM_EXPORT void momentnorm_limit_kept_memory(int64_t bytes);

/* Gives all kept blocks back to the system, and returns their number of bytes. A caller uses it
 * when an allocation failed. The kernels and momentnorm_new_output do this before they report a
 * failure. */
MOMENTNORM_EXPORT int64_t momentnorm_give_back_kept_memory(void);

/* Moments of each plane. Pools are ignored. The variance is biased, and empty planes give NaN. */
MOMENTNORM_EXPORT int32_t momentnorm_moments(const momentnorm_grid* grid, const void* x,
                                             double* mean, double* var);

/* y = activation((x - mean) * scale + shift + residual). Pools are ignored. */
MOMENTNORM_EXPORT int32_t momentnorm_apply(const momentnorm_grid* grid, const momentnorm_tail* tail,
                                           const void* x, const double* mean, const double* scale,
                                           const double* shift, void* y);

/* The forward in one visit of each pool: mean and var of each pool, and y with
 * scale = weight / sqrt(var + eps), shift = bias. */
MOMENTNORM_EXPORT int32_t momentnorm_normalize(const momentnorm_grid* grid,
                                               const momentnorm_tail* tail, const void* x,
                                               const void* weight, const void* bias, double eps,
                                               void* y, double* mean, double* var);

/* The forward with given moments. Pools are ignored: mean and var have one value for each channel,
 * of the type `parameters`. */
MOMENTNORM_EXPORT int32_t momentnorm_normalize_with(const momentnorm_grid* grid,
                                                    const momentnorm_tail* tail, const void* x,
                                                    const void* mean, const void* var,
                                                    const void* weight, const void* bias,
                                                    double eps, void* y);

/* sums = sum(g) and weighted_sums = sum(g * (x - mean)) over each plane, where g is
 * pre_activation_gradient. Pools are ignored. Without a tail, scale and shift may be null. */
MOMENTNORM_EXPORT int32_t momentnorm_gradient_sums(const momentnorm_grid* grid,
                                                   const momentnorm_tail* tail,
                                                   const void* gradient, const void* x,
                                                   const double* mean, const double* scale,
                                                   const double* shift, double* sums,
                                                   double* weighted_sums);

/* dx = a * g + b * (x - mean) + c and residual_gradient = g, where g is pre_activation_gradient.
 * Pools are ignored. residual_gradient may be null. Without a tail, scale and shift may be null. */
MOMENTNORM_EXPORT int32_t momentnorm_apply_gradient(
    const momentnorm_grid* grid, const momentnorm_tail* tail, const void* gradient, const void* x,
    const double* mean, const double* scale, const double* shift, const double* a, const double* b,
    const double* c, void* dx, void* residual_gradient);

/* The backward of momentnorm_normalize in one visit of each pool. It computes dx, residual_gradient
 * unless that is null, and over the samples dweight = sum(weighted_sums / sqrt(var + eps)) and
 * dbias = sum(sums). The sums of each plane are written for pools of one plane. For other pools
 * they may be null. */
MOMENTNORM_EXPORT int32_t momentnorm_normalize_backward(
    const momentnorm_grid* grid, const momentnorm_tail* tail, const void* gradient, const void* x,
    const double* mean, const double* var, const void* weight, const void* bias, double eps,
    void* dx, void* residual_gradient, void* dweight, void* dbias, double* sums,
    double* weighted_sums);

#ifdef __cplusplus
}
#endif

#endif
