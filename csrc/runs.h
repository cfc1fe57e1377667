// Pools of several small planes of one sample.
//
// Their elements follow one another in memory: a pool is one run, whose sums know no planes. What
// belongs to the channels, the weight and the bias, is spread over the places of a sample, and the
// gradients of both are summed down the samples, place by place, before the places of a channel are
// added. So a plane costs nothing of its own, be it of one element.
#pragma once

#include "coefficients.h"
#include "visit.h"

namespace MOMENTNORM_NAMESPACE {

// Planes below this size are taken in runs.
constexpr int64_t kSmallPlane = 64;
// Runs below this length are added in double; several of them share a register.
constexpr int64_t kShortRun = kColumns;
// Gradients of places are summed over so many samples in the compute type, ...
constexpr int64_t kRowsInT = 16;
// ... and over so many in one piece of work.
constexpr int64_t kRows = 64;

INLINE bool in_runs(const Grid& grid) {
  return grid.pool_samples == 1 && grid.pool_channels > 1 && grid.size > 0 &&
         grid.size < kSmallPlane;
}

// The places of a sample, and how they are cut into chunks: of some whole runs, or of a part of
// one.
struct Runs {
  int64_t length, width;  // of a run, and of a sample
  int64_t chunks;         // of a sample
  int64_t per_chunk;      // places, if a chunk has whole runs; otherwise 0
  explicit INLINE Runs(const Grid& grid)
      : length(grid.pool_channels * grid.size), width(grid.channels * grid.size) {
    per_chunk = length <= kChunk ? kChunk / length * length : 0;
    chunks = per_chunk > 0 ? ceil_div(width, per_chunk) : width / length * ceil_div(length, kChunk);
  }
  INLINE int64_t first(int64_t chunk) const {
    if (per_chunk > 0) return chunk * per_chunk;
    const int64_t parts = ceil_div(length, kChunk);
    return chunk / parts * length + chunk % parts * kChunk;
  }
  INLINE int64_t last(int64_t chunk) const {
    const int64_t begin = first(chunk);
    const int64_t end = per_chunk > 0 ? begin + per_chunk : begin + kChunk;
    const int64_t most = per_chunk > 0 ? width : (begin / length + 1) * length;
    return end < most ? end : most;
  }
};

// The same grid, with runs for planes.
INLINE Grid grid_of_runs(const Grid& grid) {
  Grid runs = grid;
  runs.channels = grid.channels / grid.pool_channels;
  runs.size = grid.pool_channels * grid.size;
  runs.pool_channels = 1;
  return runs;
}

// The weight and bias of each place, with room behind them for a whole register.
template <class T>
struct PlaceMaps {
  Array<T> weight, bias;
  INLINE PlaceMaps(const Grid& grid, const void* weights, const void* biases)
      : weight(grid.channels * grid.size + kWidth<T>), bias(grid.channels * grid.size + kWidth<T>) {
    for (int64_t channel = 0; good() && channel < grid.channels; ++channel) {
      const T w = T(parameter(grid, weights, channel, 1)),
              b = T(parameter(grid, biases, channel, 0));
      for (int64_t i = channel * grid.size; i < (channel + 1) * grid.size; ++i) {
        weight.data[i] = w, bias.data[i] = b;
      }
    }
  }
  INLINE bool good() const { return weight.data != nullptr && bias.data != nullptr; }
};

// What a run's places share: its mean as T and a rest, and up to three more numbers.
template <class T>
struct Shared {
  T high, rest, rstd, b, c;
  explicit INLINE Shared(double mean, double rstd_, double b_ = 0, double c_ = 0)
      : high(T(mean)), rest(T(mean - double(T(mean)))), rstd(T(rstd_)), b(T(b_)), c(T(c_)) {}
};
// Of the register of places from i on: the same numbers for all, ...
template <class T>
struct OfOne {
  Shared<T> shared;
  INLINE Vec<T> high(int64_t) const { return all(shared.high); }
  INLINE Vec<T> rest(int64_t) const { return all(shared.rest); }
  INLINE Vec<T> rstd(int64_t) const { return all(shared.rstd); }
  INLINE Vec<T> b(int64_t) const { return all(shared.b); }
  INLINE Vec<T> c(int64_t) const { return all(shared.c); }
};
// ... or those of several short runs.
template <class T>
struct OfSeveral {
  T values[5][kChunk + kShortRun + kWidth<T>];
  INLINE void set(int64_t i, int64_t length, const Shared<T>& k) {
    const T numbers[5] = {k.high, k.rest, k.rstd, k.b, k.c};
    // What the last register has too many, the next run writes over.
    for (int n = 0; n < 5; ++n) {
      for (int64_t at = 0; at < length; at += kWidth<T>) store(values[n] + i + at, all(numbers[n]));
    }
  }
  INLINE Vec<T> high(int64_t i) const { return load(values[0] + i); }
  INLINE Vec<T> rest(int64_t i) const { return load(values[1] + i); }
  INLINE Vec<T> rstd(int64_t i) const { return load(values[2] + i); }
  INLINE Vec<T> b(int64_t i) const { return load(values[3] + i); }
  INLINE Vec<T> c(int64_t i) const { return load(values[4] + i); }
};

// body(begin, end, numbers) over the places of a chunk, where shared(run) gives the numbers of a
// run of this sample. Places count from the beginning of the chunk.
template <class T, class Get, class Body>
INLINE void each_run(const Runs& runs, int64_t first, int64_t last, Get shared, Body body) {
  int64_t run = first / runs.length;
  if (runs.length < kShortRun) {
    OfSeveral<T> several;
    for (int64_t at = first; at < last; at += runs.length) {
      several.set(at - first, runs.length, shared(run++));
    }
    body(0, last - first, several);
    return;
  }
  for (int64_t at = first; at < last; ++run) {
    const int64_t end = (run + 1) * runs.length < last ? (run + 1) * runs.length : last;
    body(at - first, end - first, OfOne<T>{shared(run)});
    at = end;
  }
}

// z = (x - mean) * rstd * weight + bias + residual at some places; residual may be null. result(i,
// n, z) takes a register, of which n places count.
template <class E, class Numbers, class Result>
INLINE void affine_places(const E* x, const E* residual, const Compute<E>* weight,
                          const Compute<E>* bias, int64_t begin, int64_t end,
                          const Numbers& numbers, Result result) {
  using T = Compute<E>;
  for (int64_t i = begin; i < end; i += kWidth<T>) {
    const int64_t n = end - i;
    const Vec<T> centred = (load_some(x + i, n) - numbers.high(i)) - numbers.rest(i);
    Vec<T> z = centred * (numbers.rstd(i) * load(weight + i)) + load(bias + i);
    if (residual != nullptr) z += load_some(residual + i, n);
    result(i, n, z);
  }
}

// The operands of a call, from element `at` of the feature maps and place `place` of a sample on.
template <class E>
struct RunOperands {
  const Tail& tail;
  const E *g, *x, *residual;
  E *y, *copy;
  const Compute<E>*weight, *bias;
  INLINE RunOperands from(int64_t at, int64_t place) const {
    return {tail,         moved(g, at),    x + at,         moved(residual, at),
            moved(y, at), moved(copy, at), weight + place, bias + place};
  }
};

// The gradient of z over the places of a chunk, as the compute type has it, into `chunk`.
template <class E, class Numbers>
INLINE void gradient_of_places(const RunOperands<E>& at, bool given, int64_t begin, int64_t end,
                               const Numbers& numbers, Compute<E>* chunk) {
  using T = Compute<E>;
  if (given) {
    for (int64_t i = begin; i < end; i += kWidth<T>) {
      store_some(chunk + i, end - i, load_some(at.g + i, end - i));
    }
    return;
  }
  affine_places(at.x, at.residual, at.weight, at.bias, begin, end, numbers,
                [=](int64_t i, int64_t n, Vec<T> z) { store_some(chunk + i, n, z); });
  activation_gradient(at.tail, chunk + begin, at.g + begin, moved(at.copy, begin), end - begin);
}

// Where a long run's gradient times the weight comes from, for its sums.
template <class E>
struct ThroughWeight {
  static constexpr bool kPairs = false;
  RunOperands<E> from;
  bool given;
  OfOne<Compute<E>> numbers;
  int64_t begin = 0;
  Compute<E> chunk[kChunk + kWidth<Compute<E>>];

