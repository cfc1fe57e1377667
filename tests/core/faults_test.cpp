// Fails the n-th allocation of each call, for every n, in the kernels and in the memory of large
// outputs. A call then either gives its right results, or returns MOMENTNORM_NO_MEMORY and has
// written nothing. No memory leaks.
//
// The linker redirects the library's allocations to this file, by -Wl,--wrap=malloc and so on.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "../../csrc/momentnorm.h"
#include "output.h"

namespace {

std::atomic<int64_t> allocations = 0;  // since the last reset
std::atomic<int64_t> fails_from = -1;  // number of the first that fails, or -1
std::atomic<bool> fails_on = false;    // whether all later ones fail as well
std::atomic<int64_t> live = 0;         // allocations of the C library
std::atomic<int64_t> mapped = 0;       // bytes from the system
int failures = 0;
bool forks = false;  // whether the next munmap() forks the process

bool fails() {
  const int64_t number = allocations++;
  return fails_from >= 0 && (fails_on ? number >= fails_from : number == fails_from);
}

void fail_allocation(int64_t number, bool and_later_ones) {
  allocations = 0, fails_from = number, fails_on = and_later_ones;
}
void fail_none() { fail_allocation(-1, false); }

void check(bool good, const std::string& what) {
  if (good) return;
  ++failures;
  std::fprintf(stderr, "FAILED %s\n", what.c_str());
}

void fork_here();

}  // namespace

extern "C" {
void* __real_malloc(size_t bytes);
void* __real_aligned_alloc(size_t alignment, size_t bytes);
void __real_free(void* memory);
void* __real_mmap(void* at, size_t bytes, int protection, int flags, int file, off_t offset);
int __real_munmap(void* memory, size_t bytes);

void* __wrap_malloc(size_t bytes) {
  if (fails()) return nullptr;
  ++live;
  return __real_malloc(bytes);
}
void* __wrap_aligned_alloc(size_t alignment, size_t bytes) {
  if (fails()) return nullptr;
  ++live;
  return __real_aligned_alloc(alignment, bytes);
}
void __wrap_free(void* memory) {
  if (memory != nullptr) --live;
  __real_free(memory);
}
void* __wrap_mmap(void* at, size_t bytes, int protection, int flags, int file, off_t offset) {
  if (fails()) return MAP_FAILED;
  mapped += int64_t(bytes);
  return __real_mmap(at, bytes, protection, flags, file, offset);
}
int __wrap_munmap(void* memory, size_t bytes) {
  mapped -= int64_t(bytes);
  if (forks) fork_here();
  return __real_munmap(memory, bytes);
}
}

