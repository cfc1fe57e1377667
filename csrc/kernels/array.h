// Memory for the kernels' intermediate results.
#pragma once

#include <stdint.h>
#include <stdlib.h>

#include "../memory.h"
#include "vec.h"

namespace MOMENTNORM_NAMESPACE {

// An array that starts on a cache line and is freed at the end of the scope. `data` is null if
// there is no memory.
template <class T>
struct Array {
  T* data;
  explicit INLINE Array(int64_t count)
      : data(static_cast<T*>(momentnorm_allocate((size_t(count) * sizeof(T) + 64) & -size_t(64)))) {
  }
  INLINE ~Array() { free(data); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
};

}  // namespace MOMENTNORM_NAMESPACE
