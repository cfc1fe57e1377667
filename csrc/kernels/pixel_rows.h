// Sums, moments and maps of one block of a channels_last sample: whole pixels with all channels.
//
// Pixels form rows of several pixels, so that the length of a row is a multiple of kLanes. A column
// of these rows belongs to one channel, and is summed row by row: 16 rows in the compute type, then
// in double. No sum adds the lanes of one register, so the width of registers changes no bits.
#pragma once

#include "plane_map.h"

namespace MOMENTNORM_NAMESPACE {

// Rows and blocks of a sample. They depend on its shape alone.
struct Rows {
  int64_t channels, size;
  int64_t pixels;  // of a row
  int64_t width;   // elements of a row: channels * pixels
  int64_t count;   // whole rows of a sample; less than a row of pixels may follow them
  int64_t per_block, blocks;

  static constexpr int64_t kTile = 16;  // rows that are added in the compute type

  INLINE Rows(int64_t channels_, int64_t size_) : channels(channels_), size(size_) {
    const int64_t power_of_two = channels & -channels;
    pixels = power_of_two < kLanes ? kLanes / power_of_two : 1;
    width = channels * pixels;
    count = size / pixels;
    // The partial results of a block take 16 bytes for each channel, little compared with its data.
    const int64_t wanted = 32768 / channels < 128 ? 128 : 32768 / channels;
    per_block = wanted / pixels < kTile ? kTile : wanted / pixels - wanted / pixels % kTile;
    blocks = count <= per_block ? 1 : (count + per_block - 1) / per_block;
  }
  INLINE int64_t first(int64_t block) const { return block * per_block; }
  INLINE int64_t rows(int64_t block) const {
    const int64_t left = count - first(block);
    return left < per_block ? left : per_block;
  }
  // Pixels behind the last whole row belong to the last block.
  INLINE int64_t loose(int64_t block) const { return block == blocks - 1 ? size % pixels : 0; }
  INLINE int64_t pixels_in(int64_t block) const { return rows(block) * pixels + loose(block); }
  INLINE int64_t offset(int64_t block) const { return first(block) * width; }
};

// A number of registers as a type.
template <int count>
struct VecCount {
  static constexpr int kCount = count;
};

// Calls body(column, VecCount) for all columns, for four registers at a time and then for single
// ones.
template <class T, class Body>
INLINE void each_columns(int64_t width, Body body) {
  int64_t column = 0;
  for (; column + 4 * kWidth<T> <= width; column += 4 * kWidth<T>) body(column, VecCount<4>{});
  for (; column < width; column += kWidth<T>) body(column, VecCount<1>{});
}

// Memory in which a thread works on a block: two sums and an origin for each column. With a tail,
// also its affine map for each column, and a tile of pre_activation.
template <class T>
struct Scratch {
  double *first, *second;
  T *origin, *mean, *scale, *shift, *tile;
};

// pre_activation = (x - mean) * scale + shift + residual over whole rows. residual may be null.
template <class E>
INLINE void affine_rows(const E* x, const E* residual, Compute<E>* pre_activation, int64_t rows,
                        int64_t width, const Compute<E>* mean, const Compute<E>* scale,
                        const Compute<E>* shift) {
  using T = Compute<E>;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < width; column += kWidth<T>) {
      const int64_t i = row * width + column;
      Vec<T> value =
          (load(x + i) - load(mean + column)) * load(scale + column) + load(shift + column);
      if (residual != nullptr) value += load(residual + i);
      store(pre_activation + i, value);
    }
  }
}

// Distance of prefetches into the first level cache, in bytes.
constexpr int64_t kAhead = 8192;
template <class E>
INLINE void fetch_ahead(const E* operand) {
  __builtin_prefetch(reinterpret_cast<const char*>(operand) + kAhead, 0, 3);
}
template <class E>
INLINE void fetch_ahead_for_writing(E* result) {
  __builtin_prefetch(reinterpret_cast<char*>(result) + kAhead, 1, 3);
}

