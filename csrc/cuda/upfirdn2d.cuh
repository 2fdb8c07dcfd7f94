// upfirdn2d, for everything: one output a thread, any filter and any factors, 64-bit indices everywhere. What is common
// is marched instead (upfirdn2d_march.cuh).
#pragma once

#include "device.cuh"
#include "upfirdn2d.h"
#include "upfirdn2d_march.cuh"

namespace fastinv::cuda {

constexpr int direct_lanes = 32, direct_rows = 8;  // of a block, along x and along y
constexpr int64_t direct_staged_taps = 4096;       // filters up to this size wait in shared memory

// Input rows of In, output rows of Out: half precision keeps float32 between two passes.
struct DirectParams {
  const void* input;
  void* output;
  const float* filter;  // [y.taps, x.taps]
  int64_t images, channels;
  Upfirdn2dAxis x, y;
  bool flip_filter;
  float scale;
};

// The samples that an output reads: `count` from `first` on, the first through tap `tap`, each next one `up` taps on.
struct SampleSpan {
  int64_t first, tap, count;
};

__host__ __device__ __forceinline__ SampleSpan sample_span(const Upfirdn2dAxis& axis, int64_t out) {
  const int64_t at = out * axis.down - axis.padding_before;  // of tap 0, in up-sampled samples
  // The first whole sample, rounding up. Division truncates: right as it is for what is not positive.
  int64_t first = at > 0 ? (at + axis.up - 1) / axis.up : at / axis.up;
  first = first > 0 ? first : 0;
  const int64_t tap = first * axis.up - at;
  int64_t count = tap < axis.taps ? (axis.taps - tap + axis.up - 1) / axis.up : 0;
  count = count < axis.size - first ? count : axis.size - first;
  return {first, tap, count > 0 ? count : 0};
}

template <class In, class Out>
__global__ void __launch_bounds__(direct_lanes* direct_rows) direct_kernel(DirectParams p) {
  using C = compute_t<In>;
  FASTINV_DYNAMIC_SHARED(float, staged);
  const int64_t taps = p.x.taps * p.y.taps;
  const bool is_staged = taps <= direct_staged_taps;
  auto read_tap = [&](int64_t i) { return load<1>(p.filter + (p.flip_filter ? i : taps - 1 - i)).values[0] * p.scale; };
  if (is_staged) {
    for (int64_t i = threadIdx.y * direct_lanes + threadIdx.x; i < taps; i += direct_lanes * direct_rows) {
      staged[i] = read_tap(i);
    }
    block_barrier();
  }

  const int64_t in_row = static_cast<int64_t>(blockIdx.x) * direct_lanes + threadIdx.x;
  if (in_row >= p.x.out * p.channels) return;  // no barrier follows
  const int64_t channel = in_row % p.channels;
  const SampleSpan x = sample_span(p.x, in_row / p.channels);
  for (int64_t image = blockIdx.z; image < p.images; image += gridDim.z) {
    for (int64_t row = static_cast<int64_t>(blockIdx.y) * direct_rows + threadIdx.y; row < p.y.out;
         row += static_cast<int64_t>(gridDim.y) * direct_rows) {
      const SampleSpan y = sample_span(p.y, row);
      C sum = 0;
      for (int64_t j = 0; j < y.count; ++j) {
        const In* from = static_cast<const In*>(p.input) +
                         row_offset(image, y.first + j, p.y.size, p.x.size * p.channels) + x.first * p.channels +
                         channel;
        int64_t tap = (y.tap + j * p.y.up) * p.x.taps + x.tap;
        for (int64_t i = 0; i < x.count; ++i, tap += p.x.up, from += p.channels) {
          sum += static_cast<C>(is_staged ? staged[tap] : read_tap(tap)) * to_compute(load<1>(from).values[0]);
        }
      }
      Out* to = static_cast<Out*>(p.output) + row_offset(image, row, p.y.out, p.x.out * p.channels) + in_row;
      store<1>(to, Vec<Out, 1>{{from_compute<Out>(sum)}});
    }
  }
}

}  // namespace fastinv::cuda
