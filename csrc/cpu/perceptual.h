// Parameters of the CPU kernels of LPIPS's stages. See fastinv/ops/perceptual.py for the definition of the ops.
// Features are NHWC.
#pragma once

#include <cstdint>

#include "../common/bfloat16.h"
#include "../common/isa.h"

namespace fastinv {

template <class T>
struct PerceptualStageParams {
  using C = compute_t<T>;
  int64_t channels, height, width;
  const T* u;               // forward: [n, height, width, channels]
  const C* bias;            // forward: [channels], or null where h holds the features already
  const C* head;            // [channels]
  const T* target;          // [n, height, width, channels]; forward: null for none
  const C* target_inverse;  // [n, height, width]
  const C* pixel_weight;    // [n, height, width], or null for 1
  T* h;                     // [n, height, width, channels]; written by the forward, read by the backward
  T* pooled;                // forward: [n, height / 2, width / 2, channels], or null for none
  C* inverse;               // [n, height, width], likewise
  C* slope;                 // likewise
  C* partial;               // forward: [n, (height + 1) / 2]
  const C* grad_value;      // backward: [n]
  const T* grad_pooled;     // backward: as pooled, or null for none
  T* grad;                  // backward: [n, height, width, channels]
};

// Pairs of rows [begin, end) of all samples' (height + 1) / 2 each.
#define FASTINV_PERCEPTUAL(T)                                                           \
  void perceptual_stage(const PerceptualStageParams<T>& p, int64_t begin, int64_t end); \
  void perceptual_stage_backward(const PerceptualStageParams<T>& p, int64_t begin, int64_t end);
FASTINV_FOR_EACH_ISA(FASTINV_PERCEPTUAL(float) FASTINV_PERCEPTUAL(double) FASTINV_PERCEPTUAL(bfloat16))
#undef FASTINV_PERCEPTUAL

}  // namespace fastinv
