// How planes are spread over threads.
//
// A visit of a plane reduces its blocks in order, finishes the plane's statistics, then maps its
// blocks. With enough planes each thread visits whole planes, and the map finds the plane still in
// cache. With few, the blocks of all planes are spread instead, in three steps. Both fold the
// same partial results in the same order.
#pragma once

#include <stdlib.h>

#include "kernels.h"
#include "loops.h"

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

// Whether whole planes leave threads idle for more than an eighth of the time.
INLINE bool few_planes(const ThreadPool& pool, int64_t planes, int64_t size) {
  if (size <= kBlock || planes * size <= kGrain) return false;
  const int64_t threads = pool.threads();
  return ceil_div(planes, threads) * threads * 8 > planes * 9;
}

// How many small planes are reduced before they are mapped: a plane's sums take a while to come to
// an end, and the processor needs other work meanwhile.
constexpr int kTogether = 16;
INLINE int64_t together(int64_t size) {
  const int64_t planes = size > 0 ? 4096 / size : 1;
  return planes < 1 ? 1 : planes > kTogether ? kTogether : planes;
}

// prepare(plane, begin, count) -> Origin; reduce(plane, begin, count, Origin) -> Result;
// fold(Result& into, Result); finish(plane, Result); map(plane, begin, count). Origin and Result
// are plain.
template <class Origin, class Result, class Prepare, class Reduce, class Fold, class Finish,
          class Map>
INLINE void visit(const ThreadPool& pool, int64_t planes, int64_t size, Prepare prepare,
                  Reduce reduce, Fold fold, Finish finish, Map map) {
  const int64_t blocks = ceil_div(size, kBlock);
  auto length = [=](int64_t block) {
    const int64_t rest = size - block * kBlock;
    return rest < kBlock ? rest : kBlock;
  };
  Result* partial = nullptr;
  if (few_planes(pool, planes, size)) {
    partial = static_cast<Result*>(malloc(size_t(planes * blocks) * sizeof(Result)));
  }
  if (partial == nullptr) {
    const int64_t most = together(size);
    parallel(pool, planes, ceil_div(kGrain, size), [&](int64_t begin, int64_t end) {
      for (int64_t first = begin; first < end; first += most) {
        const int64_t last = first + most < end ? first + most : end;
        Origin origins[kTogether];
        for (int64_t i = 0; i < last - first; ++i) origins[i] = prepare(first + i, 0, length(0));
        for (int64_t plane = first; plane < last; ++plane) {
          Result result = reduce(plane, 0, length(0), origins[plane - first]);
          for (int64_t block = 1; block < blocks; ++block) {
            const int64_t begin = block * kBlock, count = length(block);
            fold(result, reduce(plane, begin, count, prepare(plane, begin, count)));
          }
          finish(plane, result);
        }
        for (int64_t plane = first; plane < last; ++plane) {
          for (int64_t block = 0; block < blocks; ++block) {
            map(plane, block * kBlock, length(block));
          }
        }
      }
    });
    return;
  }
  parallel(pool, planes * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i % blocks;
      const int64_t plane = i / blocks, from = block * kBlock, count = length(block);
      partial[i] = reduce(plane, from, count, prepare(plane, from, count));
    }
  });
  for (int64_t plane = 0; plane < planes; ++plane) {
    Result result = partial[plane * blocks];
    for (int64_t block = 1; block < blocks; ++block) fold(result, partial[plane * blocks + block]);
    finish(plane, result);
  }
  free(partial);
  parallel(pool, planes * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = i % blocks;
      map(i / blocks, block * kBlock, length(block));
    }
  });
}

// Only the map.
template <class Map>
INLINE void visit_map(const ThreadPool& pool, int64_t planes, int64_t size, Map map) {
  const int64_t blocks = ceil_div(size, kBlock);
  const int64_t per_block = size < kBlock ? size : kBlock;
  parallel(pool, planes * blocks, ceil_div(kGrain, per_block), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = (i % blocks) * kBlock;
      map(i / blocks, first, size - first < kBlock ? size - first : kBlock);
    }
  });
}

}  // namespace MOMENTNORM_NAMESPACE
