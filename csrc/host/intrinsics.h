// The twins of csrc/cuda/device_intrinsics.cuh for g++: same names and signatures, and the place of the call.
#pragma once

#include <math.h>

#include <cstring>
#include <tuple>
#include <utility>

#include "../cuda/device.cuh"

#define FASTINV_DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(fastinv::host::simulator().dynamic_shared())
#define FASTINV_SHARED(T, name, count)                                  \
  static fastinv::host::StaticShared<T, (count)> name##_static_storage; \
  T(&name)[count] = name##_static_storage.of_this_block()

namespace fastinv::host {

// Poisons itself when the first thread of a block comes by.
template <class T, size_t count>
class StaticShared {
 public:
  using Values = T[count];
  Values& of_this_block() {
    if (block_ != simulator().block_serial()) {
      block_ = simulator().block_serial();
      simulator().add_static_shared(storage_, sizeof(storage_));
      std::memset(storage_, 0xff, sizeof(storage_));
    }
    return *reinterpret_cast<Values*>(storage_);
  }

 private:
  alignas(16) unsigned char storage_[sizeof(T) * count];
  uint64_t block_ = 0;
};

// Runs a check; what it throws then also names the line, the block and the thread.
template <class Check>
inline void located(Site site, Check&& check) {
  try {
    check();
  } catch (const std::exception& error) {
    throw std::runtime_error(simulator().located(error.what(), site));
  }
}

}  // namespace fastinv::host

// CUDA's global functions that C++ does not have.
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float rsqrt(float x) { return rsqrtf(x); }
template <class T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}

namespace fastinv::cuda {

#define FASTINV_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define FASTINV_HERE \
  host::Site { file, line }

template <int V, class T>
inline Vec<T, V> load(const T* address, FASTINV_SITE) {
  constexpr size_t bytes = sizeof(T) * V;
  static_assert(bytes == 2 || bytes == 4 || bytes == 8 || bytes == 16, "load takes 2, 4, 8 or 16 bytes");
  host::located(FASTINV_HERE, [&] {
    host::simulator().memory.check_alignment("load", address, bytes);
    host::simulator().memory.check_read("load", address, bytes);
  });
  Vec<T, V> result;
  std::memcpy(&result, address, bytes);
  return result;
}

template <int V, class T>
inline Vec<T, V> load_shared(const T* address, FASTINV_SITE) {
  constexpr size_t bytes = sizeof(T) * V;
  static_assert(bytes == 2 || bytes == 4 || bytes == 8 || bytes == 16, "load_shared takes 2, 4, 8 or 16 bytes");
  host::located(FASTINV_HERE, [&] {
    host::simulator().memory.check_alignment("load_shared", address, bytes);
    host::simulator().memory.check_shared("load_shared", address, bytes);
  });
  Vec<T, V> result;
  std::memcpy(&result, address, bytes);
  return result;
}

template <int V, class T>
inline void store(T* address, const Vec<T, V>& value, FASTINV_SITE) {
  constexpr size_t bytes = sizeof(T) * V;
  static_assert(bytes == 2 || bytes == 4 || bytes == 8 || bytes == 16, "store takes 2, 4, 8 or 16 bytes");
  host::located(FASTINV_HERE, [&] {
    host::simulator().memory.check_alignment("store", address, bytes);
    host::simulator().memory.check_write("store", address, &value, bytes, host::simulator().writer());
  });
  std::memcpy(address, &value, bytes);
}

inline void block_barrier(FASTINV_SITE) { host::simulator().block_barrier(FASTINV_HERE); }
inline void warp_barrier(FASTINV_SITE) {
  if (!host::simulator().omits("warp_barrier", FASTINV_HERE)) {
    host::simulator().warp_barrier("warp_barrier", FASTINV_HERE);
  }
}

template <class T>
inline T shuffle_from(const char* operation, T value, unsigned lane, host::Site site) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles take 4 or 8 bytes");
  if (host::simulator().omits(operation, site)) return value;
  host::simulator().exchange(operation, site, &value, sizeof(T));
  host::located(site, [&] { std::memcpy(&value, host::simulator().lane_data(lane), sizeof(T)); });
  return value;
}
template <class T>
inline T shuffle(T value, int lane, FASTINV_SITE) {
  return shuffle_from("shuffle", value, lane % host::warp_size, FASTINV_HERE);
}
template <class T>
inline T shuffle_xor(T value, int mask, FASTINV_SITE) {
  return shuffle_from("shuffle_xor", value, (host::simulator().current->lane ^ mask) % host::warp_size, FASTINV_HERE);
}
template <class T>
inline T shuffle_down(T value, int delta, FASTINV_SITE) {
  const unsigned lane = host::simulator().current->lane;
  const unsigned source = lane + delta < host::warp_size ? lane + delta : lane;  // past the end: its own
  return shuffle_from("shuffle_down", value, source, FASTINV_HERE);
}
inline unsigned ballot(bool value, FASTINV_SITE) {
  const uint32_t mine = value;
  host::simulator().exchange("ballot", FASTINV_HERE, &mine, sizeof(mine));
  unsigned result = 0;
  for (unsigned lane = 0; lane < host::simulator().lanes(); ++lane) {
    uint32_t theirs;
    std::memcpy(&theirs, host::simulator().lane_data(lane), sizeof(theirs));
    result |= theirs << lane;
  }
  return result;
}

