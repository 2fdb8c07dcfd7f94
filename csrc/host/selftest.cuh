// Small kernels in the manner of the real ones, one for each thing that the simulator must do and catch. Each can also
// be compiled with one mistake in it, a Mutation: tests/kernels/test_mutations.py shows that every one makes a check
// fail.
#pragma once

#include "../cuda/device.cuh"

namespace fastinv::cuda {

enum class Mutation {
  none,
  removed_barrier,
  divergent_barrier,
  divergent_shuffle,
  wrong_lane,
  out_of_bounds_read,
  out_of_bounds_plain_read,
  out_of_bounds_write,
  misaligned_access,
  misaligned_plain_read,
  write_race,
  plain_write_race,
  read_of_written,
  missing_wait,
  late_barrier,
  out_of_bounds_shared,
};

// y[block] = the sum of the block's 64 values of x: warps by shuffles, then the warps' sums through shared memory.
template <Mutation mutation>
__global__ void __launch_bounds__(64) sum_kernel(const float* x, float* y, int count) {
  FASTINV_SHARED(float, sums, 2);
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (mutation == Mutation::divergent_barrier && i >= count) return;
  float sum = i < count ? load<1>(x + i).values[0] : 0.0f;
  if (mutation == Mutation::divergent_shuffle && i >= count) {
    sum += shuffle_down(sum, 1);
  } else {
    for (int mask = mutation == Mutation::wrong_lane ? 8 : 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
  }
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  if (mutation != Mutation::removed_barrier) block_barrier();
  if (threadIdx.x == 0) store<1>(y + blockIdx.x, Vec<float, 1>{{sums[0] + sums[1]}});
}

// y = 2 x, V values a thread; count is a multiple of V.
template <Mutation mutation, class T, int V>
__global__ void __launch_bounds__(64) double_kernel(const T* x, T* y, int count) {
  const int first = (blockIdx.x * blockDim.x + threadIdx.x) * V;
  Vec<T, V> values;
  if (mutation == Mutation::out_of_bounds_read) values = load<V>(x + first);
  if (mutation == Mutation::out_of_bounds_plain_read && to_compute(x[first]) == -1) return;
  if (mutation == Mutation::misaligned_plain_read && first >= V && first < count) {
    values = *reinterpret_cast<const Vec<T, V>*>(x + first - 1);
    if (to_compute(values.values[0]) == -1) return;
  }
  if (mutation != Mutation::out_of_bounds_write && first >= count) return;
  values = load<V>(x + first % count + (mutation == Mutation::misaligned_access && first + V < count ? 1 : 0));
  for (int i = 0; i < V; ++i) values.values[i] = from_compute<T>(2 * to_compute(values.values[i]));
  if (mutation == Mutation::write_race) store<V>(y + first / (2 * V) * V, values);
  if (mutation == Mutation::plain_write_race) y[first ^ V] = values.values[0];
  store<V>(y + first, values);
  if (mutation == Mutation::read_of_written && first >= V) store<V>(y + first, load<V>(y + first - V));
}

// y[i] = x[i - 1] + x[i] + x[i + 1] inside rows of 64 values, zero outside: rows by copy_async16, two ahead.
template <Mutation mutation>
__global__ void __launch_bounds__(64) neighbours_kernel(const float* x, float* y, int rows) {
  FASTINV_DYNAMIC_SHARED(float, ring);  // [3][72]: 4 zeros, 64 values, 4 zeros
  const int t = threadIdx.x;
  const auto fetch = [&](int row) {
    const int last = mutation == Mutation::out_of_bounds_shared ? 19 : 18;
    if (t < last) copy_async16(ring + row % 3 * 72 + t * 4, x + row * 64 + t * 4 - 4, t >= 1 && t < 17 && row < rows);
    copy_async_commit();
  };
  fetch(0);
  fetch(1);
  for (int row = 0; row < rows; ++row) {
    if (mutation != Mutation::missing_wait) copy_async_wait<1>();
    if (mutation == Mutation::late_barrier) fetch(row + 2);
    if (mutation != Mutation::removed_barrier) block_barrier();  // shows all copies, and frees the row before
    if (mutation != Mutation::late_barrier) fetch(row + 2);
    const float* values = ring + row % 3 * 72 + 4 + t;
    store<1>(y + row * 64 + t, Vec<float, 1>{{values[-1] + values[0] + values[1]}});
  }
}

// d[16, 8] = a[16, 16] @ b[16, 8] by one warp; a and b lie row by row.
template <Mutation mutation, class T>
__global__ void __launch_bounds__(32) mma_kernel(const T* a, const T* b, float* d) {
  FASTINV_SHARED(T, tile, 16 * 16 + 16 * 8);
  const int lane = threadIdx.x;
  store<8>(tile + 8 * lane, load<8>(a + 8 * lane));
  if (lane < 16) store<8>(tile + 256 + 8 * lane, load<8>(b + 8 * lane));
  if (mutation != Mutation::removed_barrier) warp_barrier();
  uint32_t a_registers[4], both[4];
  // Matrices 0 and 1: rows 0..7 and 8..15 of columns 0..7; 2 and 3: of columns 8..15.
  const int source = mutation == Mutation::wrong_lane ? lane ^ 8 : lane;
  const int offset = mutation == Mutation::misaligned_access ? 4 : 0;
  load_matrix_x4(a_registers, tile + (source % 16) * 16 + source / 16 * 8 + offset);
  load_matrix_x4_transposed(both, tile + 256 + (lane % 16) * 8);  // the last two matrices repeat the first
  const uint32_t b_registers[2] = {both[0], both[1]};
  float sums[4] = {0, 0, 0, 0};
  mma_16816<T>(sums, a_registers, b_registers);
  const int row = lane / 4, column = lane % 4 * 2;
  store<2>(d + row * 8 + column, Vec<float, 2>{{sums[0], sums[1]}});
  store<2>(d + (row + 8) * 8 + column, Vec<float, 2>{{sums[2], sums[3]}});
}

// What each thread gets, y[6][threads]: shuffle from lane 3, xor 5, down 7, ballot of the odd ones, warp, xor 1 of an
// 8-byte value.
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
