// The head of a DLPack tensor of momentnorm_new_output, and its deleter behind it.
#pragma once

#include <cstdint>

struct Output {
  float* data;
  int32_t device_type, device_id, dimensions;
  uint8_t type_code, type_bits;
  uint16_t type_lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
  void* context;
  void (*deleter)(Output*);
};
