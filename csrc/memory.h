// Memory for the kernels' own use.
#pragma once

#include <stddef.h>

// Allocates `bytes` of memory on a cache line. `bytes` is a multiple of 64, and free() frees them.
// If the system has no memory, the kept blocks are given back to it for a second attempt. Returns
// null if that fails, too.
extern "C" void* momentnorm_allocate(size_t bytes);
