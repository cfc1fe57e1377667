// Sums and moments of one block: at most kBlock consecutive elements of one plane.
#pragma once

#include "vec.h"

namespace MOMENTNORM_NAMESPACE {

// The partial results of blocks are merged in order, so the block size determines the bits of the
// result.
constexpr int64_t kBlock = 8192;

// Element i of a chunk belongs to column i mod kColumns. A column sums its kSteps elements in
// float, which is as fast as the memory. One addition tree then adds the columns to the double
// lanes. A sum has a relative error below 1e-6 at worst, and near 1e-8 on ordinary data, since it
// has so few roundings in float.
constexpr int kGroups = 4;
constexpr int kColumns = kGroups * kLanes;
constexpr int kSteps = 16;
constexpr int kChunk = kColumns * kSteps;

// kLanes sums of columns, in T.
template <class T>
struct Group {
  static constexpr int kVecs = kLanes / kWidth<T>;
  Vec<T> vecs[kVecs] = {};
  INLINE void add(const Group& other) {
    for (int v = 0; v < kVecs; ++v) vecs[v] += other.vecs[v];
  }
  INLINE void add_to(Lanes& lanes) const {
    T values[kLanes];
    for (int v = 0; v < kVecs; ++v) store(values + v * kWidth<T>, vecs[v]);
    for (int r = 0; r < kRegisters; ++r) {
      lanes.registers[r] += load_doubles(values + r * kDoubles);
    }
  }
};

// Adds two sums over a chunk of `steps` steps, in T. terms(places, one, other) gives the terms of
// both sums at some positions. `interleaved` determines which elements share a column.
template <class T, bool interleaved, class Terms>
INLINE void add_chunk(Lanes& first, Lanes& second, int steps, Terms terms) {
  // Number of pairs of groups that fit into the registers at once.
  constexpr int kVecs = Group<T>::kVecs, kPairs = kGroups / 2;
  constexpr int kTogether = kVecs < kPairs ? kPairs / kVecs : 1;
  Group<T> sums[2][kGroups];
  for (int begin = 0; begin < kPairs; begin += kTogether) {
    VecPair<T> one[kTogether][kVecs] = {}, other[kTogether][kVecs] = {};
    for (int step = 0; step < steps; ++step) {
      for (int pair = 0; pair < kTogether; ++pair) {
        for (int v = 0; v < kVecs; ++v) {
          VecPair<T> a, b;
          terms(places<T, interleaved>(step * kColumns + (begin + pair) * 2 * kLanes, v), a, b);
          one[pair][v] += a;
          other[pair][v] += b;
        }
      }
    }
    for (int pair = 0; pair < kTogether; ++pair) {
      for (int v = 0; v < kVecs; ++v) {
        const int group = 2 * (begin + pair);
        sums[0][group].vecs[v] = one[pair][v].first;
        sums[0][group + 1].vecs[v] = one[pair][v].second;
        sums[1][group].vecs[v] = other[pair][v].first;
        sums[1][group + 1].vecs[v] = other[pair][v].second;
      }
    }
  }
  for (Group<T>(&sum)[kGroups] : sums) {
    for (int half = kGroups / 2; half > 0; half /= 2) {
      for (int group = 0; group < half; ++group) sum[group].add(sum[group + half]);
    }
  }
  sums[0][0].add_to(first);
  sums[1][0].add_to(second);
}

// Prefetches, so that the memory is busy during the arithmetic. A reduction fetches the result that
// is written after it, and the map fetches the next plane. NoFetch fetches nothing, FetchResult the
// result alone, FetchBoth both.
struct NoFetch {
  INLINE void for_writing(int64_t) const {}
  INLINE void next(const void*) const {}
  INLINE NoFetch from(int64_t) const { return {}; }
};
template <class E>
struct FetchResult {
  E* result;
  INLINE void for_writing(int64_t i) const { __builtin_prefetch(result + i, 1, 2); }
  INLINE void next(const E*) const {}
  INLINE FetchResult from(int64_t i) const { return {result + i}; }
};
template <class E>
struct FetchBoth {
  E* result;
  int64_t ahead;  // distance to the next planes, in elements
  INLINE void for_writing(int64_t i) const { __builtin_prefetch(result + i, 1, 3); }
  INLINE void next(const E* operand) const { __builtin_prefetch(operand + ahead, 0, 3); }
  INLINE FetchBoth from(int64_t i) const { return {result + i, ahead}; }
};

// Prefetches for a VecPair. Two registers of two-byte elements share a cache line.
template <class E, class Fetch>
INLINE void fetch_for_writing(Fetch fetch, Places at) {
  fetch.for_writing(at.first);
  if (sizeof(E) > 2) fetch.for_writing(at.second);
}
template <class E, class Fetch>
INLINE void fetch_next(Fetch fetch, const E* operand, Places at) {
  fetch.next(operand + at.first);
  if (sizeof(E) > 2) fetch.next(operand + at.second);
}

// Count, mean and sum of squared deviations of some elements.
struct Partial {
  double count, mean, m2;