  INLINE ThroughWeight(const RunOperands<E>& from_, bool given_, const Shared<Compute<E>>& shared)
      : from(from_), given(given_), numbers{shared} {}
  INLINE void prepare(int64_t i, int64_t count) {
    using T = Compute<E>;
    begin = i;
    const RunOperands<E> at = from.from(i, i);
    gradient_of_places(at, given, 0, count, numbers, chunk);
    for (int64_t k = 0; k < count; k += kWidth<T>) {
      store(chunk + k, load(chunk + k) * load(at.weight + k));
    }
  }
  INLINE const Compute<E>* at(int64_t i) const { return chunk + (i - begin); }
};

// The moments of a short run, in double: its mean, then about its mean.
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

// y at the places from `first` to `last` of one sample, with means and variances of its runs.
template <class E>
INLINE void map_runs(const Runs& runs, const RunOperands<E>& at, const double* mean,
                     const double* var, double eps, int64_t first, int64_t last) {
  using T = Compute<E>;
  T chunk[kChunk];
  const bool direct = plain(at.tail);
  each_run<T>(
      runs, first, last,
      [=](int64_t run) { return Shared<T>(mean[run], inverse_std(var[run], eps)); },
      [&](int64_t begin, int64_t end, const auto& numbers) {
        if (direct) {
          affine_places(at.x, static_cast<const E*>(nullptr), at.weight, at.bias, begin, end,
                        numbers,
                        [&](int64_t i, int64_t n, Vec<T> z) { store_some(at.y + i, n, z); });
        } else {
          affine_places(at.x, at.residual, at.weight, at.bias, begin, end, numbers,
                        [&](int64_t i, int64_t n, Vec<T> z) { store_some(chunk + i, n, z); });
        }
      });
  if (!direct) activate(at.tail, chunk, at.y, last - first);
}

// body(sample, first, last) over all chunks of all samples.
template <class Body>
INLINE void each_chunk(const ThreadPool& threads, const Grid& grid, const Runs& runs, Body body) {
  const int64_t grain = ceil_div(kGrain, runs.per_chunk > 0 ? runs.per_chunk : kChunk);
  parallel(threads, grid.samples * runs.chunks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t chunk = i % runs.chunks;
      body(i / runs.chunks, runs.first(chunk), runs.last(chunk));
    }
  });
}

