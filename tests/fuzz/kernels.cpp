// Fuzz target of the C ABI. The bytes of an input choose a call, its shapes and its numbers.
//
// Each buffer is a heap block of exactly the size that the call may access, so the address
// sanitizer reports other accesses. Each call is made twice, and both results must have equal bits.
// Several callers run at the same time and allocate large outputs, for the thread sanitizer.
//
// The program is a seeded driver, `kernels_fuzz SECONDS SEED CALLERS`. It writes an input that
// fails to failed-input.bin, and `kernels_fuzz FILE` runs such a file. With MOMENTNORM_LIBFUZZER
// and clang's -fsanitize=fuzzer it is a target of libFuzzer.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/momentnorm.h"
#include "../core/output.h"

namespace {

// Reads numbers from the input, and zeros after its end.
struct Source {
  const uint8_t* data;
  size_t size;
  uint8_t byte() {
    if (size == 0) return 0;
    --size;
    return *data++;
  }
  int64_t up_to(int64_t most) { return (byte() | byte() << 8) % (most + 1); }
};

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "kernels_fuzz: %s\n", what);
  std::abort();
}

// A thread pool like that of torch for each caller: at most `threads` ranges.
thread_local uint32_t threads = 1;

int32_t thread_count(uint32_t* count) {
  *count = threads;
  return 0;
}

int32_t parallel_for(int64_t begin, int64_t end, int64_t grain, momentnorm_body body,
                     void* context) {
  const int64_t ranges = std::max<int64_t>(1, std::min<int64_t>(threads, (end - begin) / grain));
  const int64_t length = (end - begin + ranges - 1) / ranges;
  std::vector<std::thread> workers;
  for (int64_t from = begin + length; from < end; from += length) {
    workers.emplace_back(body, from, std::min(end, from + length), context);
  }
  body(begin, std::min(end, begin + length), context);
  for (std::thread& worker : workers) worker.join();
  return 0;
}

constexpr int64_t kSizes[] = {4, 8, 2, 2};  // of the elements, by momentnorm_dtype

// Exactly `count` elements, which begin `offset` elements behind an aligned address.
struct Buffer {
  std::unique_ptr<uint8_t[]> memory;
  uint8_t* data;
  size_t size;
  Buffer(int64_t count, int64_t element, int64_t offset)
      : memory(new uint8_t[size_t((count + offset) * element)]),
        data(memory.get() + offset * element),
        size(size_t(count * element)) {
    std::memset(data, 0x5a, size);
  }
};

uint16_t half_of(float value, bool brain) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (brain) return uint16_t(bits >> 16);
  const int exponent = int(bits >> 23 & 0xff) - 112;
  const uint32_t sign = bits >> 16 & 0x8000;
  if (exponent >= 31) return uint16_t(sign | 0x7c00 | (value != value ? 0x200 : 0));
  return uint16_t(exponent <= 0 ? sign : sign | uint32_t(exponent) << 10 | (bits >> 13 & 0x3ff));
}

void set(Buffer& buffer, int64_t i, int32_t dtype, double value) {
  if (dtype == MOMENTNORM_FLOAT64) {
    std::memcpy(buffer.data + i * 8, &value, 8);
  } else if (dtype == MOMENTNORM_FLOAT32) {
    const float narrowed = float(value);
    std::memcpy(buffer.data + i * 4, &narrowed, 4);
  } else {
    const uint16_t bits = half_of(float(value), dtype == MOMENTNORM_BFLOAT16);
    std::memcpy(buffer.data + i * 2, &bits, 2);
  }
}

// Ordinary numbers, and up to two bad ones.
Buffer numbers(Source& source, int64_t count, int32_t dtype, int64_t offset) {
  constexpr double kBad[] = {
      __builtin_nan(""), __builtin_inf(), -__builtin_inf(), 1e37, -1e300, 1e-40, 0, -0.0};
  Buffer buffer(count, kSizes[dtype], offset);
  uint32_t state = uint32_t(source.up_to(65535)) + 1;
  for (int64_t i = 0; i < count; ++i) {
    state = state * 1664525 + 1013904223;
    set(buffer, i, dtype, double(state >> 8) / double(1 << 22) - 2);
  }
  for (int64_t bad = source.byte() % 3; bad > 0 && count > 0; --bad) {
    set(buffer, source.up_to(count - 1), dtype, kBad[source.byte() % 8]);
  }
  return buffer;
}

