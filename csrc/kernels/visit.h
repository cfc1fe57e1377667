// Visits: distribution of pools over threads.
//
// A visit of a pool reduces the blocks of its planes in order, computes the statistics of each
// plane and of the pool, and then maps the blocks. With enough pools each thread visits whole
// pools, and the map finds the planes in the cache. With fewer pools the threads share the blocks
// of all planes, in three steps. Both ways merge equal partial results in equal order.
#pragma once

#include <stdlib.h>

#include "coefficients.h"

namespace MOMENTNORM_NAMESPACE {

// Fewer elements than this are not worth a thread.
constexpr int64_t kGrain = 32768;

// Calls body(begin, end) for ranges of [0, count), of `grain` at least, on several threads.
template <class Body>
INLINE void parallel(const ThreadPool& pool, int64_t count, int64_t grain, Body body) {
  if (pool.parallel_for == nullptr || count <= grain) {
    if (count > 0) body(0, count);
    return;
  }
  pool.parallel_for(
      0, count, grain,
      [](int64_t begin, int64_t end, void* context) { (*static_cast<Body*>(context))(begin, end); },
      &body);
}

INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Largest number of ranges that parallel() may process at the same time.
INLINE int64_t most_ranges(const ThreadPool& pool, int64_t count, int64_t grain) {
  const int64_t ranges = ceil_div(count, grain), threads = pool.threads();
  return pool.parallel_for == nullptr || count <= grain ? 1 : ranges < threads ? ranges : threads;
}

// Whether visits of whole pools would leave threads idle for more than an eighth of the time.
INLINE bool few_pools(const ThreadPool& threads, const Pools& pools, int64_t size) {
  const int64_t blocks = pools.planes * ceil_div(size, kBlock);
  if (blocks == 1 || pools.count * pools.planes * size <= kGrain) return false;
  const int64_t count = threads.threads();
  return ceil_div(pools.count, count) * count * 8 > pools.count * 9;
}

// Number of small planes that are reduced before they are mapped. The last additions of a plane
// wait for each other, and the processor reduces other planes during that time.
constexpr int kTogether = 16;
INLINE int64_t together(int64_t size) {
  const int64_t planes = size > 0 ? 4096 / size : 1;
  return planes < 1 ? 1 : planes > kTogether ? kTogether : planes;
}

// The blocks of a plane of `size` elements.
struct Blocks {
  int64_t size, count;
  explicit INLINE Blocks(int64_t size_) : size(size_), count(ceil_div(size_, kBlock)) {}
  INLINE int64_t length(int64_t block) const {
    const int64_t rest = size - block * kBlock;
    return rest < kBlock ? rest : kBlock;
  }
  // Smallest number of blocks that are worth a thread.
  INLINE int64_t grain() const { return ceil_div(kGrain, size < kBlock ? size : kBlock); }
};

// The steps of a visit. Origin and Result are plain types.
//
//   prepare(plane, begin, count) -> Origin
//   reduce(plane, begin, count, origin) -> Result
//   fold(into, next)                 merges the result of the next block
//   finish(plane, result)            receives the result of a plane
//   close(pool)                      is called after finish() of all its planes
//   map(plane, pool, begin, count)   is called after close() of the pool
template <class Prepare, class Reduce, class Fold, class Finish, class Close, class Map>
struct Steps {
  Prepare prepare;
  Reduce reduce;
  Fold fold;
  Finish finish;
  Close close;
  Map map;
};

// Reduces the planes from `begin` to `end`, kTogether at a time.
template <class Origin, class Result, class Steps>
INLINE void reduce_planes(const Pools& pools, const Blocks& blocks, int64_t begin, int64_t end,
                          const Steps& steps) {
  for (int64_t i = begin; i < end; i += kTogether) {
    const int64_t count = end - i < kTogether ? end - i : kTogether;
    Origin origins[kTogether];
    for (int64_t k = 0; k < count; ++k) {
      origins[k] = steps.prepare(pools.plane(i + k), 0, blocks.length(0));
    }
    for (int64_t k = 0; k < count; ++k) {
      const int64_t plane = pools.plane(i + k);
      Result result = steps.reduce(plane, 0, blocks.length(0), origins[k]);
      for (int64_t block = 1; block < blocks.count; ++block) {
        const int64_t from = block * kBlock, n = blocks.length(block);
        steps.fold(result, steps.reduce(plane, from, n, steps.prepare(plane, from, n)));
      }
      steps.finish(plane, result);
    }
  }
}

// A visit in which each thread takes whole pools.
template <class Origin, class Result, class Steps>
INLINE void visit_pools(const ThreadPool& threads, const Pools& pools, const Blocks& blocks,
                        const Steps& steps) {
  const int64_t planes = pools.planes, most = together(planes * blocks.size);
  const int64_t grain = ceil_div(kGrain, planes * blocks.size);
  parallel(threads, pools.count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += most) {
      const int64_t last = first + most < end ? first + most : end;
      reduce_planes<Origin, Result>(pools, blocks, first * planes, last * planes, steps);
      for (int64_t pool = first; pool < last; ++pool) steps.close(pool);
      for (int64_t pool = first; pool < last; ++pool) {
        for (int64_t i = pool * planes; i < (pool + 1) * planes; ++i) {
          const int64_t plane = pools.plane(i);
          for (int64_t block = 0; block < blocks.count; ++block) {
            steps.map(plane, pool, block * kBlock, blocks.length(block));
          }
        }
      }
    }
  });
}

