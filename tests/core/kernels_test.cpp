// Checks every kernel on every instruction set against long double arithmetic, for the element
// types, layouts, activations, thread counts, odd addresses, and sizes around the vector and block
// widths.
//
// The test is made for sanitizers. Each buffer is a heap block of exactly the size that a call may
// access.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "kernels_planes.h"
#include "kernels_pools.h"
#include "output.h"

namespace {

// Names of the instruction sets of this machine.
std::vector<std::string> instruction_sets() {
  std::istringstream names(momentnorm_instruction_sets());
  std::vector<std::string> sets;
  for (std::string name; names >> name;) sets.push_back(name);
  return sets;
}

// Checks pools of one plane of many shapes.
template <class E, class P>
void sweep(int32_t dtype, int32_t parameters, const std::string& type) {
  const std::vector<std::string> sets = instruction_sets();
  struct Shape {
    int64_t samples, channels, size;
  };
  std::vector<Shape> shapes;
  for (int64_t size : {1, 2, 15, 16, 17, 49, 1023, 1025, 8193, 20000}) {
    shapes.push_back({1, 1, size});
    shapes.push_back({2, 3, size});
  }
  for (int64_t channels : {5, 17, 48, 64, 512}) {
    for (int64_t size : {2, 17, 300}) shapes.push_back({2, channels, size});
  }
  int32_t which = 0;
  for (const Shape& shape : shapes) {
    for (int variant = 0; variant < 4; ++variant) {
      const int32_t layout = variant & 1;
      const momentnorm_grid grid = {shape.samples, shape.channels, shape.size, 1, 1,
                                    dtype,         parameters,     layout};
      const bool far = (shape.size + variant / 2) % 2;
      const int64_t offset = far ? 1 : 0;
      const double centre = far ? sizeof(E) == 2 ? 10 : 1000 : 0;
      const int32_t activation = which++ % 7;
      Results first;
      for (const std::string& set : sets) {
        momentnorm_choose_instruction_set(set.c_str());
        for (unsigned count : {1u, 3u}) {
          threads = count;
          const std::string label =
              type + " " + set + " " + std::to_string(shape.samples) + "x" +
              std::to_string(shape.channels) + "x" + std::to_string(shape.size) + " layout " +
              std::to_string(layout) + " centre " + std::to_string(int(centre)) + " threads " +
              std::to_string(count);
          Results results =
              PlaneCase<E, P>{grid, centre, offset, bool(variant & 2), activation, label}.run(
                  first.values.empty());
          if (first.values.empty()) first = results;
          check(results == first, label + " bits");
        }
      }
    }
  }
}

// Checks pools of several planes of many shapes.
template <class E, class P>
void sweep_pools(int32_t dtype, int32_t parameters, const std::string& type) {
  struct Shape {
    int64_t samples, channels, size, pool_samples, pool_channels;
  };
  std::vector<Shape> shapes;
  for (int64_t size : {1, 15, 49, 128, 1025}) {
    shapes.push_back({2, 6, size, 1, 3});
    shapes.push_back({4, 6, size, 2, 1});
    shapes.push_back({4, 6, size, 2, 2});
  }
  for (const Shape& shape :
       {Shape{70, 24, 1, 1, 8}, Shape{70, 3, 7, 70, 1}, Shape{17, 32, 2, 1, 32},
        Shape{1, 64, 49, 1, 64}, Shape{1, 4, 20000, 1, 2}, Shape{3, 2, 9000, 3, 1}}) {
    shapes.push_back(shape);
  }
  int32_t which = 0;
  for (const Shape& shape : shapes) {
    for (int32_t layout : {MOMENTNORM_CHANNELS_FIRST, MOMENTNORM_CHANNELS_LAST}) {
      for (bool activated : {false, true}) {
        const momentnorm_grid grid = {
            shape.samples,       shape.channels, shape.size, shape.pool_samples,
            shape.pool_channels, dtype,          parameters, layout};
        const bool far = which % 3 == 0;
        const double centre = far ? sizeof(E) == 2 ? 10 : 1000 : 0;
        // Smooth activations only: at a corner both slopes are right.
        const int32_t smooth[] = {MOMENTNORM_SILU, MOMENTNORM_GELU, MOMENTNORM_TANH,
                                  MOMENTNORM_SIGMOID};
        const int32_t activation = activated ? smooth[which++ % 4] : MOMENTNORM_IDENTITY;
        Results first;
        for (const std::string& set : instruction_sets()) {
          momentnorm_choose_instruction_set(set.c_str());
          for (unsigned count : {1u, 3u}) {
            threads = count;
            const std::string label =
                type + " " + set + " " + std::to_string(shape.samples) + "x" +
                std::to_string(shape.channels) + "x" + std::to_string(shape.size) + " pools " +
                std::to_string(shape.pool_samples) + "x" + std::to_string(shape.pool_channels) +
                " layout " + std::to_string(layout) + " activation " + std::to_string(activation) +
                " threads " + std::to_string(count);
            Results results =
                PoolCase<E, P>{grid, centre, far, activation, label}.run(first.values.empty());
            if (first.values.empty()) first = results;
            check(results == first, label + " bits");
          }
        }
      }
    }
  }
}

// Conversions of all half precision numbers and all bfloat16 numbers, by x = (x - 0) * scale + 0.
void conversions() {
  const double zero = 0;
  for (const std::string& set : instruction_sets()) {
    momentnorm_choose_instruction_set(set.c_str());
    threads = 1;
    std::vector<Half> halves, copies;
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
      const uint16_t word = uint16_t(bits);
      Half half;
      std::memcpy(&half, &word, sizeof half);
      if (half == half) halves.push_back(half);
    }
    // With an odd length the last elements are converted one by one.
    copies.resize(halves.size());
    momentnorm_grid grid = {
        1, 1, int64_t(halves.size()), 1, 1, MOMENTNORM_FLOAT16, MOMENTNORM_FLOAT32, 0};
    // These scales give results that have to be rounded.
    for (double scale : {1.0, 1.0 + 0x1p-10, 0x1.7p-5, 0x1p-14, 3e4}) {
      momentnorm_apply(&grid, nullptr, halves.data(), &zero, &scale, &zero, copies.data());
      int wrong = 0;
      for (size_t i = 0; i < halves.size(); ++i) {
        const Half wanted = Half(float(halves[i]) * float(scale));
        wrong += wanted != copies[i] && wanted == wanted;
      }
      check(wrong == 0, set + " float16 conversion at scale " + std::to_string(scale));
    }
    std::vector<BFloat16> words(0x10000 - 3), copied(words.size());
    for (size_t i = 0; i < words.size(); ++i) words[i].bits = uint16_t(i);
    grid = {1, 1, int64_t(words.size()), 1, 1, MOMENTNORM_BFLOAT16, MOMENTNORM_FLOAT32, 0};
    for (double scale : {1.0, 1.0 + 0x1p-7, 0x1.7p-5}) {
      momentnorm_apply(&grid, nullptr, words.data(), &zero, &scale, &zero, copied.data());
      int wrong = 0;
      for (size_t i = 0; i < words.size(); ++i) {
        const double exact = words[i];
        if (exact != exact) {
          wrong += double(copied[i]) == double(copied[i]);
        } else {
          const BFloat16 wanted(float(exact) * float(scale));
          wrong += double(wanted) != double(copied[i]);
        }
      }
      check(wrong == 0, set + " bfloat16 conversion at scale " + std::to_string(scale));
    }
  }
}