int64_t around(Source& source, std::initializer_list<int64_t> sizes) {
  const int64_t base = sizes.begin()[source.up_to(int64_t(sizes.size()) - 1)];
  return std::max<int64_t>(0, base + source.byte() % 3 - 1);
}

momentnorm_grid grid_of(Source& source) {
  momentnorm_grid grid = {};
  grid.samples = source.up_to(4);
  grid.channels = around(source, {1, 3, 6, 16, 48, 64});
  grid.size = around(source, {1, 2, 16, 47, 64, 128, 1024, 1600});
  if (source.byte() % 32 == 0) grid.size = around(source, {8192, 16384});
  if (source.byte() % 64 == 0) grid.samples = around(source, {64, 70});
  // Small calls, for a high rate.
  constexpr int64_t kMostElements = 40000;
  grid.samples =
      std::min(grid.samples, 1 + kMostElements / std::max<int64_t>(grid.channels * grid.size, 1));
  if (grid.samples * grid.channels * grid.size > kMostElements) grid.channels = 2;
  grid.pool_samples = source.byte() % 2 ? 1 : std::max<int64_t>(grid.samples, 1);
  grid.pool_channels = source.byte() % 2 ? 1 : std::max<int64_t>(grid.channels, 1);
  if (source.byte() % 2 && grid.channels % 3 == 0 && grid.channels > 0) grid.pool_channels = 3;
  grid.dtype = source.byte() % 4;
  grid.parameters = source.byte() % 2 ? grid.dtype : int32_t(source.byte() % 4);
  grid.layout = source.byte() % 2;
  if (source.byte() % 64 == 0) grid.dtype = 9;          // refused
  if (source.byte() % 64 == 0) grid.pool_channels = 7;  // mostly refused
  return grid;
}

// Operands for every function, in the shapes of one call.
struct Call {
  momentnorm_grid grid;
  momentnorm_tail tail;
  bool has_tail, has_parameters, wants_residual_gradient;
  Buffer x, gradient, residual, weight, bias, mean, var, scale, shift, given_mean, given_var;
};

template <class Bits>
bool same_numbers(const Buffer& one, const Buffer& other, Bits infinity) {
  for (size_t i = 0; i < one.size; i += sizeof(Bits)) {
    Bits a, b;
    std::memcpy(&a, one.data + i, sizeof a), std::memcpy(&b, other.data + i, sizeof b);
    const Bits magnitude = Bits(~Bits(0)) >> 1;
    const bool both_nan = (a & magnitude) > infinity && (b & magnitude) > infinity;
    if (a != b && !both_nan) return false;
  }
  return true;
}

// Whether two buffers have equal bits. NaNs are equal, since their bits differ by instruction set.
bool same(const Buffer& one, const Buffer& other, int32_t dtype) {
  switch (dtype) {
    case MOMENTNORM_FLOAT32:
      return same_numbers<uint32_t>(one, other, 0x7f800000);
    case MOMENTNORM_FLOAT64:
      return same_numbers<uint64_t>(one, other, 0x7ff0000000000000);
    case MOMENTNORM_BFLOAT16:
      return same_numbers<uint16_t>(one, other, 0x7f80);
    default:
      return same_numbers<uint16_t>(one, other, 0x7c00);
  }
}

// Outputs of a call. Buffers that a function does not write keep their pattern.
struct Outputs {
  int32_t dtype, parameters;
  Buffer y, residual_gradient, dweight, dbias, first, second;
  bool operator==(const Outputs& other) const {
    return same(y, other.y, dtype) && same(residual_gradient, other.residual_gradient, dtype) &&
           same(dweight, other.dweight, parameters) && same(dbias, other.dbias, parameters) &&
           same(first, other.first, MOMENTNORM_FLOAT64) &&
           same(second, other.second, MOMENTNORM_FLOAT64);
  }
};