// Copies when it is waited for, so that a missing wait leaves NaN.
inline void copy_async16(void* shared, const void* global, bool inside = true, FASTINV_SITE) {
  host::Simulator& s = host::simulator();
  host::located(FASTINV_HERE, [&] {
    s.memory.check_alignment("copy_async16", shared, 16);
    s.memory.check_shared("copy_async16", shared, 16);
    if (!inside) return;
    s.memory.check_alignment("copy_async16", global, 16);
    s.memory.check_read("copy_async16", global, 16);
  });
  std::memset(shared, 0xff, 16);
  s.current->copies.push_back({shared, inside ? global : nullptr, s.current->copy_group});
}
inline void copy_async_commit() { ++host::simulator().current->copy_group; }
template <int pending>
inline void copy_async_wait(FASTINV_SITE) {
  if (host::simulator().omits("copy_async_wait", FASTINV_HERE)) return;
  host::Thread& thread = *host::simulator().current;
  size_t kept = 0;
  for (const host::PendingCopy& copy : thread.copies) {
    if (copy.group + pending >= thread.copy_group) {  // also copies that no commit has closed yet
      thread.copies[kept++] = copy;
    } else if (copy.global != nullptr) {
      std::memcpy(copy.shared, copy.global, 16);
    } else {
      std::memset(copy.shared, 0, 16);
    }
  }
  thread.copies.resize(kept);
}

inline void load_matrix(const char* operation, uint32_t (&registers)[4], const void* shared_row, bool transposed,
                        host::Site site) {
  host::Simulator& s = host::simulator();
  host::located(site, [&] {
    s.memory.check_alignment(operation, shared_row, 16);
    s.memory.check_shared(operation, shared_row, 16);
  });
  s.exchange(operation, site, shared_row, 16);
  const unsigned first = s.current->lane / 4, second = s.current->lane % 4 * 2;
  host::located(site, [&] {
    for (unsigned matrix = 0; matrix < 4; ++matrix) {
      uint16_t pair[2];
      for (unsigned i = 0; i < 2; ++i) {
        const unsigned row = transposed ? second + i : first, column = transposed ? first : second + i;
        const char* values = reinterpret_cast<const char*>(s.lane_data(matrix * 8 + row));
        std::memcpy(&pair[i], values + 2 * column, 2);
      }
      std::memcpy(&registers[matrix], pair, 4);
    }
  });
}
inline void load_matrix_x4(uint32_t (&registers)[4], const void* shared_row, FASTINV_SITE) {
  load_matrix("load_matrix_x4", registers, shared_row, false, FASTINV_HERE);
}
inline void load_matrix_x4_transposed(uint32_t (&registers)[4], const void* shared_row, FASTINV_SITE) {
  load_matrix("load_matrix_x4_transposed", registers, shared_row, true, FASTINV_HERE);
}

template <class T>
inline void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], FASTINV_SITE) {
  static_assert(sizeof(T) == 2, "mma_16816 takes half or bfloat16");
  T packed[12];
  std::memcpy(packed, a, 16);
  std::memcpy(packed + 8, b, 8);
  float shown[12];
  for (int i = 0; i < 12; ++i) shown[i] = to_compute(packed[i]);
  host::Simulator& s = host::simulator();
  s.exchange("mma_16816", FASTINV_HERE, shown, sizeof(shown));
  const unsigned g = s.current->lane / 4, t = s.current->lane % 4 * 2;
  host::located(FASTINV_HERE, [&] {
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned lower = i / 2, column = t + i % 2;  // rows g (0) or g + 8 (1)
      float sum = d[i];
      for (unsigned k = 0; k < 16; ++k) {
        const unsigned owner = k % 8 / 2, upper = k / 8, half_of_pair = k % 2;
        sum += s.lane_data(g * 4 + owner)[(lower + 2 * upper) * 2 + half_of_pair] *
               s.lane_data(column * 4 + owner)[8 + 2 * upper + half_of_pair];
      }
      d[i] = sum;
    }
  });
}

#undef FASTINV_SITE
#undef FASTINV_HERE

// Runs the kernel. Returns null, or what the device would say of such a launch; throws where the kernel breaks a rule.
template <class... Parameters, class... Arguments>
const char* launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t dynamic_shared_bytes, cudaStream_t,
                   Arguments... arguments) {
  static_assert((sizeof(Parameters) + ... + 0) <= 4096, "kernel parameters take more than 4096 bytes");
  const char* refusal = host::Simulator::refusal(grid, block, dynamic_shared_bytes);
  if (refusal != nullptr) return refusal;
  auto call = [&] { kernel(static_cast<Parameters>(arguments)...); };
  host::simulator().run(
      grid, block, dynamic_shared_bytes, [](void* c) { (*static_cast<decltype(call)*>(c))(); }, &call);
  return nullptr;
}

}  // namespace fastinv::cuda
