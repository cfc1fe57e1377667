// Memory for large outputs: blocks that are kept for the next output when they are freed.
//
// The first access to a fresh page costs more than the normalization of its contents, and the C
// library returns large blocks to the system as soon as they are freed. The list of kept blocks has
// no lock. A process may fork at any moment, and a lock that another thread held would stay locked
// in the child. Instead each place of the list is one word, which is exchanged atomically.
#include "memory.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "momentnorm.h"

namespace {

constexpr int64_t kHugePage = int64_t(1) << 21;
// Sizes of blocks are multiples of this number, which is a multiple of every page size.
constexpr int64_t kUnit = int64_t(1) << 16;

// DLManagedTensor of DLPack 0.x: https://dmlc.github.io/dlpack/latest/c_api.html
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
  char* memory;
  int64_t bytes;
};

// A block as one word: its address in huge pages and its size in units. 0 means no block.
typedef uint64_t Word;
constexpr int kSizeBits = 28;
Word word_of(Block block) {
  return Word(uintptr_t(block.memory)) / kHugePage << kSizeBits | Word(block.bytes / kUnit);
}
int64_t bytes_of(Word word) { return int64_t(word & ((Word(1) << kSizeBits) - 1)) * kUnit; }
Block block_of(Word word) {
  return {reinterpret_cast<char*>(uintptr_t(word >> kSizeBits) * kHugePage), bytes_of(word)};
}

// The kept blocks, and stamps that order them by age. A race between threads makes the order
// inexact, which does no harm.
constexpr int kMostBlocks = 64;
Word kept_blocks[kMostBlocks];
uint64_t stamps[kMostBlocks];
uint64_t last_stamp = 0;
int64_t limit = -1;  // of kept bytes; -1 means a sixteenth of the machine's memory

template <class T>
T read(const T& shared) {
  return __atomic_load_n(&shared, __ATOMIC_SEQ_CST);
}

int64_t most_kept() {
  int64_t most = read(limit);
  if (most >= 0) return most;
  const int64_t sixteenth = int64_t(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE) / 16;
  // If another thread sets a limit at this moment, that limit is used.
  return __atomic_compare_exchange_n(&limit, &most, sixteenth, false, __ATOMIC_SEQ_CST,
                                     __ATOMIC_SEQ_CST)
             ? sixteenth
             : most;
}

// Removes a block from the list. Returns false if another thread has removed it.
bool remove(int place, Word word) {
  return __atomic_compare_exchange_n(&kept_blocks[place], &word, Word(0), false, __ATOMIC_SEQ_CST,
                                     __ATOMIC_SEQ_CST);
}

// Adds a block to the list. Returns false if the list is full.
bool put(Word word) {
  for (int place = 0; place < kMostBlocks; ++place) {
    Word none = 0;
    if (read(kept_blocks[place]) != 0) continue;
    __atomic_store_n(&stamps[place], __atomic_add_fetch(&last_stamp, 1, __ATOMIC_RELAXED),
                     __ATOMIC_RELAXED);
    if (__atomic_compare_exchange_n(&kept_blocks[place], &none, word, false, __ATOMIC_SEQ_CST,
                                    __ATOMIC_SEQ_CST)) {
      return true;
    }
  }
  return false;
}

void return_to_system(Block block) { munmap(block.memory, size_t(block.bytes)); }

// Gives the oldest block back to the system. Returns false if there is none.
bool drop_oldest() {
  for (;;) {
    int oldest = -1;
    Word word = 0;
    for (int place = 0; place < kMostBlocks; ++place) {
      const Word here = read(kept_blocks[place]);
      if (here != 0 && (oldest < 0 || read(stamps[place]) < read(stamps[oldest]))) {
        oldest = place, word = here;
      }
    }
    if (oldest < 0) return false;
    if (remove(oldest, word)) {
      return_to_system(block_of(word));
      return true;
    }
  }
}

int64_t kept_bytes() {
  int64_t sum = 0;
  for (const Word& word : kept_blocks) sum += bytes_of(read(word));
  return sum;
}