Call call_of(Source& source) {
  const momentnorm_grid grid = grid_of(source);
  const int64_t planes = grid.samples * grid.channels, count = planes * grid.size;
  const int32_t dtype = grid.dtype % 4;
  const int64_t offset = source.byte() % 4;
  const auto map = [&] { return numbers(source, count, dtype, offset); };
  const auto parameter = [&] { return numbers(source, grid.channels, grid.parameters, offset); };
  const auto of_planes = [&] { return numbers(source, planes, MOMENTNORM_FLOAT64, 0); };
  Call call = {grid,        {source.byte() % 7, 0.25, nullptr},
               false,       false,
               false,       map(),
               map(),       map(),
               parameter(), parameter(),
               of_planes(), of_planes(),
               of_planes(), of_planes(),
               parameter(), parameter()};
  call.has_tail = source.byte() % 2, call.has_parameters = source.byte() % 2;
  call.wants_residual_gradient = call.has_tail && source.byte() % 2;
  if (source.byte() % 2) call.tail.residual = call.residual.data;
  return call;
}

int32_t run(const Call& call, int function, Outputs& out) {
  const momentnorm_grid* const grid = &call.grid;
  const momentnorm_tail* const tail = call.has_tail ? &call.tail : nullptr;
  const void* const weight = call.has_parameters ? call.weight.data : nullptr;
  const void* const bias = call.has_parameters ? call.bias.data : nullptr;
  const auto doubles = [](const Buffer& buffer) { return reinterpret_cast<double*>(buffer.data); };
  double *const mean = doubles(call.mean), *const var = doubles(call.var);
  double *const scale = doubles(call.scale), *const shift = doubles(call.shift);
  double *const first = doubles(out.first), *const second = doubles(out.second);
  void* const residual_gradient =
      call.wants_residual_gradient ? out.residual_gradient.data : nullptr;
  switch (function) {
    case 0:
      return momentnorm_moments(grid, call.x.data, first, second);
    case 1:
      return momentnorm_apply(grid, tail, call.x.data, mean, scale, shift, out.y.data);
    case 2:
      return momentnorm_normalize(grid, tail, call.x.data, weight, bias, 1e-5, out.y.data, first,
                                  second);
    case 3:
      return momentnorm_normalize_with(grid, tail, call.x.data, call.given_mean.data,
                                       call.given_var.data, weight, bias, 1e-5, out.y.data);
    case 4:
      return momentnorm_gradient_sums(grid, tail, call.gradient.data, call.x.data, mean, scale,
                                      shift, first, second);
    case 5:
      return momentnorm_apply_gradient(grid, tail, call.gradient.data, call.x.data, mean, scale,
                                       shift, var, scale, shift, out.y.data, residual_gradient);
    default:
      return momentnorm_normalize_backward(grid, tail, call.gradient.data, call.x.data, mean, var,
                                           weight, bias, 1e-5, out.y.data, residual_gradient,
                                           out.dweight.data, out.dbias.data, first, second);
  }
}

Outputs outputs_of(const Call& call) {
  const int64_t planes = call.grid.samples * call.grid.channels;
  const int64_t element = kSizes[call.grid.dtype % 4];
  const auto map = [&] { return Buffer(planes * call.grid.size, element, 1); };
  const auto parameter = [&] {
    return Buffer(call.grid.channels, kSizes[call.grid.parameters], 1);
  };
  return {call.grid.dtype % 4,  call.grid.parameters, map(), map(), parameter(), parameter(),
          Buffer(planes, 8, 0), Buffer(planes, 8, 0)};
}