// Refused calls and empty feature maps.
void edges() {
  const momentnorm_tail unknown = {7, 0, nullptr};
  float x = 3, y = 9;
  double mean = 0, var = 0;
  auto normalize = [&](momentnorm_grid grid, const momentnorm_tail* tail = nullptr) {
    return momentnorm_normalize(&grid, tail, &x, nullptr, nullptr, 1e-5, &y, &mean, &var);
  };
  check(normalize({1, 1, 1, 1, 1, 7, 0, 0}) == MOMENTNORM_UNKNOWN_GRID &&
            normalize({1, 1, 1, 1, 1, 0, -1, 0}) == MOMENTNORM_UNKNOWN_GRID &&
            normalize({1, 1, 1, 1, 1, 0, 0, 2}) == MOMENTNORM_UNKNOWN_GRID &&
            normalize({1, 1, 1, 1, 1, 0, 0, 0}, &unknown) == MOMENTNORM_UNKNOWN_GRID && y == 9,
        "an unknown dtype, layout or activation writes nothing");
  check(normalize({1, 1, 1, 2, 1, 0, 0, 0}) == MOMENTNORM_UNEVEN_POOL &&
            normalize({1, 1, 1, 1, 2, 0, 0, 0}) == MOMENTNORM_UNEVEN_POOL &&
            normalize({1, 1, 1, 0, 1, 0, 0, 0}) == MOMENTNORM_UNEVEN_POOL && y == 9,
        "a pool that does not divide the grid writes nothing");
  for (int32_t layout : {MOMENTNORM_CHANNELS_FIRST, MOMENTNORM_CHANNELS_LAST}) {
    check(normalize({0, 4, 4, 1, 1, 0, 0, layout}) == MOMENTNORM_OK, "an empty batch");
    check(normalize({4, 0, 4, 1, 1, 0, 0, layout}) == MOMENTNORM_OK, "no channels");
    check(normalize({1, 1, 0, 1, 1, 0, 0, layout}) == MOMENTNORM_OK && std::isnan(mean) &&
              std::isnan(var) && y == 9,
          "empty planes");
    const momentnorm_grid empty = {1, 1, 0, 1, 1, 0, 0, layout};
    check(momentnorm_apply(&empty, nullptr, &x, &mean, &mean, &mean, &y) == MOMENTNORM_OK &&
              momentnorm_apply_gradient(&empty, nullptr, &x, &x, &mean, &mean, &mean, &mean, &mean,
                                        &mean, &y, nullptr) == MOMENTNORM_OK &&
              y == 9,
          "maps of empty planes");
    // Pools of several empty planes, whose sums are in memory of the kernel.
    const momentnorm_grid pools = {4, 16, 0, 1, 16, 0, 0, layout};
    std::vector<double> moments(4, 1);
    std::vector<float> dweight(16, 9), dbias(16, 9), zeros(16, 0);
    check(momentnorm_normalize_backward(&pools, nullptr, &x, &x, moments.data(), moments.data(),
                                        nullptr, nullptr, 1e-5, &y, nullptr, dweight.data(),
                                        dbias.data(), nullptr, nullptr) == MOMENTNORM_OK &&
              dweight == zeros && dbias == zeros && y == 9,
          "gradients of pools of empty planes");
  }
  check(momentnorm_choose_instruction_set("v9") == MOMENTNORM_NO_INSTRUCTION_SET, "unknown set");
  check(momentnorm_abi_version() == MOMENTNORM_ABI_VERSION, "version");
}

