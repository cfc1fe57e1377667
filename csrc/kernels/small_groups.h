// Small groups: pools of several small planes of one sample, as in GroupNorm and in LayerNorm over
// (C, *S).
//
// The elements of such a pool are one contiguous run, which is summed as a whole. The gradients of
// weight and bias are summed over the samples for each place.
#pragma once

#include "small_planes.h"

namespace MOMENTNORM_NAMESPACE {

// Shorter runs are added in double, and several of them share a register.
constexpr int64_t kShortRun = kColumns;
// Number of samples that one piece of work sums.
constexpr int64_t kRows = 64;

// Whether the pools of a grid are runs.
INLINE bool along_runs(const Grid& grid) {
  return grid.pool_samples == 1 && grid.pool_channels > 1 && grid.size < kSmallPlane;
}

// The runs of a sample, and its chunks. A chunk is several whole runs, or several channels of one
// run.
struct Runs {
  int64_t length, width;  // places of a run, and of a sample
  int64_t per_sample;     // runs of a sample
  bool whole;             // whether chunks are whole runs
  int64_t per_chunk;      // places of a chunk
  int64_t parts;          // chunks of a run, if it is longer than a chunk
  int64_t chunks;         // chunks of a sample
  explicit INLINE Runs(const Grid& grid)
      : length(grid.pool_channels * grid.size),
        width(grid.channels * grid.size),
        per_sample(grid.channels / grid.pool_channels),
        whole(length <= kChunk),
        per_chunk(whole ? kChunk / length * length : kChunk / grid.size * grid.size),
        parts(ceil_div(length, per_chunk)),
        chunks(whole ? ceil_div(width, per_chunk) : per_sample * parts) {}
  INLINE int64_t first(int64_t chunk) const {
    return whole ? chunk * per_chunk : chunk / parts * length + chunk % parts * per_chunk;
  }
  INLINE int64_t last(int64_t chunk) const {
    const int64_t end = first(chunk) + per_chunk;
    const int64_t most = whole ? width : (chunk / parts + 1) * length;
    return end < most ? end : most;
  }
};

// The grid in which each run is a plane.
INLINE Grid grid_of_runs(const Grid& grid) {
  Grid runs = grid;
  runs.channels = grid.channels / grid.pool_channels;
  runs.size = grid.pool_channels * grid.size;
  runs.pool_channels = 1;
  return runs;
}

// Calls body(begin, end, numbers) for the places of a chunk, counted from its beginning.
// shared(run) gives the PoolNumbers of a run of this sample.
template <class T, class Get, class Body>
INLINE void each_run(const Runs& runs, int64_t first, int64_t last, Get shared, Body body) {
  int64_t run = first / runs.length;
  if (runs.length < kShortRun) {
    SeveralPools<T> several;
    for (int64_t at = first; at < last; at += runs.length) {
      several.set(at - first, runs.length, shared(run++));
    }
    body(0, last - first, several);
    return;
  }
  for (int64_t at = first; at < last; ++run) {
    const int64_t end = (run + 1) * runs.length < last ? (run + 1) * runs.length : last;
    body(at - first, end - first, OnePool<T>{shared(run)});
    at = end;
  }
}

// Computes y at the places from `first` to `last` of one sample, from the moments of its runs.
template <class E>
INLINE void map_runs(const Runs& runs, const Operands<E>& at, const double* mean, const double* var,
                     double eps, int64_t first, int64_t last) {
  using T = Compute<E>;
  alignas(kBytes) T chunk[kChunk];
  each_run<T>(
      runs, first, last,
      [=](int64_t run) { return PoolNumbers<T>(mean[run], inverse_std(var[run], eps)); },
      [&](int64_t begin, int64_t end, const auto& numbers) {
        map_places(at, begin, end, numbers, chunk);
      });
}

// Moments of a short run, in double: first the mean, then the variance about it.
template <class T>
INLINE Moments short_moments(const T* x, int64_t length) {
  const double first = double(x[0]), count = double(length);
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < length; ++i) sum += double(x[i]) - first;
  const double mean = first + sum / count;
  for (int64_t i = 0; i < length; ++i) {
    const double centred = double(x[i]) - mean;
    squares += centred * centred;
  }
  return {mean, squares / count};
}

// The forward of short runs: moments and y.
template <class E>
INLINE void normalize_short_runs(const ThreadPool& threads, const Grid& grid,
                                 const Operands<E>& operands, double eps, double* mean,
                                 double* var) {
  using T = Compute<E>;
  const Runs runs(grid);
  parallel(
      threads, grid.samples * runs.chunks, ceil_div(kGrain, runs.per_chunk),
      [&](int64_t begin, int64_t end) {
        alignas(kBytes) T values[kChunk];
        for (int64_t task = begin; task < end; ++task) {
          const int64_t sample = task / runs.chunks, chunk = task % runs.chunks;
          const int64_t first = runs.first(chunk), last = runs.last(chunk), count = last - first;
          const Operands<E> at = operands.from(sample * runs.width + first, first);
          const T* const x = computed(at.x, count, values);
          double *const means = mean + sample * runs.per_sample, *const vars =
                                                                     var + sample * runs.per_sample;
          int64_t run = first / runs.length;
          for (int64_t i = 0; i < count; i += runs.length, ++run) {
            const Moments all = short_moments(x + i, runs.length);
            means[run] = all.mean, vars[run] = all.var;
          }
          map_runs(runs, at, means, vars, eps, first, last);
        }
      });
}