void drop_beyond_limit() {
  while (kept_bytes() > most_kept() && drop_oldest()) {
  }
}

// Takes the newest kept block that is large enough and at most an eighth larger.
Block take_kept(int64_t bytes) {
  for (;;) {
    int newest = -1;
    Word word = 0;
    for (int place = 0; place < kMostBlocks; ++place) {
      const Word here = read(kept_blocks[place]);
      if (bytes_of(here) < bytes || bytes_of(here) - bytes > bytes / 8) continue;
      if (newest < 0 || read(stamps[place]) > read(stamps[newest])) newest = place, word = here;
    }
    if (newest < 0) return {nullptr, 0};
    if (remove(newest, word)) return block_of(word);
  }
}

void* map(int64_t bytes) {
  void* const memory =
      mmap(nullptr, size_t(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return memory == MAP_FAILED ? nullptr : memory;
}

// Maps a new block that begins on a huge page, and asks for huge pages.
Block fresh(int64_t bytes) {
  void* mapped = map(bytes + kHugePage);
  if (mapped == nullptr && momentnorm_give_back_kept_memory() > 0) mapped = map(bytes + kHugePage);
  if (mapped == nullptr) return {nullptr, 0};
  char* const memory = static_cast<char*>(mapped);
  const int64_t before = -int64_t(uintptr_t(memory)) & (kHugePage - 1);
  if (before > 0) munmap(memory, size_t(before));
  if (before < kHugePage) munmap(memory + before + bytes, size_t(kHugePage - before));
  madvise(memory + before, size_t(bytes), MADV_HUGEPAGE);
  return {memory + before, bytes};
}

// Rounds a size up by at most a sixteenth, so that outputs of about equal size share their blocks.
int64_t rounded(int64_t bytes) {
  int64_t step = kUnit;
  while (step < kHugePage && step * 32 <= bytes) step *= 2;
  return (bytes + step - 1) & -step;
}

Block take(int64_t bytes) {
  bytes = rounded(bytes);
  const Block kept = take_kept(bytes);
  return kept.memory != nullptr ? kept : fresh(bytes);
}

void keep(Block block) {
  const Word word = word_of(block);
  const bool fits = block.bytes <= most_kept() && block_of(word).bytes == block.bytes;
  if (!fits || !(put(word) || (drop_oldest() && put(word)))) return return_to_system(block);
  drop_beyond_limit();
}

// The tensor, its block, and its shape and strides, in one allocation.
struct Output {
  ManagedTensor managed;
  Block block;
  int64_t sizes[1];
};

void give_back(ManagedTensor* managed) {
  Output* const output = static_cast<Output*>(managed->context);
  keep(output->block);
  free(output);
}

}  // namespace

void* momentnorm_new_output(int32_t dimensions, const int64_t* shape, const int64_t* strides,
                            int32_t dtype, int64_t bytes) {
  constexpr uint8_t kCodes[] = {2, 2, 4, 2}, kBits[] = {32, 64, 16, 16};
  const size_t sizes = sizeof(int64_t) * size_t(dimensions);
  if (most_kept() == 0) return nullptr;
  Output* const output = static_cast<Output*>(malloc(sizeof(Output) + 2 * sizes));
  if (output == nullptr) return nullptr;
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

void* momentnorm_allocate(size_t bytes) {
  void* memory = aligned_alloc(64, bytes);
  if (memory == nullptr && momentnorm_give_back_kept_memory() > 0)
    memory = aligned_alloc(64, bytes);
  return memory;
}

int64_t momentnorm_kept_memory(void) { return kept_bytes(); }

int64_t momentnorm_kept_memory_limit(void) { return most_kept(); }

void momentnorm_limit_kept_memory(int64_t bytes) {
  __atomic_store_n(&limit, bytes, __ATOMIC_SEQ_CST);
  drop_beyond_limit();
}

int64_t momentnorm_give_back_kept_memory(void) {
  const int64_t before = kept_bytes();
  while (drop_oldest()) {
  }
  return before;
}
