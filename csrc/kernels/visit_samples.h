// Visits of channels_last samples: distribution of samples, or blocks of samples, over threads.
//
// A sample is read twice: once for its statistics, and once to be written. Small samples are
// visited as a whole by one thread. Large samples are visited in groups that fit into the last
// level cache, and the threads share the blocks of a group.
#pragma once

#include "coefficients.h"
#include "pixel_rows.h"
#include "visit.h"

namespace MOMENTNORM_NAMESPACE {

// Size of a group of large samples.
constexpr int64_t kGroupBytes = int64_t(8) << 20;
// Largest sample that one thread visits as a whole.
constexpr int64_t kSmallSample = int64_t(512) << 10;
// Coefficients of a column for the map: the mean, and up to three more.
constexpr int kCoefficients = 4;

// Memory in which one thread works.
template <class T>
struct Workspace {
  Scratch<T> scratch;
  double* partial;  // of the blocks of a sample; for visits of whole samples only
  T* coefficients;  // of a sample; for visits of whole samples only
};

// The workspaces of a call, one for each thread that may run at the same time. They are allocated
// before the first result is written, so a call that finds no memory writes nothing.
template <class T>
struct Workspaces {
  int64_t count, width, tile, partial_size, coefficient_size;
  Array<double> doubles;
  Array<T> values;
  Array<char> taken;

  INLINE Workspaces(int64_t count_, const Rows& shape, bool with_tile, int64_t partial_size_,
                    int64_t coefficient_size_)
      : count(count_),
        width(shape.width),
        tile(with_tile ? (3 + Rows::kTile) * shape.width : 0),
        partial_size(partial_size_),
        coefficient_size(coefficient_size_),
        doubles(count * (2 * width + partial_size)),
        values(count * (width + tile + coefficient_size)),
        taken(count) {
    if (good()) memset(taken.data, 0, size_t(count));
  }
  INLINE bool good() const {
    return doubles.data != nullptr && values.data != nullptr && taken.data != nullptr;
  }
  INLINE Workspace<T> at(int64_t i) const {
    double* const sums = doubles.data + i * (2 * width + partial_size);
    T* const columns = values.data + i * (width + tile + coefficient_size);
    T* const map = columns + width;
    return {{sums, sums + width, columns, map, map + width, map + 2 * width, map + 3 * width},
            sums + 2 * width,
            map + tile};
  }
};

// Exclusive use of a workspace until the end of the scope.
template <class T>
struct Lease {
  const Workspaces<T>& all;
  int64_t place = 0;
  Workspace<T> own;
  // Threads wait here if the thread pool runs more of them than it announced.
  explicit INLINE Lease(const Workspaces<T>& workspaces) : all(workspaces) {
    while (__atomic_exchange_n(&all.taken.data[place], char(1), __ATOMIC_ACQUIRE) != 0) {
      place = (place + 1) % all.count;
    }
    own = all.at(place);
  }
  INLINE ~Lease() { __atomic_store_n(&all.taken.data[place], char(0), __ATOMIC_RELEASE); }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
};

// The steps of a visit. `partial` is two doubles for each channel.
//
//   reduce(sample, block, partial, scratch)
//   fold(into, next, blocks so far)           merges the partial results of the next block
//   finish(sample, partial, coefficients)     is called after the last block of the sample
//   map(sample, block, coefficients, scratch)
template <class Reduce, class Fold, class Finish, class Map>
struct SampleSteps {
  Reduce reduce;
  Fold fold;
  Finish finish;
  Map map;