namespace {

constexpr int64_t kMegabyte = int64_t(1) << 20;

Output* new_output(int64_t bytes) {
  const int64_t shape[] = {bytes / 4}, strides[] = {1};
  return static_cast<Output*>(momentnorm_new_output(1, shape, strides, MOMENTNORM_FLOAT32, bytes));
}

void keep_a_block(int64_t bytes) {
  fail_none();
  Output* const output = new_output(bytes);
  output->deleter(output);
}

// Forks the process in the middle of a change of kept memory. The child can use the kept memory,
// and does not wait for a thread that it does not have.
void fork_here() {
  forks = false;
  const pid_t child = fork();
  if (child == 0) {
    alarm(10);
    momentnorm_limit_kept_memory(0);
    momentnorm_limit_kept_memory(64 * kMegabyte);
    keep_a_block(4 * kMegabyte);
    _exit(momentnorm_kept_memory() == 4 * kMegabyte ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  check(status == 0, "kept memory of a forked child");
}

// A thread pool of two threads that run one after the other.
int32_t two_threads(uint32_t* count) {
  *count = 2;
  return 0;
}
int32_t in_turn(int64_t begin, int64_t end, int64_t, momentnorm_body body, void* context) {
  const int64_t middle = begin + (end - begin + 1) / 2;
  body(begin, middle, context);
  if (middle < end) body(middle, end, context);
  return 0;
}

// All buffers of a call. Outputs hold a pattern before the call. In place, x is an output as well.
struct Buffers {
  momentnorm_grid grid;
  momentnorm_tail tail;
  bool in_place;
  std::vector<float> x, gradient, weight, bias, y, residual_gradient, dweight, dbias;
  std::vector<double> mean, var, first, second;

  Buffers(const momentnorm_grid& grid_, int32_t activation, bool in_place_)
      : grid(grid_), tail{activation, 0.1, nullptr}, in_place(in_place_) {
    const size_t channels = size_t(grid.channels), planes = size_t(grid.samples) * channels;
    x.resize(planes * size_t(grid.size));
    for (size_t i = 0; i < x.size(); ++i) x[i] = float(i * 7919 % 1000) / 500;
    gradient = y = residual_gradient = x;
    weight.assign(channels, 0.5f), bias.assign(channels, 0.25f);
    dweight.assign(channels, -1), dbias = dweight;
    mean.assign(planes, 1), var.assign(planes, 0.5), first.assign(planes, -1), second = first;
  }
  float* out() { return in_place ? x.data() : y.data(); }
  bool operator==(const Buffers& other) const {
    return x == other.x && y == other.y && residual_gradient == other.residual_gradient &&
           dweight == other.dweight && dbias == other.dbias && first == other.first &&
           second == other.second;
  }
};

using Function = std::function<int32_t(Buffers&)>;

struct Named {
  const char* name;
  Function call;
};

const Named kFunctions[] = {
    {"moments",
     [](Buffers& b) {
       return momentnorm_moments(&b.grid, b.x.data(), b.first.data(), b.second.data());
     }},
    {"apply",
     [](Buffers& b) {
       return momentnorm_apply(&b.grid, &b.tail, b.x.data(), b.mean.data(), b.var.data(),
                               b.mean.data(), b.out());
     }},
    {"normalize",
     [](Buffers& b) {
       return momentnorm_normalize(&b.grid, &b.tail, b.x.data(), b.weight.data(), b.bias.data(),
                                   1e-5, b.out(), b.first.data(), b.second.data());
     }},
    {"normalize_with",
     [](Buffers& b) {
       return momentnorm_normalize_with(&b.grid, &b.tail, b.x.data(), b.weight.data(),
                                        b.weight.data(), b.weight.data(), b.bias.data(), 1e-5,
                                        b.out());
     }},
    {"gradient_sums",
     [](Buffers& b) {
       return momentnorm_gradient_sums(&b.grid, &b.tail, b.gradient.data(), b.x.data(),
                                       b.mean.data(), b.var.data(), b.mean.data(), b.first.data(),
                                       b.second.data());
     }},
    {"apply_gradient",
     [](Buffers& b) {
       return momentnorm_apply_gradient(&b.grid, &b.tail, b.gradient.data(), b.x.data(),
                                        b.mean.data(), b.var.data(), b.mean.data(), b.var.data(),
                                        b.mean.data(), b.mean.data(), b.out(),
                                        b.tail.activation ? b.residual_gradient.data() : nullptr);
     }},
    {"normalize_backward",
     [](Buffers& b) {
       return momentnorm_normalize_backward(
           &b.grid, &b.tail, b.gradient.data(), b.x.data(), b.mean.data(), b.var.data(),
           b.weight.data(), b.bias.data(), 1e-5, b.out(),
           b.tail.activation ? b.residual_gradient.data() : nullptr, b.dweight.data(),
           b.dbias.data(), b.first.data(), b.second.data());
     }},
};

// Fails each allocation of a call, alone and together with all later ones. Returns the number of
// calls that reported no memory.
int try_all_faults(const Function& call, const Buffers& before, const std::string& label) {
  fail_none();
  Buffers right = before;
  check(call(right) == MOMENTNORM_OK, label + " status");
  const int64_t count = allocations;
  int refused = 0;
  for (int64_t number = 0; number < count; ++number) {
    for (bool and_later_ones : {false, true}) {
      Buffers found = before;
      fail_allocation(number, and_later_ones);
      const int32_t status = call(found);
      fail_none();
      const std::string fault = label + ", allocation " + std::to_string(number) + " failed";
      if (status == MOMENTNORM_OK) {
        check(found == right, fault + ": wrong results");
      } else {
        check(status == MOMENTNORM_NO_MEMORY, fault + ": status " + std::to_string(status));
        check(found == before, fault + ": something was written");
        ++refused;
      }
      check(live == 0, fault + ": memory leaks");
    }
  }
  return refused;
}

void kernels() {
  // Planes of one block and of several blocks, whole and cut runs, columns, samples, and groups of
  // samples.
  const momentnorm_grid grids[] = {
      {4, 3, 300, 1, 1, 0, 0, 0},  {1, 2, 17000, 1, 1, 0, 0, 0}, {2, 6, 5, 1, 3, 0, 0, 0},
      {2, 32, 49, 1, 32, 0, 0, 0}, {8, 3, 47, 8, 1, 0, 0, 0},    {2, 2, 9000, 2, 1, 0, 0, 0},
      {4, 3, 300, 1, 1, 0, 0, 1},  {1, 4, 9000, 1, 2, 0, 0, 1},  {6, 8, 1000, 1, 1, 0, 0, 1},
  };
  int refused = 0;
  for (const momentnorm_grid& grid : grids) {
    for (int32_t activation : {MOMENTNORM_IDENTITY, MOMENTNORM_RELU}) {
      for (bool in_place : {false, true}) {
        const Buffers before(grid, activation, in_place);
        for (const Named& function : kFunctions) {
          const std::string label =
              std::string(function.name) + " of " + std::to_string(grid.samples) + "x" +
              std::to_string(grid.channels) + "x" + std::to_string(grid.size) + " layout " +
              std::to_string(grid.layout) + " activation " + std::to_string(activation);
          refused += try_all_faults(function.call, before, label);
        }
      }
    }
  }
  check(refused > 100, "faults reach the kernels");
}

void kept_memory() {
  momentnorm_limit_kept_memory(64 * kMegabyte);
  // A block slightly larger than a power of two wastes at most a sixteenth.
  keep_a_block(4 * kMegabyte + 4);
  check(momentnorm_kept_memory() <= 4 * kMegabyte * 17 / 16, "a rounded size");

  // A kernel or an output that finds no memory gets the kept memory.
  Buffers buffers({2, 3, 47, 1, 3, 0, 0, 0}, MOMENTNORM_IDENTITY, false);
  fail_allocation(0, false);
  check(kFunctions[2].call(buffers) == MOMENTNORM_OK && momentnorm_kept_memory() == 0,
        "a kernel gets the kept memory back");
  keep_a_block(4 * kMegabyte);
  fail_allocation(1, false);  // allocation 0 is the tensor, 1 its memory
  Output* const output = new_output(16 * kMegabyte);
  check(output != nullptr && momentnorm_kept_memory() == 0, "an output gets the kept memory back");
  if (output != nullptr) output->deleter(output);
  momentnorm_give_back_kept_memory();

  for (int64_t number : {0, 1}) {
    fail_allocation(number, true);
    check(new_output(16 * kMegabyte) == nullptr, "an output without memory");
    fail_none();
    check(live == 0 && mapped == 0, "an output without memory leaks none");
  }
  keep_a_block(16 * kMegabyte);
  check(momentnorm_kept_memory() == 16 * kMegabyte, "memory is kept after faults");
  momentnorm_limit_kept_memory(0);
  check(momentnorm_kept_memory() == 0 && live == 0 && mapped == 0, "the limit gives all back");
}

void forking() {
  momentnorm_limit_kept_memory(16 * kMegabyte);
  keep_a_block(8 * kMegabyte);
  forks = true;  // when the limit drops the block
  momentnorm_limit_kept_memory(0);
  check(!forks, "the limit gives memory back");
  momentnorm_limit_kept_memory(16 * kMegabyte);
  keep_a_block(12 * kMegabyte);
  forks = true;  // when a newer block replaces the old one
  keep_a_block(14 * kMegabyte);
  check(!forks, "a newer block replaces an older one");
  momentnorm_limit_kept_memory(0);
}

}  // namespace

int main() {
  momentnorm_set_thread_pool(in_turn, two_threads);
  kernels();
  kept_memory();
  forking();
  std::printf("faults: %d failures\n", failures);
  return failures != 0;
}