// Allocates a large output of one of a few sizes, and checks that its block has one owner.
void use_kept_memory(Source& source) {
  if (source.byte() % 16 == 0) {
    momentnorm_limit_kept_memory(int64_t(source.byte()) << 20);
  } else if (source.byte() % 32 == 0) {
    momentnorm_give_back_kept_memory();
  }
  const int64_t bytes = (int64_t(4) << 20) + source.up_to(65535) * 64;
  const int64_t shape[] = {bytes / 4}, strides[] = {1};
  Output* const kept =
      static_cast<Output*>(momentnorm_new_output(1, shape, strides, MOMENTNORM_FLOAT32, bytes));
  if (momentnorm_kept_memory() < 0 || momentnorm_kept_memory_limit() < 0) fail("negative sizes");
  if (kept == nullptr) return;
  const float mark = float(source.up_to(65535));
  float *const first = kept->data, *const last = first + bytes / 4 - 1;
  *first = mark, *last = mark;
  std::this_thread::yield();
  if (*first != mark || *last != mark) fail("a block of memory has two owners");
  kept->deleter(kept);
}

void choose_set(Source& source) {
  const char* const sets[] = {"v4", "v3", "v2", "neon", "none"};
  momentnorm_choose_instruction_set(sets[source.byte() % 5]);
  if (momentnorm_instruction_set() == nullptr) fail("no instruction set is in use");
}

void one_input(Source source) {
  if (source.byte() % 16 == 0) use_kept_memory(source);
  if (source.byte() % 4 == 0) choose_set(source);
  const int function = source.byte() % 7;
  const Call call = call_of(source);
  Outputs once = outputs_of(call), again = outputs_of(call);
  threads = 1;
  const int32_t status = run(call, function, once);
  if (status != MOMENTNORM_OK && !(once == again)) fail("a refused call wrote something");
  threads = 3;
  if (run(call, function, again) != status) fail("two equal calls differ in status");
  if (!(once == again)) fail("two equal calls differ in their results");
}

void install_pool() { momentnorm_set_thread_pool(parallel_for, thread_count); }

}  // namespace

#if defined(MOMENTNORM_LIBFUZZER)

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const bool installed = (install_pool(), true);
  if (installed) one_input({data, size});
  return 0;
}

#else

extern "C" void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

namespace {

thread_local std::vector<uint8_t> input;

void save_input() {
  if (std::FILE* const file = std::fopen("failed-input.bin", "wb")) {
    std::fwrite(input.data(), 1, input.size(), file);
    std::fclose(file);
    std::fprintf(stderr, "kernels_fuzz: the input is in failed-input.bin\n");
  }
}

int run_file(const char* name) {
  std::ifstream file(name, std::ios::binary);
  if (!file) {
    std::fprintf(stderr, "kernels_fuzz: cannot read %s\n", name);
    return 2;
  }
  input.assign(std::istreambuf_iterator<char>(file), {});
  one_input({input.data(), input.size()});
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  install_pool();
  std::signal(SIGABRT, [](int) { save_input(); });
  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(save_input);
  const std::string first = argc > 1 ? argv[1] : "2";
  if (first.find_first_not_of("0123456789.") != std::string::npos) return run_file(argv[1]);
  const unsigned seed = argc > 2 ? unsigned(std::atoi(argv[2])) : 0;
  const int callers = argc > 3 ? std::atoi(argv[3]) : 3;
  const auto end =
      std::chrono::steady_clock::now() + std::chrono::duration<double>(std::atof(first.c_str()));
  std::atomic<int64_t> inputs = 0;
  std::vector<std::thread> workers;
  for (int caller = 0; caller < callers; ++caller) {
    workers.emplace_back([&, caller] {
      std::mt19937 random(seed * 1000 + unsigned(caller));
      while (std::chrono::steady_clock::now() < end) {
        input.resize(256);
        for (uint8_t& byte : input) byte = uint8_t(random());
        one_input({input.data(), input.size()});
        ++inputs;
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
  std::printf("kernels_fuzz: %lld inputs, seed %u\n", (long long)inputs.load(), seed);
  return 0;
}

#endif