  // Merges the partial results of a sample into its first block's, and finishes the sample.
  template <class T>
  INLINE void fold_blocks(const Rows& shape, int64_t sample, double* partial,
                          T* coefficients) const {
    for (int64_t block = 1; block < shape.blocks; ++block) {
      fold(partial, partial + block * 2 * shape.channels, block);
    }
    finish(sample, partial, coefficients);
  }
};

// A visit in which each thread takes whole samples.
template <class T, class Steps>
INLINE int32_t visit_small_samples(const ThreadPool& threads, int64_t samples, const Rows& shape,
                                   bool with_tile, const Steps& steps) {
  const int64_t partial_size = 2 * shape.channels;
  const int64_t grain = ceil_div(kGrain, shape.size * shape.channels);
  const Workspaces<T> workspaces(most_ranges(threads, samples, grain), shape, with_tile,
                                 shape.blocks * partial_size, kCoefficients * shape.width);
  if (!workspaces.good()) return MOMENTNORM_NO_MEMORY;
  parallel(threads, samples, grain, [&](int64_t begin, int64_t end) {
    const Lease<T> lease(workspaces);
    const Workspace<T>& own = lease.own;
    for (int64_t sample = begin; sample < end; ++sample) {
      for (int64_t block = 0; block < shape.blocks; ++block) {
        steps.reduce(sample, block, own.partial + block * partial_size, own.scratch);
      }
      steps.fold_blocks(shape, sample, own.partial, own.coefficients);
      for (int64_t block = 0; block < shape.blocks; ++block) {
        steps.map(sample, block, own.coefficients, own.scratch);
      }
    }
  });
  return MOMENTNORM_OK;
}

// A visit in which the threads share the blocks of `group` samples at a time.
template <class T, class Steps>
INLINE int32_t visit_sample_groups(const ThreadPool& threads, int64_t all_samples, int64_t group,
                                   const Rows& shape, bool with_tile, const Steps& steps) {
  const int64_t partial_size = 2 * shape.channels, coefficient_size = kCoefficients * shape.width;
  const int64_t block_elements = shape.size * shape.channels / shape.blocks;
  const int64_t grain = ceil_div(kGrain, block_elements > 0 ? block_elements : 1);
  const Array<double> partial(group * shape.blocks * partial_size);
  const Array<T> coefficients(group * coefficient_size);
  const Workspaces<T> workspaces(most_ranges(threads, group * shape.blocks, grain), shape,
                                 with_tile, 0, 0);
  if (partial.data == nullptr || coefficients.data == nullptr || !workspaces.good()) {
    return MOMENTNORM_NO_MEMORY;
  }
  // Calls body(sample of the group, block, scratch) for all blocks of `samples` samples.
  auto each_block = [&](int64_t samples, auto body) {
    parallel(threads, samples * shape.blocks, grain, [&](int64_t begin, int64_t end) {
      const Lease<T> lease(workspaces);
      for (int64_t i = begin; i < end; ++i) {
        body(i / shape.blocks, i % shape.blocks, lease.own.scratch);
      }
    });
  };
  for (int64_t from = 0; from < all_samples; from += group) {
    const int64_t samples = all_samples - from < group ? all_samples - from : group;
    each_block(samples, [&](int64_t i, int64_t block, const Scratch<T>& scratch) {
      double* const results = partial.data + (i * shape.blocks + block) * partial_size;
      steps.reduce(from + i, block, results, scratch);
    });
    const int64_t fold_grain = ceil_div(kGrain, shape.blocks * shape.channels);
    parallel(threads, samples, fold_grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        steps.fold_blocks(shape, from + i, partial.data + i * shape.blocks * partial_size,
                          coefficients.data + i * coefficient_size);
      }
    });
    each_block(samples, [&](int64_t i, int64_t block, const Scratch<T>& scratch) {
      steps.map(from + i, block, coefficients.data + i * coefficient_size, scratch);
    });
  }
  return MOMENTNORM_OK;
}

// A visit of all samples of elements E, by the steps that struct SampleSteps describes. With
// `with_tile` the scratch has a tile and the affine map of a tail.
template <class E, class Reduce, class Fold, class Finish, class Map>
INLINE int32_t visit_samples(const ThreadPool& threads, int64_t samples, const Rows& shape,
                             bool with_tile, Reduce reduce, Fold fold, Finish finish, Map map) {
  using T = Compute<E>;
  const SampleSteps<Reduce, Fold, Finish, Map> steps = {reduce, fold, finish, map};
  const int64_t elements = shape.size * shape.channels, bytes = elements * int64_t(sizeof(E));
  const int64_t count = threads.threads();
  const bool idle = ceil_div(samples, count) * count * 8 > samples * 9;
  if (bytes <= kSmallSample && (samples * elements <= kGrain || !idle)) {
    return visit_small_samples<T>(threads, samples, shape, with_tile, steps);
  }
  const int64_t most = bytes > 0 ? kGroupBytes / bytes : samples;
  const int64_t group = most < 1 ? 1 : most > samples ? samples : most;
  return visit_sample_groups<T>(threads, samples, group, shape, with_tile, steps);
}

}  // namespace MOMENTNORM_NAMESPACE
