// Small batches: pools of the small planes of one channel in several samples, as in BatchNorm.
//
// Each place is summed over the samples. Then the places of each channel are added. A piece of work
// is several whole channels of all samples of a pool.
#pragma once

#include "small_planes.h"

namespace MOMENTNORM_NAMESPACE {

// Whether the pools of a grid are columns: one channel of several samples.
INLINE bool down_columns(const Grid& grid) {
  return grid.pool_samples > 1 && grid.pool_channels == 1 && grid.size < kSmallPlane;
}

// Moments of one pool in double throughout, for numbers beyond the range of float.
template <class E>
__attribute__((noinline)) Moments exact_moments_of_column(const E* x, int64_t samples,
                                                          int64_t width, int64_t size) {
  const double first = double(get(x[0])), count = double(samples * size);
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < samples * size; ++i) {
    sum += double(get(x[i / size * width + i % size])) - first;
  }
  const double mean = first + sum / count;
  for (int64_t i = 0; i < samples * size; ++i) {
    const double centred = double(get(x[i / size * width + i % size])) - mean;
    squares += centred * centred;
  }
  return {mean, squares / count};
}

// The columns of a grid, and their kernels.
template <class E>
struct BatchColumns {
  using T = Compute<E>;
  const Grid& grid;
  int64_t width, samples;     // places of a sample, and samples of a pool
  int64_t per_chunk, chunks;  // channels of a chunk, and chunks of a sample
  explicit INLINE BatchColumns(const ThreadPool& threads, const Grid& grid_)
      : grid(grid_), width(grid.channels * grid.size), samples(grid.pool_samples) {
    // Each channel has its own sums, so the number of channels per chunk changes no bits.
    const int64_t most = kChunk / grid.size;
    const int64_t wanted = ceil_div(grid.channels, 2 * threads.threads());
    per_chunk = wanted < most ? wanted : most;
    // Chunks begin on a cache line, if they have enough channels for that.
    const int64_t whole = 64 / (grid.size & -grid.size);
    if (per_chunk > whole) per_chunk -= per_chunk % whole;
    chunks = ceil_div(grid.channels, per_chunk);
  }

  // Calls work(pool, channels, operands) for each chunk of each pool: the pool of its first
  // channel, its number of channels, and the operands of the first sample.
  template <class Work>
  INLINE void each_chunk(const ThreadPool& threads, const Operands<E>& operands, Work work) const {
    parallel(threads, grid.samples / samples * chunks,
             ceil_div(kGrain, samples * per_chunk * grid.size), [&](int64_t begin, int64_t end) {
               for (int64_t task = begin; task < end; ++task) {
                 const int64_t row = task / chunks, first = task % chunks * per_chunk;
                 const int64_t rest = grid.channels - first;
                 const int64_t place = first * grid.size;
                 work(row * grid.channels + first, rest < per_chunk ? rest : per_chunk,
                      operands.from(row * samples * width + place, place));
               }
             });
  }

  // Adds x - origin and its square over the samples.
  INLINE void add_about(const Operands<E>& at, int64_t count, const T* origin,
                        PlaceSums<T>& sums) const {
    add_samples(sums, 0, samples, count, [&](int64_t sample) {
      const E* const x = at.x + sample * width;
      for (int64_t i = 0; i < count; i += kWidth<T>) {
        const Vec<T> shifted = load_some(x + i, count - i) - load(origin + i);
        sums.add(i, shifted, shifted * shifted);
      }
    });
  }

  // Moments of the channels of a chunk. The first sums, about the first sample, give a mean. The
  // second sums, about that mean, give the results.
  INLINE void moments(const Operands<E>& at, int64_t channels, double* mean, double* var) const {
    alignas(kBytes) T origin[kChunk + kWidth<T>];
    PlaceSums<T> sums;
    const int64_t count = channels * grid.size;
    const double places = double(grid.size), elements = double(grid.size * samples);
    for (int64_t i = 0; i < count; i += kWidth<T>)
      store(origin + i, load_some(at.x + i, count - i));
    add_about(at, count, origin, sums);
    for (int64_t channel = 0; channel < channels; ++channel) {
      const int64_t begin = channel * grid.size;
      const double first = double(origin[begin]);
      double about_first = over_places(sums, begin, grid.size).first / double(samples);
      for (int64_t i = begin; i < begin + grid.size; ++i) about_first += double(origin[i]) - first;
      mean[channel] = first + about_first / places;
    }
    for (int64_t channel = 0; channel < channels; ++channel) {
      fill(origin + channel * grid.size, grid.size, T(mean[channel]));
    }
    add_about(at, count, origin, sums);
    for (int64_t channel = 0; channel < channels; ++channel) {
      const ChannelSums all = over_places(sums, channel * grid.size, grid.size);
      const double offset = all.first / elements, m2 = all.second - offset * all.first;
      // A sum about the mean may be exactly 0 although squares underflowed, so only squares other
      // than 0 show that none was lost.
      if (sizeof(T) == sizeof(double) ||
          (all.second != 0 && in_range(all.second, all.first, elements))) {
        mean[channel] = double(origin[channel * grid.size]) + offset;
        var[channel] = (m2 < 0 ? 0 : m2) / elements;
      } else {
        const Moments exact =
            exact_moments_of_column(at.x + channel * grid.size, samples, width, grid.size);
        mean[channel] = exact.mean, var[channel] = exact.var;
      }
    }
  }