// Memory that is kept for large outputs.
void memory() {
  constexpr int64_t kMegabyte = int64_t(1) << 20;
  auto output = [](int64_t megabytes) {
    const int64_t shape[] = {megabytes, kMegabyte / 4}, strides[] = {kMegabyte / 4, 1};
    return static_cast<Output*>(
        momentnorm_new_output(2, shape, strides, MOMENTNORM_FLOAT32, megabytes * kMegabyte));
  };
  momentnorm_limit_kept_memory(64 * kMegabyte);
  Output* first = output(16);
  check(first->device_type == 1 && first->dimensions == 2 && first->type_bits == 32 &&
            first->shape[0] == 16 && first->strides[0] == kMegabyte / 4,
        "the fields of a DLPack tensor");
  first->data[0] = first->data[16 * kMegabyte / 4 - 1] = 1;
  float* const memory = first->data;
  first->deleter(first);
  check(momentnorm_kept_memory() == 16 * kMegabyte, "kept");
  Output *again = output(15), *other = output(16);
  check(again->data == memory && other->data != memory, "used again, once");
  again->deleter(again), other->deleter(other);
  for (int64_t size : {40, 100, 2}) {
    Output* const next = output(size);
    next->deleter(next);
  }
  check(momentnorm_kept_memory() <= 64 * kMegabyte, "the limit of kept memory");
  std::vector<std::thread> workers;
  for (int i = 0; i < 4; ++i) {
    workers.emplace_back([&] {
      for (int k = 0; k < 200; ++k) {
        Output *one = output(4), *two = output(4);
        one->data[0] = 1, two->data[0] = 2;
        check(one->data[0] == 1, "two owners of one block");
        one->deleter(one), two->deleter(two);
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
  momentnorm_limit_kept_memory(0);
  check(momentnorm_kept_memory() == 0 && output(16) == nullptr, "nothing kept");
}

int report() {
  std::printf("kernels: %s: %d failures\n", momentnorm_instruction_sets(), failures);
  return failures != 0;
}

}  // namespace

// `kernels_test some` checks only kept memory and the pools of float32, since the thread sanitizer
// is slow.
int main(int argc, char** argv) {
  const bool some = argc > 1 && std::string(argv[1]) == "some";
  memory();
  momentnorm_set_thread_pool(parallel_for, thread_count);
  edges();
  sweep_pools<float, float>(MOMENTNORM_FLOAT32, MOMENTNORM_FLOAT32, "float32");
  if (some) return report();
  conversions();
  sweep<float, float>(MOMENTNORM_FLOAT32, MOMENTNORM_FLOAT32, "float32");
  sweep<double, double>(MOMENTNORM_FLOAT64, MOMENTNORM_FLOAT64, "float64");
  sweep_pools<double, double>(MOMENTNORM_FLOAT64, MOMENTNORM_FLOAT64, "float64");
  sweep<BFloat16, float>(MOMENTNORM_BFLOAT16, MOMENTNORM_FLOAT32, "bfloat16");
  sweep_pools<BFloat16, float>(MOMENTNORM_BFLOAT16, MOMENTNORM_FLOAT32, "bfloat16");
  sweep<Half, Half>(MOMENTNORM_FLOAT16, MOMENTNORM_FLOAT16, "float16");
  sweep_pools<Half, Half>(MOMENTNORM_FLOAT16, MOMENTNORM_FLOAT16, "float16");
  return report();
}
