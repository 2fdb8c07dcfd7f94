// Convolutions with frozen weights whose result goes through a tail (tail.h) while it is in the cache. Formulas, kinds
// and shapes are in fastinv/ops/frozen_conv.py. Results do not depend on the number of threads.
#pragma once

#include <cstdint>

#include "../common/bfloat16.h"
#include "../common/isa.h"
#include "tail.h"

namespace fastinv {

enum class Kind : int64_t { none, direct, winograd, up, down };  // KINDS of fastinv/ops/frozen_conv.py

struct FrozenConv {
  Kind kind;
  int64_t samples, inputs, outputs;
  int64_t height, width;  // of x
  const void* x;          // dense NHWC [samples or 1, height, width, inputs] of T
  int64_t x_stride;       // elements from sample to sample; 0 for one x of all samples
  const float* styles;    // [samples, inputs], factors of x, or null for 1
  int64_t styles_stride;
  const void* packed;  // as the kind's pack left it
  float taps[4];       // kinds up and down
};

// Runs body(begin, end, slot) over [0, count) in torch's threads; slot < threads, no two at once have the same.
struct Parallel {
  int64_t threads;
  void (*run)(int64_t threads, int64_t count, void* context,
              void (*body)(void* context, int64_t begin, int64_t end, int64_t slot));

  template <class Body>
  FASTINV_INLINE void operator()(int64_t count, const Body& body) const {
    run(threads, count, const_cast<Body*>(&body), [](void* context, int64_t begin, int64_t end, int64_t slot) {
      (*static_cast<const Body*>(context))(begin, end, slot);
    });
  }
};

// For each kind K: K_packed_size and K_work in bytes; K_pack from a float weight [O, I, 3, 3] (which one: FrozenWeight
// of fastinv/ops/frozen_conv.py). work is 64-byte aligned. T: float and bfloat16; winograd multiplies in float for
// both.
// clang-format off
FASTINV_FOR_EACH_ISA(
template <class T> int64_t none_work(const FrozenConv& p, const Tail& tail, int64_t threads);
template <class T> void none_run(const FrozenConv& p, const Tail& tail, char* work, const Parallel& parallel);

template <class T> int64_t direct_packed_size(int64_t inputs, int64_t outputs);
template <class T> void direct_pack(const float* weight, int64_t inputs, int64_t outputs, void* packed);
template <class T> int64_t direct_work(const FrozenConv& p, const Tail& tail, int64_t threads);
template <class T> void direct_run(const FrozenConv& p, const Tail& tail, char* work, const Parallel& parallel);

int64_t winograd_packed_size(int64_t inputs, int64_t outputs);
void winograd_pack(const float* weight, int64_t inputs, int64_t outputs, void* packed);
template <class T> int64_t winograd_work(const FrozenConv& p, const Tail& tail, int64_t threads);
template <class T> void winograd_run(const FrozenConv& p, const Tail& tail, char* work, const Parallel& parallel);

template <class T> int64_t up_packed_size(int64_t inputs, int64_t outputs);
template <class T> void up_pack(const float* weight, int64_t inputs, int64_t outputs, void* packed);
template <class T> int64_t up_work(const FrozenConv& p, const Tail& tail, int64_t threads);
template <class T> void up_run(const FrozenConv& p, const Tail& tail, char* work, const Parallel& parallel);

template <class T> int64_t down_packed_size(int64_t inputs, int64_t outputs);
template <class T> void down_pack(const float* weight, int64_t inputs, int64_t outputs, void* packed);
template <class T> int64_t down_work(const FrozenConv& p, const Tail& tail, int64_t threads);
template <class T> void down_run(const FrozenConv& p, const Tail& tail, char* work, const Parallel& parallel);
)
// clang-format on

}  // namespace fastinv