template <class E>
INLINE void normalize_short_runs(const ThreadPool& threads, const Grid& grid,
                                 const RunOperands<E>& operands, double eps, double* mean,
                                 double* var) {
  using T = Compute<E>;
  const Runs runs(grid);
  const int64_t per_sample = runs.width / runs.length;
  each_chunk(threads, grid, runs, [&](int64_t sample, int64_t first, int64_t last) {
    const RunOperands<E> at = operands.from(sample * runs.width + first, first);
    T values[kChunk];
    const int64_t count = last - first;
    for (int64_t i = 0; i < count; i += kWidth<T>) {
      store_some(values + i, count - i, load_some(at.x + i, count - i));
    }
    int64_t run = sample * per_sample + first / runs.length;
    for (int64_t i = 0; i < count; i += runs.length, ++run) {
      const Moments all = short_moments(values + i, runs.length);
      mean[run] = all.mean, var[run] = all.var;
    }
    map_runs(runs, at, mean + sample * per_sample, var + sample * per_sample, eps, first, last);
  });
}

// The sums over short runs of the gradient times the weight, and of that times x - mean.
template <class E>
INLINE void sum_short_runs(const ThreadPool& threads, const Grid& grid,
                           const RunOperands<E>& operands, bool given, const double* mean,
                           const double* var, double eps, double* sums, double* weighted_sums) {
  using T = Compute<E>;
  const Runs runs(grid);
  const int64_t per_sample = runs.width / runs.length;
  RunOperands<E> reading = operands;
  reading.copy = nullptr;
  each_chunk(threads, grid, runs, [&](int64_t sample, int64_t first, int64_t last) {
    const RunOperands<E> at = reading.from(sample * runs.width + first, first);
    T chunk[kChunk], values[kChunk];
    const int64_t count = last - first;
    each_run<T>(
        runs, first, last,
        [&](int64_t run) {
          run += sample * per_sample;
          return Shared<T>(mean[run], inverse_std(var[run], eps));
        },
        [&](int64_t begin, int64_t end, const auto& numbers) {
          gradient_of_places(at, given, begin, end, numbers, chunk);
        });
    for (int64_t i = 0; i < count; i += kWidth<T>) {
      const int64_t n = count - i;
      store_some(values + i, n, load_some(at.x + i, n));
      store_some(chunk + i, n, load_some(chunk + i, n) * load(at.weight + i));
    }
    int64_t run = sample * per_sample + first / runs.length;
    for (int64_t from = 0; from < count; from += runs.length, ++run) {
      double sum = 0, weighted = 0;
      for (int64_t i = from; i < from + runs.length; ++i) {
        sum += double(chunk[i]);
        weighted += double(chunk[i]) * (double(values[i]) - mean[run]);
      }
      sums[run] = sum, weighted_sums[run] = weighted;
    }
  });
}