// Gradient in front of the affine map, for one block: the gradient of y itself. prepare(i, rows) is
// called before at() of the rows from element i on.
template <class E>
struct DirectGradientRows {
  const E* g;
  INLINE void prepare(int64_t, int64_t) const {}
  INLINE void fetch_ahead(int64_t i) const { MOMENTNORM_NAMESPACE::fetch_ahead(g + i); }
  INLINE const E* at(int64_t i) const { return g + i; }
  INLINE Compute<E> one(int64_t i, int64_t) const { return get(g[i]); }
};
// Gradient in front of the affine map, for one block: pre_activation_gradient, computed one tile at
// a time.
template <class E>
struct ActivationGradientRows {
  const Tail& tail;
  const E *g, *x, *residual;
  E* residual_gradient;  // output, or null
  int64_t width;
  Scratch<Compute<E>> scratch;
  int64_t begin = 0;

  INLINE void prepare(int64_t i, int64_t rows) {
    begin = i;
    affine_rows(x + i, moved(residual, i), scratch.tile, rows, width, scratch.mean, scratch.scale,
                scratch.shift);
    activation_gradient(tail, scratch.tile, g + i, moved(residual_gradient, i), rows * width);
  }
  INLINE void fetch_ahead(int64_t) const {}
  INLINE const Compute<E>* at(int64_t i) const { return scratch.tile + (i - begin); }
  // pre_activation_gradient of one element behind the last whole row.
  INLINE Compute<E> one(int64_t i, int64_t channel) const {
    Compute<E> pre_activation =
        (get(x[i]) - scratch.mean[channel]) * scratch.scale[channel] + scratch.shift[channel];
    if (residual != nullptr) pre_activation += get(residual[i]);
    activation_gradient(tail, &pre_activation, g + i, moved(residual_gradient, i), 1);
    return pre_activation;
  }
};

// Adds two sums over each column to `first` and `second`.
//
//   prepare(i, n)                  is called before the terms of the n rows from element i on
//   fast(i, column, one, other)    gives the terms of the register of elements from i on
//   exact(i, column, one, other)   gives the terms of kDoubles elements in double
template <class T, class Prepare, class Fast, class Exact>
INLINE void add_rows(const Rows& shape, int64_t rows, double* first, double* second,
                     Prepare prepare, Fast fast, Exact exact) {
  int64_t row = 0;
  for (; row + Rows::kTile <= rows; row += Rows::kTile) {
    prepare(row * shape.width, Rows::kTile);
    each_columns<T>(shape.width, [&](int64_t column, auto together) {
      constexpr int kVecs = decltype(together)::kCount;
      Vec<T> sums[2][kVecs] = {};
      // Four rows are added in a tree before they join the sum, for fewer roundings of the sum.
      for (int64_t r = row; r < row + Rows::kTile; r += 4) {
        for (int v = 0; v < kVecs; ++v) {
          Vec<T> one[4], other[4];
          for (int k = 0; k < 4; ++k) {
            fast((r + k) * shape.width + column + v * kWidth<T>, column + v * kWidth<T>, one[k],
                 other[k]);
          }
          sums[0][v] += (one[0] + one[1]) + (one[2] + one[3]);
          sums[1][v] += (other[0] + other[1]) + (other[2] + other[3]);
        }
      }
      T values[2][kVecs * kWidth<T>];
      memcpy(values, sums, sizeof values);
      for (int i = 0; i < kVecs * kWidth<T>; i += kDoubles) {
        double* const targets[2] = {first + column + i, second + column + i};
        for (int k = 0; k < 2; ++k) {
          store(targets[k], load_as_is<Doubles>(targets[k]) + load_doubles(values[k] + i));
        }
      }
    });
  }
  for (; row < rows; ++row) {
    prepare(row * shape.width, 1);
    for (int64_t column = 0; column < shape.width; column += kDoubles) {
      Doubles one, other;
      exact(row * shape.width + column, column, one, other);
      store(first + column, load_as_is<Doubles>(first + column) + one);
      store(second + column, load_as_is<Doubles>(second + column) + other);
    }
  }
}

// Origin of each column: the mean of its first 16 rows, or its first element where there are fewer.
// The rows are added in a tree, so the mean of equal numbers is exact.
template <class E>
INLINE void origins(const E* x, const Rows& shape, int64_t rows, Compute<E>* origin) {
  using T = Compute<E>;
  for (int64_t column = 0; column < shape.width; column += kWidth<T>) {
    Vec<T> sums[Rows::kTile];
    if (rows < Rows::kTile) {
      store(origin + column, load(x + column));
      continue;
    }
    for (int r = 0; r < Rows::kTile; ++r) sums[r] = load(x + r * shape.width + column);
    for (int half = Rows::kTile / 2; half > 0; half /= 2) {
      for (int r = 0; r < half; ++r) sums[r] += sums[r + half];
    }
    store(origin + column, sums[0] * T(1.0 / Rows::kTile));
  }
}

