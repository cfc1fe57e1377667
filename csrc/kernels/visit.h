// How pools of planes are spread over threads.
//
// A visit of a pool reduces the blocks of its planes in order, finishes each plane's statistics,
// then the pool's, then maps the blocks. With enough pools each thread visits whole pools, and the
// map finds the planes still in cache. With few, the blocks of all planes are spread instead, in
// three steps. Both fold the same partial results in the same order.
#pragma once

#include <stdlib.h>

#include "coefficients.h"

namespace MOMENTNORM_NAMESPACE {

// Below this many elements a thread costs more than it brings.
constexpr int64_t kGrain = 32768;

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

// How many ranges parallel() may work on at the same time.
INLINE int64_t most_ranges(const ThreadPool& pool, int64_t count, int64_t grain) {
  const int64_t ranges = ceil_div(count, grain), threads = pool.threads();
  return pool.parallel_for == nullptr || count <= grain ? 1 : ranges < threads ? ranges : threads;
}

// Whether whole pools leave threads idle for more than an eighth of the time.
INLINE bool few_pools(const ThreadPool& threads, const Pools& pools, int64_t size) {
  const int64_t blocks = pools.planes * ceil_div(size, kBlock);
  if (blocks == 1 || pools.count * pools.planes * size <= kGrain) return false;
  const int64_t count = threads.threads();
  return ceil_div(pools.count, count) * count * 8 > pools.count * 9;
}

// How many small planes are reduced before they are mapped: a plane's sums take a while to come to
// an end, and the processor needs other work meanwhile.
constexpr int kTogether = 16;
INLINE int64_t together(int64_t size) {
  const int64_t planes = size > 0 ? 4096 / size : 1;
  return planes < 1 ? 1 : planes > kTogether ? kTogether : planes;
}

// prepare(plane, begin, count) -> Origin; reduce(plane, begin, count, Origin) -> Result;
// fold(Result& into, Result); finish(plane, Result); close(pool), after its planes; and
// map(plane, pool, begin, count). Origin and Result are plain.
template <class Origin, class Result, class Prepare, class Reduce, class Fold, class Finish,
          class Close, class Map>
INLINE void visit(const ThreadPool& threads, const Pools& pools, int64_t size, Prepare prepare,
                  Reduce reduce, Fold fold, Finish finish, Close close, Map map) {
  const int64_t blocks = ceil_div(size, kBlock), planes = pools.planes;
  auto length = [=](int64_t block) {
    const int64_t rest = size - block * kBlock;
    return rest < kBlock ? rest : kBlock;
  };
  Result* partial = nullptr;
  if (few_pools(threads, pools, size)) {
    partial = static_cast<Result*>(malloc(size_t(pools.count * planes * blocks) * sizeof(Result)));
  }
  if (partial == nullptr) {
    const int64_t most = together(planes * size);
    parallel(
        threads, pools.count, ceil_div(kGrain, planes * size), [&](int64_t begin, int64_t end) {
          for (int64_t first = begin; first < end; first += most) {
            const int64_t last = first + most < end ? first + most : end;
            for (int64_t i = first * planes; i < last * planes; i += kTogether) {
              const int64_t rest = last * planes - i, count = rest < kTogether ? rest : kTogether;
              Origin origins[kTogether];
              for (int64_t k = 0; k < count; ++k)
                origins[k] = prepare(pools.plane(i + k), 0, length(0));
              for (int64_t k = 0; k < count; ++k) {
                const int64_t plane = pools.plane(i + k);
                Result result = reduce(plane, 0, length(0), origins[k]);
                for (int64_t block = 1; block < blocks; ++block) {
                  const int64_t from = block * kBlock, n = length(block);
                  fold(result, reduce(plane, from, n, prepare(plane, from, n)));
                }
                finish(plane, result);
              }
            }
            for (int64_t pool = first; pool < last; ++pool) close(pool);
            for (int64_t pool = first; pool < last; ++pool) {
              for (int64_t i = pool * planes; i < (pool + 1) * planes; ++i) {
                const int64_t plane = pools.plane(i);
                for (int64_t block = 0; block < blocks; ++block) {
                  map(plane, pool, block * kBlock, length(block));
                }
              }
            }
          }
        });
    return;
  }
  const int64_t all = pools.count * planes * blocks,
                grain = ceil_div(kGrain, kBlock < size ? kBlock : size);
  parallel(threads, all, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i % blocks;
      const int64_t plane = pools.plane(i / blocks), from = block * kBlock, count = length(block);
      partial[i] = reduce(plane, from, count, prepare(plane, from, count));
    }
  });
  for (int64_t i = 0; i < pools.count * planes; ++i) {
    Result result = partial[i * blocks];
    for (int64_t block = 1; block < blocks; ++block) fold(result, partial[i * blocks + block]);
    finish(pools.plane(i), result);
  }
  free(partial);
  for (int64_t pool = 0; pool < pools.count; ++pool) close(pool);
  parallel(threads, all, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i % blocks;
      map(pools.plane(i / blocks), i / blocks / planes, block * kBlock, length(block));
    }
  });
}

// Only the map.
template <class Map>
INLINE void visit_map(const ThreadPool& threads, int64_t planes, int64_t size, Map map) {
  const int64_t blocks = ceil_div(size, kBlock);
  const int64_t per_block = size < kBlock ? size : kBlock;
  parallel(threads, planes * blocks, ceil_div(kGrain, per_block), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = (i % blocks) * kBlock;
      map(i / blocks, first, size - first < kBlock ? size - first : kBlock);
    }
  });
}

}  // namespace MOMENTNORM_NAMESPACE