// dx, from the numbers of each run; and, down some samples, the sums of g and of g * (x - mean) *
// rstd at each place, into `partial`: twice the width of a sample for every kRows samples.
template <class E, class Get>
INLINE void map_runs_backward(const ThreadPool& threads, const Grid& grid,
                              const RunOperands<E>& operands, bool given, Get shared,
                              double* partial) {
  using T = Compute<E>;
  const Runs runs(grid);
  const int64_t per_sample = runs.width / runs.length;
  const int64_t blocks = ceil_div(grid.samples, kRows);
  const int64_t rows = grid.samples < kRows ? grid.samples : kRows;
  const int64_t places = runs.per_chunk > 0 ? runs.per_chunk : kChunk;
  parallel(
      threads, blocks * runs.chunks, ceil_div(kGrain, rows * places),
      [&](int64_t begin, int64_t end) {
        T chunk[kChunk], sums[2][kChunk + kWidth<T>];
        for (int64_t task = begin; task < end; ++task) {
          const int64_t block = task / runs.chunks;
          const int64_t first = runs.first(task % runs.chunks);
          const int64_t last = runs.last(task % runs.chunks), count = last - first;
          double* const totals = partial + block * 2 * runs.width + first;
          for (int64_t i = 0; i < count; ++i) totals[i] = totals[i + runs.width] = 0;
          const int64_t behind =
              (block + 1) * kRows < grid.samples ? (block + 1) * kRows : grid.samples;
          for (int64_t from = block * kRows; from < behind; from += kRowsInT) {
            const int64_t to = from + kRowsInT < behind ? from + kRowsInT : behind;
            memset(sums, 0, sizeof sums);
            for (int64_t sample = from; sample < to; ++sample) {
              const RunOperands<E> at = operands.from(sample * runs.width + first, first);
              each_run<T>(
                  runs, first, last, [&](int64_t run) { return shared(sample * per_sample + run); },
                  [&](int64_t begin, int64_t end, const auto& k) {
                    gradient_of_places(at, given, begin, end, k, chunk);
                    for (int64_t i = begin; i < end; i += kWidth<T>) {
                      const int64_t n = end - i;
                      const Vec<T> g = load_some(chunk + i, n);
                      const Vec<T> centred = (load_some(at.x + i, n) - k.high(i)) - k.rest(i);
                      const Vec<T> rstd = k.rstd(i);
                      const Vec<T> of_weight = g * (centred * rstd);
                      store_some(at.y + i, n,
                                 g * (rstd * load(at.weight + i)) + (centred * k.b(i) + k.c(i)));
                      store_some(sums[0] + i, n, load(sums[0] + i) + of_weight);
                      store_some(sums[1] + i, n, load(sums[1] + i) + g);
                    }
                  });
            }
            for (int64_t i = 0; i < count; ++i) {
              totals[i] += double(sums[0][i]);
              totals[i + runs.width] += double(sums[1][i]);
            }
          }
        }
      });
}

// dweight and dbias: the sums over all samples and over the places of each channel.
INLINE void add_places(const Grid& grid, double* partial, void* dweight, void* dbias) {
  const int64_t width = grid.channels * grid.size, blocks = ceil_div(grid.samples, kRows);
  for (int64_t block = 1; block < blocks; ++block) {
    for (int64_t i = 0; i < 2 * width; ++i) partial[i] += partial[block * 2 * width + i];
  }
  for (int64_t channel = 0; channel < grid.channels; ++channel) {
    double of_weight = 0, of_bias = 0;
    for (int64_t i = channel * grid.size; i < (channel + 1) * grid.size; ++i) {
      of_weight += partial[i];
      of_bias += partial[i + width];
    }
    set_parameter(grid, dweight, channel, of_weight);
    set_parameter(grid, dbias, channel, of_bias);
  }
}

}  // namespace MOMENTNORM_NAMESPACE