// Moments of one channel of a block in double throughout, about its first element.
template <class E>
inline Partial exact_moments(const E* x, int64_t channels, int64_t pixels) {
  const double first = double(get(x[0]));
  double sum = 0, squares = 0;
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    const double shifted = double(get(x[pixel * channels])) - first;
    sum += shifted;
    squares += shifted * shifted;
  }
  const double offset = sum / double(pixels), m2 = squares - offset * sum;
  return {double(pixels), first + offset, m2 < 0 ? 0 : m2};
}

// Moves the origin of each column that is far from its mean to that mean, and returns whether any
// was. The other columns keep their origins, and so their bits do not depend on other channels.
template <class T>
INLINE bool move_far_origins(const Rows& shape, int64_t rows, const double* sums,
                             const double* squares, T* origin) {
  bool any_far = false;
  for (int64_t column = 0; column < shape.width; ++column) {
    // far means offset^2 * rows > kFar * m2, where m2 = squares - offset^2 * rows. If all squares
    // are 0 and the sum is not, the squares underflowed. Then the origin stays, since a sum about
    // the mean might be 0 as well and hide the underflow.
    const bool far = squares[column] != 0 && sums[column] * sums[column] * (1 + kFar) >
                                                 kFar * squares[column] * double(rows);
    if (far) origin[column] += T(sums[column] / double(rows));
    any_far |= far;
  }
  return any_far;
}

// Merges the columns of a channel, and the pixels behind the last whole row, to the channel's
// moments in a block. x is the channel's first element of the block.
template <class E>
INLINE Partial moments_of_channel(const E* x, const Rows& shape, int64_t rows, int64_t pixels,
                                  int64_t channel, const Scratch<Compute<E>>& scratch) {
  using T = Compute<E>;
  bool good = true;
  Partial all = {0, 0, 0};
  for (int64_t column = channel; rows > 0 && column < shape.width; column += shape.channels) {
    const double sum = scratch.first[column], squares = scratch.second[column];
    const double n = double(rows), offset = sum / n;
    const double about_mean = squares - offset * sum;
    if (sizeof(T) == 4) good &= in_range(squares, sum, n);
    const Partial part = {n, double(scratch.origin[column]) + offset,
                          about_mean < 0 ? 0 : about_mean};
    if (column == channel) {
      all = part;
    } else {
      all.merge(part);
    }
  }
  for (int64_t pixel = rows * shape.pixels; good && pixel < pixels; ++pixel) {
    const Partial part = {1, double(get(x[pixel * shape.channels])), 0};
    if (all.count == 0) {
      all = part;
    } else {
      all.merge(part);
    }
  }
  return good ? all : exact_moments(x, shape.channels, pixels);
}

// Computes mean[channel] and m2[channel] of a block.
template <class E>
INLINE void moments_of_block(const E* x, const Rows& shape, int64_t block, double* mean, double* m2,
                             Scratch<Compute<E>> scratch) {
  using T = Compute<E>;
  const int64_t rows = shape.rows(block), pixels = shape.pixels_in(block);
  double *const sums = scratch.first, *const squares = scratch.second;
  T* const origin = scratch.origin;
  if (rows > 0) origins(x, shape, rows, origin);
  // A second attempt follows where an origin was far from the mean, which costs digits.
  for (int attempt = 0; rows > 0 && attempt < 2; ++attempt) {
    memset(sums, 0, size_t(shape.width) * sizeof(double));
    memset(squares, 0, size_t(shape.width) * sizeof(double));
    add_rows<T>(
        shape, rows, sums, squares, [](int64_t, int64_t) {},
        [&](int64_t i, int64_t column, Vec<T>& one, Vec<T>& other) {
          fetch_ahead(x + i);
          one = load(x + i) - load(origin + column);
          other = one * one;
        },
        [&](int64_t i, int64_t column, Doubles& one, Doubles& other) {
          one = load_doubles(x + i) - load_doubles(origin + column);
          other = one * one;
        });
    if (attempt > 0 || !move_far_origins(shape, rows, sums, squares, origin)) break;
  }
  for (int64_t channel = 0; channel < shape.channels; ++channel) {
    const Partial all = moments_of_channel(x + channel, shape, rows, pixels, channel, scratch);
    mean[channel] = all.mean;
    m2[channel] = all.m2;
  }
}

