// The intrinsics of device.cuh as nvcc compiles them. Their twins, with the same signatures, are
// csrc/host/intrinsics.h. Full warps only: every shuffle and ballot takes part with all 32 lanes.
#pragma once

#include <cstring>

#include "device.cuh"

// T* name: the dynamic shared memory of the block, aligned to 16 bytes.
#define FASTINV_DYNAMIC_SHARED(T, name)                                          \
  extern __shared__ __align__(16) unsigned char fastinv_dynamic_shared_memory[]; \
  T* name = reinterpret_cast<T*>(fastinv_dynamic_shared_memory)
// T name[count]: static shared memory, aligned to 16 bytes.
#define FASTINV_SHARED(T, name, count) __shared__ __align__(16) T name[count]

namespace fastinv::cuda {

constexpr unsigned every_lane = 0xffffffffu;

template <int bytes>
struct RawWord;
template <>
struct RawWord<2> {
  using type = unsigned short;
};
template <>
struct RawWord<4> {
  using type = unsigned int;
};
template <>
struct RawWord<8> {
  using type = uint2;
};
template <>
struct RawWord<16> {
  using type = uint4;
};

// Global memory that nobody writes while the kernel runs, through the read-only path.
template <int V, class T>
__device__ __forceinline__ Vec<T, V> load(const T* address) {
  using Raw = typename RawWord<sizeof(T) * V>::type;
  const Raw raw = __ldg(reinterpret_cast<const Raw*>(address));
  Vec<T, V> result;
  memcpy(&result, &raw, sizeof(raw));
  return result;
}

// Shared memory.
template <int V, class T>
__device__ __forceinline__ Vec<T, V> load_shared(const T* address) {
  using Raw = typename RawWord<sizeof(T) * V>::type;
  const Raw raw = *reinterpret_cast<const Raw*>(address);
  Vec<T, V> result;
  memcpy(&result, &raw, sizeof(raw));
  return result;
}

// Global or shared memory.
template <int V, class T>
__device__ __forceinline__ void store(T* address, const Vec<T, V>& value) {
  using Raw = typename RawWord<sizeof(T) * V>::type;
  Raw raw;
  memcpy(&raw, &value, sizeof(raw));
  *reinterpret_cast<Raw*>(address) = raw;
}

__device__ __forceinline__ void block_barrier() { __syncthreads(); }
__device__ __forceinline__ void warp_barrier() { __syncwarp(every_lane); }

template <class T>
__device__ __forceinline__ T shuffle(T value, int lane) {
  return __shfl_sync(every_lane, value, lane);
}
template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(every_lane, value, mask);
}
template <class T>
__device__ __forceinline__ T shuffle_down(T value, int delta) {
  return __shfl_down_sync(every_lane, value, delta);
}
__device__ __forceinline__ unsigned ballot(bool value) { return __ballot_sync(every_lane, value); }

// Copies 16 bytes from global to shared memory in the background; where inside is false, zeros without reading.
__device__ __forceinline__ void copy_async16(void* shared, const void* global, bool inside = true) {
  const unsigned target = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int bytes = inside ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(target), "l"(__cvta_generic_to_global(global)),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Waits for this thread's groups but for the latest `pending`. A block_barrier after it shows them to other threads.
template <int pending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(pending) : "memory");
}

// Four 8x8 matrices of 16-bit values. Lane 8*m + r gives the address of row r of matrix m (16 aligned bytes of shared
// memory); every lane gets, in registers[m], the columns 2*(lane % 4) and + 1 of row lane / 4 of matrix m.
__device__ __forceinline__ void load_matrix_x4(uint32_t (&registers)[4], const void* shared_row) {
  const unsigned source = static_cast<unsigned>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(source)
               : "memory");
}
// The same of the transposed matrices: rows 2*(lane % 4) and + 1 of column lane / 4.
__device__ __forceinline__ void load_matrix_x4_transposed(uint32_t (&registers)[4], const void* shared_row) {
  const unsigned source = static_cast<unsigned>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(source)
               : "memory");
}

// D[16, 8] += A[16, 16] @ B[16, 8] by a warp. With g = lane / 4 and t = 2 * (lane % 4), two values a register:
// a: A[g, t..], A[g + 8, t..], A[g, t + 8..], A[g + 8, t + 8..] (along a row); b: B[t.., g], B[t + 8.., g] (along a
// column); d: D[g, t], D[g, t + 1], D[g + 8, t], D[g + 8, t + 1].
template <class T>
__device__ __forceinline__ void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
__device__ __forceinline__ void mma_16816<half>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void mma_16816<bfloat16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Enqueues the kernel. Returns null, or what CUDA said went wrong.
template <class... Parameters, class... Arguments>
const char* launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t dynamic_shared_bytes,
                   cudaStream_t stream, Arguments... arguments) {
  static_assert((sizeof(Parameters) + ... + 0) <= 4096, "kernel parameters take more than 4096 bytes");
  if (dynamic_shared_bytes > 48 * 1024) {  // more than that only if asked for
    const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                    static_cast<int>(dynamic_shared_bytes));
    if (status != cudaSuccess) {
      cudaGetLastError();  // takes it, or the next launch would be blamed for it
      return cudaGetErrorString(status);
    }
  }
  kernel<<<grid, block, dynamic_shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // namespace fastinv::cuda