  // The forward: moments and y.
  INLINE void normalize(const ThreadPool& threads, const Operands<E>& operands, double eps,
                        double* mean, double* var) const {
    each_chunk(threads, operands, [&](int64_t pool, int64_t channels, const Operands<E>& at) {
      moments(at, channels, mean + pool, var + pool);
      map(at, channels, eps, [=](int64_t k) { return Moments{mean[pool + k], var[pool + k]}; });
    });
  }

  // The forward with given moments of each channel.
  INLINE void normalize_with(const ThreadPool& threads, const Operands<E>& operands, double eps,
                             const void* mean, const void* var) const {
    each_chunk(threads, operands, [&](int64_t first, int64_t channels, const Operands<E>& at) {
      map(at, channels, eps, [=, this](int64_t k) {
        return Moments{parameter(grid, mean, first + k, 0), parameter(grid, var, first + k, 1)};
      });
    });
  }

  // Computes y of a chunk. moments(k) gives the moments of its channel k.
  template <class Get>
  INLINE void map(const Operands<E>& at, int64_t channels, double eps, Get moments) const {
    SeveralPools<T> numbers;
    for (int64_t k = 0; k < channels; ++k) {
      const Moments of_channel = moments(k);
      numbers.set(k * grid.size, grid.size,
                  PoolNumbers<T>(of_channel.mean, inverse_std(of_channel.var, eps)));
    }
    alignas(kBytes) T chunk[kChunk];
    for (int64_t sample = 0; sample < samples; ++sample) {
      map_places(at.from(sample * width, 0), 0, channels * grid.size, numbers, chunk);
    }
  }

  // Computes dx, and for each channel of each pool the sums of g * (x - mean) * rstd and of g.
  // `sums_of` receives them: 2 x channels numbers for each row of pools.
  INLINE void backward(const ThreadPool& threads, const Operands<E>& operands, const double* mean,
                       const double* var, double eps, double* sums_of) const {
    each_chunk(threads, operands, [&](int64_t pool, int64_t channels, const Operands<E>& at) {
      SeveralPools<T> numbers;
      alignas(kBytes) T chunk[kChunk];
      PlaceSums<T> sums;
      const int64_t count = channels * grid.size;
      const double elements = double(grid.size * samples);
      for (int64_t k = 0; k < channels; ++k) {
        numbers.set(k * grid.size, grid.size,
                    PoolNumbers<T>(mean[pool + k], inverse_std(var[pool + k], eps)));
      }
      add_samples(sums, 0, samples, count, [&](int64_t sample) {
        Operands<E> row = at.from(sample * width, 0);
        row.residual_gradient = nullptr;
        gradient_of_places(row, 0, count, numbers, chunk);
        backward_places<true, false>(row, 0, count, numbers, chunk, sums);
      });
      for (int64_t k = 0; k < channels; ++k) {
        const ChannelSums all = over_places(sums, k * grid.size, grid.size);
        const int64_t at_channel = pool + k + pool / grid.channels * grid.channels;
        sums_of[at_channel] = all.first, sums_of[at_channel + grid.channels] = all.second;
        const double rstd = inverse_std(var[pool + k], eps);
        const double a = rstd * double(at.weight[k * grid.size]);
        numbers.set(k * grid.size, grid.size,
                    PoolNumbers<T>(mean[pool + k], rstd, -a * rstd * (all.first / elements),
                                   -a * (all.second / elements)));
      }
      for (int64_t sample = 0; sample < samples; ++sample) {
        const Operands<E> row = at.from(sample * width, 0);
        gradient_of_places(row, 0, count, numbers, chunk);
        backward_places<false, true>(row, 0, count, numbers, chunk, sums);
      }
    });
  }
};

}  // namespace MOMENTNORM_NAMESPACE