// A visit in which the threads share the blocks of all planes. `partial` has room for the result of
// each block.
template <class Result, class Steps>
INLINE void visit_blocks(const ThreadPool& threads, const Pools& pools, const Blocks& blocks,
                         Result* partial, const Steps& steps) {
  const int64_t planes = pools.count * pools.planes;
  auto each_block = [&](auto body) {
    parallel(threads, planes * blocks.count, blocks.grain(), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t block = i % blocks.count;
        body(i, i / blocks.count, block * kBlock, blocks.length(block));
      }
    });
  };
  each_block([&](int64_t i, int64_t member, int64_t from, int64_t count) {
    const int64_t plane = pools.plane(member);
    partial[i] = steps.reduce(plane, from, count, steps.prepare(plane, from, count));
  });
  for (int64_t member = 0; member < planes; ++member) {
    Result* const results = partial + member * blocks.count;
    Result result = results[0];
    for (int64_t block = 1; block < blocks.count; ++block) steps.fold(result, results[block]);
    steps.finish(pools.plane(member), result);
  }
  for (int64_t pool = 0; pool < pools.count; ++pool) steps.close(pool);
  each_block([&](int64_t, int64_t member, int64_t from, int64_t count) {
    steps.map(pools.plane(member), member / pools.planes, from, count);
  });
}

// A visit of all pools, by the steps that struct Steps describes. Without memory for the results of
// blocks, threads take whole pools.
template <class Origin, class Result, class Prepare, class Reduce, class Fold, class Finish,
          class Close, class Map>
INLINE void visit(const ThreadPool& threads, const Pools& pools, int64_t size, Prepare prepare,
                  Reduce reduce, Fold fold, Finish finish, Close close, Map map) {
  const Blocks blocks(size);
  const Steps<Prepare, Reduce, Fold, Finish, Close, Map> steps = {prepare, reduce, fold,
                                                                  finish,  close,  map};
  Result* partial = nullptr;
  if (few_pools(threads, pools, size)) {
    const int64_t count = pools.count * pools.planes * blocks.count;
    partial = static_cast<Result*>(malloc(size_t(count) * sizeof(Result)));
  }
  if (partial == nullptr) {
    visit_pools<Origin, Result>(threads, pools, blocks, steps);
  } else {
    visit_blocks(threads, pools, blocks, partial, steps);
    free(partial);
  }
}

// A visit that only maps. map(plane, begin, count) is called for each block.
template <class Map>
INLINE void visit_map(const ThreadPool& threads, int64_t planes, int64_t size, Map map) {
  const Blocks blocks(size);
  parallel(threads, planes * blocks.count, blocks.grain(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i % blocks.count;
      map(i / blocks.count, block * kBlock, blocks.length(block));
    }
  });
}

}  // namespace MOMENTNORM_NAMESPACE