// Gradient in front of the weight, for the sums of a long run: pre_activation_gradient * weight,
// computed one chunk at a time.
template <class E>
struct WeightedGradient {
  static constexpr bool kPairs = false;
  Operands<E> run;
  OnePool<Compute<E>> numbers;
  int64_t begin = 0;
  alignas(kBytes) Compute<E> chunk[kChunk + kWidth<Compute<E>>];

  INLINE WeightedGradient(const Operands<E>& run_, const PoolNumbers<Compute<E>>& shared)
      : run(run_), numbers{shared} {
    run.residual_gradient = nullptr;
  }
  INLINE void prepare(int64_t i, int64_t count) {
    using T = Compute<E>;
    begin = i;
    const Operands<E> at = run.from(i, i);
    gradient_of_places(at, 0, count, numbers, chunk);
    for (int64_t k = 0; k < count; k += kWidth<T>) {
      store(chunk + k, load(chunk + k) * load(at.weight + k));
    }
  }
  INLINE const Compute<E>* at(int64_t i) const { return chunk + (i - begin); }
};

// Sums g * weight and g * weight * (x - mean) over each run of a chunk of whole runs, where `chunk`
// holds g = pre_activation_gradient. `mean` and `sums` start at the first of these runs.
template <class E>
INLINE void sum_runs(const Runs& runs, const Operands<E>& at, const Compute<E>* chunk,
                     int64_t count, const double* mean, GradientSums* sums) {
  using T = Compute<E>;
  alignas(kBytes) T weighted[kChunk + kWidth<T>], values[kChunk];
  for (int64_t i = 0; i < count; i += kWidth<T>) {
    store(weighted + i, load_some(chunk + i, count - i) * load(at.weight + i));
  }
  if (runs.length >= kShortRun) {
    for (int64_t from = 0; from < count; from += runs.length) {
      DirectGradient<T> g = {weighted + from};
      *sums++ = gradient_sums_of(g, at.x + from, runs.length, *mean++, NoFetch{});
    }
    return;
  }
  const T* const x = computed(at.x, count, values);
  for (int64_t from = 0; from < count; from += runs.length, ++mean, ++sums) {
    *sums = {0, 0};
    for (int64_t i = from; i < from + runs.length; ++i) {
      sums->plain += double(weighted[i]);
      sums->weighted += double(weighted[i]) * (double(x[i]) - *mean);
    }
  }
}

// Computes dx, and the terms of dweight and dbias for each channel, summed over kRows samples at a
// time. `partial` receives them, 2 x channels numbers for each such block of samples. `sums` of the
// runs is an input where runs are longer than a chunk, and is computed here otherwise.
template <class E>
INLINE void map_runs_backward(const ThreadPool& threads, const Grid& grid,
                              const Operands<E>& operands, const double* mean, const double* var,
                              double eps, GradientSums* sums, double* partial) {
  using T = Compute<E>;
  const Runs runs(grid);
  const int64_t blocks = ceil_div(grid.samples, kRows);
  const int64_t rows = grid.samples < kRows ? grid.samples : kRows;
  auto work = [&](int64_t block, int64_t first, int64_t last) {
    alignas(kBytes) T chunk[kChunk];
    PlaceSums<T> places;
    const int64_t count = last - first, from = block * kRows;
    const int64_t to = from + kRows < grid.samples ? from + kRows : grid.samples;
    add_samples(places, from, to, count, [&](int64_t sample) {
      const Operands<E> at = operands.from(sample * runs.width + first, first);
      const int64_t before = sample * runs.per_sample;
      auto forward = [&](int64_t run) {
        return PoolNumbers<T>(mean[before + run], inverse_std(var[before + run], eps));
      };
      each_run<T>(runs, first, last, forward, [&](int64_t begin, int64_t end, const auto& numbers) {
        gradient_of_places(at, begin, end, numbers, chunk);
      });
      if (runs.whole) {
        const int64_t run = before + first / runs.length;
        sum_runs(runs, at, chunk, count, mean + run, sums + run);
      }
      auto both = [&](int64_t run) {
        const double rstd = inverse_std(var[before + run], eps), n = double(runs.length);
        const GradientSums all = sums[before + run];
        return PoolNumbers<T>(mean[before + run], rstd, -rstd * rstd * rstd * (all.weighted / n),
                              -rstd * (all.plain / n));
      };
      each_run<T>(runs, first, last, both, [&](int64_t begin, int64_t end, const auto& numbers) {
        backward_places<true, true>(at, begin, end, numbers, chunk, places);
      });
    });
    double* const of_weight = partial + block * 2 * grid.channels;
    for (int64_t at = 0; at < count; at += grid.size) {
      const ChannelSums channel = over_places(places, at, grid.size);
      of_weight[(first + at) / grid.size] = channel.first;
      of_weight[(first + at) / grid.size + grid.channels] = channel.second;
    }
  };
  parallel(threads, blocks * runs.chunks, ceil_div(kGrain, rows * runs.per_chunk),
           [&](int64_t begin, int64_t end) {
             for (int64_t task = begin; task < end; ++task) {
               const int64_t chunk = task % runs.chunks;
               work(task / runs.chunks, runs.first(chunk), runs.last(chunk));
             }
           });
}

}  // namespace MOMENTNORM_NAMESPACE
