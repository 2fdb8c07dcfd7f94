// Small kernels in the manner of the real ones, one for each thing that the simulator must do and catch. The tests also
// break them, by replacing text; see tests/kernels/test_mutations.py.
#pragma once

#include "../cuda/device.cuh"

namespace fastinv::cuda {

// y[block] = the sum of the block's 64 values of x: warps by shuffles, then the warps' sums through shared memory.
__global__ void __launch_bounds__(64) sum_kernel(const float* x, float* y, int count) {
  FASTINV_SHARED(float, sums, 2);
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  float sum = i < count ? load<1>(x + i).values[0] : 0.0f;
  for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  block_barrier();
  if (threadIdx.x == 0) store<1>(y + blockIdx.x, Vec<float, 1>{{sums[0] + sums[1]}});
}

// y = 2 x, V values a thread; count is a multiple of V.
template <class T, int V>
__global__ void __launch_bounds__(64) double_kernel(const T* x, T* y, int count) {
  const int first = (blockIdx.x * blockDim.x + threadIdx.x) * V;
  if (first >= count) return;
  Vec<T, V> values = load<V>(x + first);
  for (int i = 0; i < V; ++i) values.values[i] = from_compute<T>(2 * to_compute(values.values[i]));
  store<V>(y + first, values);
}

// y[i] = x[i - 1] + x[i] + x[i + 1] inside rows of 64 values, zero outside: rows by copy_async16, two stages ahead.
__global__ void __launch_bounds__(64) neighbours_kernel(const float* x, float* y, int rows) {
  FASTINV_DYNAMIC_SHARED(float, ring);  // [3][72]: 4 zeros, 64 values, 4 zeros
  const int t = threadIdx.x;
  auto fetch = [&](int row) {
    if (t < 18) copy_async16(ring + row % 3 * 72 + t * 4, x + row * 64 + t * 4 - 4, t >= 1 && t < 17 && row < rows);
    copy_async_commit();
  };
  fetch(0);
  fetch(1);
  for (int row = 0; row < rows; ++row) {
    copy_async_wait<1>();
    block_barrier();  // shows everybody's copies, and frees the place of the row before
    fetch(row + 2);
    const float* values = ring + row % 3 * 72 + 4 + t;
    store<1>(y + row * 64 + t, Vec<float, 1>{{values[-1] + values[0] + values[1]}});
  }
}

// d[16, 8] = a[16, 16] @ b[16, 8] by one warp; a and b lie row by row.
template <class T>
__global__ void __launch_bounds__(32) mma_kernel(const T* a, const T* b, float* d) {
  FASTINV_SHARED(T, tile, 16 * 16 + 16 * 8);
  const int lane = threadIdx.x;
  store<8>(tile + 8 * lane, load<8>(a + 8 * lane));
  if (lane < 16) store<8>(tile + 256 + 8 * lane, load<8>(b + 8 * lane));
  warp_barrier();
  uint32_t a_registers[4], both[4];
  // Matrices 0 and 1: rows 0..7 and 8..15 of columns 0..7; 2 and 3: of columns 8..15.
  load_matrix_x4(a_registers, tile + (lane % 16) * 16 + lane / 16 * 8);
  load_matrix_x4_transposed(both, tile + 256 + (lane % 16) * 8);  // the last two matrices repeat the first
  const uint32_t b_registers[2] = {both[0], both[1]};
  float sums[4] = {0, 0, 0, 0};
  mma_16816<T>(sums, a_registers, b_registers);
  const int row = lane / 4, column = lane % 4 * 2;
  store<2>(d + row * 8 + column, Vec<float, 2>{{sums[0], sums[1]}});
  store<2>(d + (row + 8) * 8 + column, Vec<float, 2>{{sums[2], sums[3]}});
}

// What every lane gets: [6][threads]: shuffle from lane 3, xor 5, down 7, ballot of odd lanes, warp, float64 xor 1.
__global__ void lanes_kernel(double* y) {
  const int t = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const int threads = blockDim.x * blockDim.y * blockDim.z;
  const double got[6] = {static_cast<double>(shuffle(t, 3)),
                         static_cast<double>(shuffle_xor(t, 5)),
                         static_cast<double>(shuffle_down(t, 7)),
                         static_cast<double>(ballot(t % 2 == 1)),
                         static_cast<double>(t / 32),
                         shuffle_xor(t + 0.25, 1)};
  for (int i = 0; i < 6; ++i) store<1>(y + i * threads + t, Vec<double, 1>{{got[i]}});
}

}  // namespace fastinv::cuda