  // Merges by the formula of Chan, Golub and LeVeque (1979). Equal means merge exactly.
  INLINE void merge(const Partial& other) {
    const double total = count + other.count;
    const double delta = other.mean - mean;
    const double share = other.count / total;
    mean += delta * share;
    m2 += other.m2 + delta * delta * (count * share);
    count = total;
  }
};

// Adds kLanes terms to two sums. terms(offset, one, other) gives kDoubles terms of each.
template <class Terms>
INLINE void add_lanes(Lanes& first, Lanes& second, Terms terms) {
  for (int r = 0; r < kRegisters; ++r) {
    Doubles one, other;
    terms(r * kDoubles, one, other);
    first.registers[r] += one;
    second.registers[r] += other;
  }
}

// Adds two sums over a block. The first `chunked` elements are added in the compute type by
// columns, the others in double by lanes.
//
//   prepare(i, n)             is called before the terms of the n elements from i on
//   fast(places, one, other)  gives a VecPair of terms in the compute type
//   exact(i, one, other)      gives the terms of kDoubles elements in double
//   single(i, one, other)     gives the terms of one element in double
template <class T, bool interleaved, class Prepare, class Fast, class Exact, class Single>
INLINE void add_block(Lanes& first, Lanes& second, int64_t count, int64_t chunked, Prepare prepare,
                      Fast fast, Exact exact, Single single) {
  int64_t at = 0;
  auto terms = [&](Places i, VecPair<T>& one, VecPair<T>& other) {
    fast({at + i.first, at + i.second}, one, other);
  };
  for (; at + kChunk <= chunked; at += kChunk) {
    prepare(at, kChunk);
    add_chunk<T, interleaved>(first, second, kSteps, terms);
  }
  if (at < chunked) {
    prepare(at, chunked - at);
    add_chunk<T, interleaved>(first, second, int((chunked - at) / kColumns), terms);
  }
  for (int64_t chunk = chunked; chunk < count; chunk += kChunk) {
    const int64_t end = chunk + kChunk < count ? chunk + kChunk : count;
    prepare(chunk, end - chunk);
    at = chunk;
    for (; at + kLanes <= end; at += kLanes) {
      add_lanes(first, second,
                [&](int64_t i, Doubles& one, Doubles& other) { exact(at + i, one, other); });
    }
    if (at < end) {
      double terms[2][kLanes] = {};
      for (int64_t i = at; i < end; ++i) single(i, terms[0][i - at], terms[1][i - at]);
      add_lanes(first, second, [&](int64_t i, Doubles& one, Doubles& other) {
        one = load_as_is<Doubles>(terms[0] + i);
        other = load_as_is<Doubles>(terms[1] + i);
      });
    }
  }
}

// Computes the moments of a block from sums of x - origin.
//
// The mean of any m of n elements lies within sqrt(n / m) standard deviations of the mean of all.
// An origin of that kind multiplies the relative error of m2 by 1 + n / m at most.
template <class E, class Fetch>
INLINE void moments_about(const E* x, int64_t count, Compute<E> origin, int64_t chunked,
                          Fetch fetch, double& mean, double& m2) {
  using T = Compute<E>;
  Lanes sum, squares;
  add_block<T, kInterleaved<E>>(
      sum, squares, count, chunked, [](int64_t, int64_t) {},
      [&](Places at, VecPair<T>& one, VecPair<T>& other) {
        fetch_for_writing<E>(fetch, at);
        one = load_pair<kInterleaved<E>>(x, at) - origin;
        other = one * one;
      },
      [&](int64_t i, Doubles& one, Doubles& other) {
        fetch.for_writing(i);
        one = load_doubles(x + i) - double(origin);
        other = one * one;
      },
      [&](int64_t i, double& one, double& other) {
        one = double(get(x[i])) - double(origin);
        other = one * one;
      });
  const double offset = sum.total() / double(count);
  const double about_mean = squares.total() - offset * offset * double(count);
  mean = double(origin) + offset;
  m2 = about_mean < 0 ? 0 : about_mean;
}

// moments_about() out of line, for rare cases: another origin, or double throughout.
template <class E>
__attribute__((noinline)) void moments_again(const E* x, int64_t count, Compute<E> origin,
                                             int64_t chunked, double& mean, double& m2) {
  moments_about(x, count, origin, chunked, NoFetch{}, mean, m2);
}

// An origin is far if the square of its distance from the mean exceeds kFar times the variance.
constexpr double kFar = 4;

// Whether sums of squares in float neither overflowed nor underflowed. Constants are exact and
// count as in range.
INLINE bool in_range(double sum_of_squares, double sum, double count) {
  const double var = sum_of_squares / count;
  return (var > 1e-24 && var < 1e24) || (sum_of_squares == 0 && sum == 0);
}

// Number of elements of a block that are added in columns: 0 where the compute type is double.
template <class E>
INLINE int64_t in_columns(int64_t count) {
  return sizeof(E) < sizeof(double) ? count - count % kColumns : 0;
}

// Approximate mean of the first chunk of a block, or 0 where no elements are added in columns.
template <class E>
INLINE Compute<E> origin_of(const E* x, int64_t count) {
  using T = Compute<E>;
  const int64_t chunked = in_columns<E>(count);
  if (chunked == 0) return 0;
  const int steps = int(chunked < kChunk ? chunked / kColumns : kSteps);
  Lanes sum, unused;
  add_chunk<T, kInterleaved<E>>(sum, unused, steps,
                                [&](Places at, VecPair<T>& one, VecPair<T>& other) {
                                  one = load_pair<kInterleaved<E>>(x, at);
                                  other = VecPair<T>{};
                                });
  return T(sum.total() / (steps * kColumns));
}

// Computes the moments again where the origin was far from the mean, which costs digits. The mean
// just found is the new origin.
template <class E>
INLINE void moments_about_mean(const E* x, int64_t count, Compute<E> origin, int64_t chunked,
                               double& mean, double& m2) {
  const double offset = mean - double(origin);
  if (offset * offset * double(count) > kFar * m2) {
    moments_again(x, count, Compute<E>(mean), chunked, mean, m2);
  }
}

// Moments of a block, with an origin from origin_of().
template <class E, class Fetch>
INLINE Partial moments_of(const E* x, int64_t count, Compute<E> origin, Fetch fetch) {
  const int64_t chunked = in_columns<E>(count);
  double mean, m2;
  bool good = chunked > 0;
  if (good) {
    moments_about(x, count, origin, chunked, fetch, mean, m2);
    good = in_range(m2, mean - double(origin), double(count));
    if (good) moments_about_mean(x, count, origin, chunked, mean, m2);
  }
  if (!good) {
    // In double throughout, with an element of the block as origin. A constant block then has an
    // exact mean and m2 = 0.
    moments_again(x, count, get(x[0]), 0, mean, m2);
    moments_about_mean(x, count, get(x[0]), 0, mean, m2);
  }
  return {double(count), mean, m2};
}

}  // namespace MOMENTNORM_NAMESPACE
