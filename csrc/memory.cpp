// Memory for large outputs: blocks that are kept when they are given back.
//
// The first touch of a page costs more than the normalization of its contents, and the C library
// returns large memory to the system as soon as it is freed. No standard library here; and no lock
// that could be held when the process forks: who finds the list busy goes without it.
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "momentnorm.h"

namespace {

constexpr int64_t kHugePage = int64_t(1) << 21;

// What DLPack 0.x calls a managed tensor: https://dmlc.github.io/dlpack/latest/c_api.html
struct Tensor {
  void* data;
  int32_t device_type, device_id;
  int32_t dimensions;
  uint8_t type_code, type_bits;
  uint16_t type_lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};
struct ManagedTensor {
  Tensor tensor;
  void* context;
  void (*deleter)(ManagedTensor*);
};

struct Block {
  void* memory;
  int64_t bytes;
};

// The blocks that nobody uses, the newest last.
constexpr int kMostBlocks = 64;
Block blocks[kMostBlocks];
int block_count = 0;
int64_t kept = 0;
int64_t limit = -1;  // a sixteenth of the machine's memory, unless another was set
bool busy = false;

struct Attempt {
  bool locked;
  explicit Attempt(bool patient = false) {
    do locked = !__atomic_exchange_n(&busy, true, __ATOMIC_ACQUIRE);
    while (patient && !locked);
  }
  Attempt(const Attempt&) = delete;
  ~Attempt() {
    if (locked) __atomic_store_n(&busy, false, __ATOMIC_RELEASE);
  }
};

int64_t most_kept() {
  if (limit < 0) limit = int64_t(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE) / 16;
  return limit;
}

Block remove(int index) {
  const Block block = blocks[index];
  memmove(blocks + index, blocks + index + 1, sizeof(Block) * size_t(--block_count - index));
  kept -= block.bytes;
  return block;
}

// A fresh block, on huge pages where the system grants them.
Block fresh(int64_t bytes) {
  char* const memory =
      static_cast<char*>(mmap(nullptr, size_t(bytes + kHugePage), PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (memory == MAP_FAILED) return {nullptr, 0};
  const int64_t before = -int64_t(uintptr_t(memory)) & (kHugePage - 1);
  if (before > 0) munmap(memory, size_t(before));
  if (before < kHugePage) munmap(memory + before + bytes, size_t(kHugePage - before));
  madvise(memory + before, size_t(bytes), MADV_HUGEPAGE);
  return {memory + before, bytes};
}

Block take(int64_t bytes) {
  bytes = (bytes + kHugePage - 1) & -kHugePage;
  {
    const Attempt attempt;
    for (int i = block_count - 1; attempt.locked && i >= 0; --i) {
      if (blocks[i].bytes >= bytes && blocks[i].bytes - bytes <= bytes / 8) return remove(i);
    }
  }
  return fresh(bytes);
}

// Whether the list took the block; it may have to give up older ones.
bool keep(Block block) {
  const Attempt attempt;
  if (!attempt.locked || block.bytes > most_kept()) return false;
  while (block_count == kMostBlocks || (block_count > 0 && kept + block.bytes > most_kept())) {
    const Block oldest = remove(0);
    munmap(oldest.memory, size_t(oldest.bytes));
  }
  blocks[block_count++] = block;
  kept += block.bytes;
  return true;
}

// The tensor, its shape and strides, and its block are one piece of memory.
struct Output {
  ManagedTensor managed;
  Block block;
  int64_t sizes[1];
};

void give_back(ManagedTensor* managed) {
  Output* const output = static_cast<Output*>(managed->context);
  if (!keep(output->block)) munmap(output->block.memory, size_t(output->block.bytes));
  free(output);
}

}  // namespace

void* momentnorm_new_output(int32_t dimensions, const int64_t* shape, const int64_t* strides,
                            int32_t dtype, int64_t bytes) {
  constexpr uint8_t kCodes[] = {2, 2, 4, 2}, kBits[] = {32, 64, 16, 16};
  const size_t sizes = sizeof(int64_t) * size_t(dimensions);
  Output* const output = static_cast<Output*>(malloc(sizeof(Output) + 2 * sizes));
  if (output == nullptr || most_kept() == 0) {
    free(output);
    return nullptr;
  }
  output->block = take(bytes);
  if (output->block.memory == nullptr) {
    free(output);
    return nullptr;
  }
  int64_t *const own_shape = output->sizes, *const own_strides = own_shape + dimensions;
  memcpy(own_shape, shape, sizes);
  memcpy(own_strides, strides, sizes);
  output->managed = {{output->block.memory, 1, 0, dimensions, kCodes[dtype], kBits[dtype], 1,
                      own_shape, own_strides, 0},
                     output,
                     give_back};
  return &output->managed;
}

int64_t momentnorm_kept_memory(void) { return kept; }

void momentnorm_limit_kept_memory(int64_t bytes) {
  const Attempt attempt(true);
  limit = bytes;
  while (block_count > 0 && kept > most_kept()) {
    const Block oldest = remove(0);
    munmap(oldest.memory, size_t(oldest.bytes));
  }
}