// Computes plain[channel] = sum(g) and weighted[channel] = sum(g * (x - mean)) of a block.
template <class Gradient, class E>
INLINE void gradient_sums_of_block(Gradient& g, const E* x, const Rows& shape, int64_t block,
                                   const double* mean, double* plain, double* weighted,
                                   Scratch<Compute<E>> scratch) {
  using T = Compute<E>;
  const int64_t rows = shape.rows(block), pixels = shape.pixels_in(block);
  T* const high = scratch.origin;
  for (int64_t column = 0; column < shape.width; ++column) {
    high[column] = T(mean[column % shape.channels]);
  }
  memset(scratch.first, 0, size_t(shape.width) * sizeof(double));
  memset(scratch.second, 0, size_t(shape.width) * sizeof(double));
  add_rows<T>(
      shape, rows, scratch.first, scratch.second, [&](int64_t i, int64_t n) { g.prepare(i, n); },
      [&](int64_t i, int64_t column, Vec<T>& one, Vec<T>& other) {
        fetch_ahead(x + i);
        g.fetch_ahead(i);
        one = load(g.at(i));
        other = one * (load(x + i) - load(high + column));
      },
      [&](int64_t i, int64_t column, Doubles& one, Doubles& other) {
        one = load_doubles(g.at(i));
        other = one * (load_doubles(x + i) - load_doubles(high + column));
      });
  for (int64_t channel = 0; channel < shape.channels; ++channel) {
    double sum = 0, products = 0;
    auto add = [&](int64_t from) {
      for (int64_t pixel = from; pixel < pixels; ++pixel) {
        const int64_t i = pixel * shape.channels + channel;
        const double term = double(g.one(i, channel));
        sum += term;
        products += term * (double(get(x[i])) - double(high[channel]));
      }
    };
    for (int64_t column = channel; column < shape.width; column += shape.channels) {
      sum += scratch.first[column];
      products += scratch.second[column];
    }
    add(rows * shape.pixels);
    if (sizeof(T) == 4 && !__builtin_isfinite(sum + products)) {
      // Again in double throughout. A finite sum keeps its bits, so that sum(g) does not depend on
      // x.
      const double fast_sum = sum, fast_products = products;
      sum = products = 0;
      add(0);
      if (__builtin_isfinite(fast_sum)) sum = fast_sum;
      if (__builtin_isfinite(fast_products)) products = fast_products;
    }
    plain[channel] = sum;
    weighted[channel] = products - (mean[channel] - double(high[channel])) * sum;
  }
}

// Calls tile(i, n) for the n rows from element i on of each tile of a block, at most 16 rows, and
// single(i, channel) for each element behind the last whole row.
template <class Tile, class Single>
INLINE void map_tiles(const Rows& shape, int64_t block, Tile tile, Single single) {
  const int64_t rows = shape.rows(block);
  for (int64_t row = 0; row < rows; row += Rows::kTile) {
    tile(row * shape.width, row + Rows::kTile < rows ? Rows::kTile : rows - row);
  }
  for (int64_t i = rows * shape.width; i < shape.pixels_in(block) * shape.channels; ++i) {
    single(i, i % shape.channels);
  }
}

// Maps a block register by register. Within a tile, the coefficients of a few columns stay in
// registers.
//
//   prepare(i, n)            is called before the n rows from element i on
//   coefficients(column)     loads the coefficients of the register of columns
//   result(i, coefficients)  computes and stores the register of elements from i on
//   single(i, channel)       computes and stores one element behind the last whole row
template <class T, class Coefficients, class Prepare, class Result, class Single>
INLINE void map_rows(const Rows& shape, int64_t block, Coefficients coefficients, Prepare prepare,
                     Result result, Single single) {
  map_tiles(
      shape, block,
      [&](int64_t begin, int64_t rows) {
        prepare(begin, rows);
        each_columns<T>(shape.width, [&](int64_t column, auto together) {
          constexpr int kVecs = decltype(together)::kCount;
          decltype(coefficients(column)) held[kVecs];
          for (int v = 0; v < kVecs; ++v) held[v] = coefficients(column + v * kWidth<T>);
          for (int64_t row = 0; row < rows; ++row) {
            for (int v = 0; v < kVecs; ++v) {
              result(begin + row * shape.width + column + v * kWidth<T>, held[v]);
            }
          }
        });
      },
      single);
}

}  // namespace MOMENTNORM_NAMESPACE
