// Memory for the kernels' own use.
#pragma once

#include <stddef.h>

// `bytes` of memory in whole cache lines, a multiple of 64; to be freed by free(). Where the system
// has none, the kept blocks are given back to it and it is asked once more. Null if that fails.
extern "C" void* momentnorm_allocate(size_t bytes);
